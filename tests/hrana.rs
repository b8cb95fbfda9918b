//! The requests of `@libsql/client` over HTTP, as they stand on the wire, and what it needs of the
//! answers.

use serde_json::{Value, json};

use crate::harness::{Answer, Cluster, Node, stop};

const SCHEMA: &str = "CREATE TABLE items (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, price REAL, data BLOB
);";

fn node() -> (Cluster, Node) {
    let cluster = Cluster::init(SCHEMA, &[], &["origin"]);
    let node = cluster.serve("origin", &[]);
    node.until_ready();
    (cluster, node)
}

/// Sends a body as it is; gives the results, which the client takes in the order of its requests.
fn send(node: &Node, body: &str) -> Vec<Value> {
    let answer = node.client().send("POST", "/v2/pipeline", body).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_json(&answer);
    let mut answer = answer.json();
    assert_eq!((&answer["baton"], &answer["base_url"]), (&Value::Null, &Value::Null));
    serde_json::from_value(answer["results"].take()).unwrap()
}

/// The client compares the whole of it, a charset included, to tell whether an error has a body.
fn assert_json(answer: &Answer) {
    assert_eq!(answer.header("content-type"), Some("application/json"));
}

/// The result of an `execute` that went well.
fn result(results: &[Value], place: usize) -> &Value {
    assert_eq!(results[place]["type"], "ok", "{results:?}");
    let response = &results[place]["response"];
    assert_eq!(response["type"], "execute");
    let result = &response["result"];
    // The client throws without these.
    assert!(result["cols"].is_array() && result["rows"].is_array(), "{result}");
    assert!(result["affected_row_count"].is_u64(), "{result}");
    let rowid = &result["last_insert_rowid"];
    assert!(result.as_object().unwrap().contains_key("last_insert_rowid"), "{result}");
    assert!(rowid.is_null() || rowid.as_str().is_some_and(|text| text.parse::<i64>().is_ok()));
    result
}

fn assert_closed(results: &[Value]) {
    let expected = json!({ "type": "ok", "response": { "type": "close" } });
    assert_eq!(results.last(), Some(&expected));
}

#[test]
fn execute_with_arguments() {
    let (_cluster, node) = node();
    // client.execute({ sql, args: [1n, "a", 2, new Uint8Array([0, 1, 255])] })
    let results = send(
        &node,
        r#"{"requests":[{"type":"execute","stmt":{
            "sql":"INSERT INTO items VALUES (?, ?, ?, ?)",
            "args":[{"type":"integer","value":"1"},{"type":"text","value":"naïve 🙂"},
                    {"type":"float","value":2},{"type":"blob","base64":"AAH/"}],
            "named_args":[],"want_rows":true}},{"type":"close"}]}"#,
    );
    assert_eq!(results.len(), 2);
    let inserted = result(&results, 0);
    assert_eq!(inserted["affected_row_count"], 1);
    assert_eq!(inserted["last_insert_rowid"], "1");
    assert_eq!((&inserted["cols"], &inserted["rows"]), (&json!([]), &json!([])));
    assert_closed(&results);

    // client.execute({ sql, args: { id: 1 } }): a number goes out as a float.
    let results = send(
        &node,
        r#"{"requests":[{"type":"execute","stmt":{
            "sql":"SELECT *, price + 1 AS more, NULL FROM items WHERE id = :id",
            "args":[],"named_args":[{"name":"id","value":{"type":"float","value":1}}],
            "want_rows":true}},{"type":"close"}]}"#,
    );
    let read = result(&results, 0);
    assert_eq!(
        read["cols"],
        json!([
            { "name": "id", "decltype": "INTEGER" },
            { "name": "name", "decltype": "TEXT" },
            { "name": "price", "decltype": "REAL" },
            { "name": "data", "decltype": "BLOB" },
            { "name": "more", "decltype": null },
            { "name": "NULL", "decltype": null },
        ])
    );
    let row = read["rows"][0].as_array().unwrap();
    assert_eq!(row[0], json!({ "type": "integer", "value": "1" }));
    assert_eq!(row[1], json!({ "type": "text", "value": "naïve 🙂" }));
    assert_eq!((&row[2]["type"], row[2]["value"].as_f64()), (&json!("float"), Some(2.0)));
    assert_eq!(row[3], json!({ "type": "blob", "base64": "AAH/" }));
    assert_eq!((&row[4]["type"], row[4]["value"].as_f64()), (&json!("float"), Some(3.0)));
    assert_eq!(row[5], json!({ "type": "null" }));
    stop(vec![node]);
}

#[test]
fn values_keep_every_bit() {
    let (_cluster, node) = node();
    let integers = ["-9223372036854775808", "9223372036854775807", "9007199254740993"];
    for integer in integers {
        let args = json!([{ "type": "integer", "value": integer }]);
        let stmt = json!({ "sql": "SELECT ?", "args": args });
        let request = json!({ "requests": [{ "type": "execute", "stmt": stmt }] });
        let results = send(&node, &request.to_string());
        assert_eq!(result(&results, 0)["rows"][0][0]["value"], integer);
    }
    for float in [123_456_789.987_654_33, f64::MIN_POSITIVE, f64::MAX, 0.1 + 0.2, -0.0] {
        let args = json!([{ "type": "float", "value": float }]);
        let stmt = json!({ "sql": "SELECT ?", "args": args });
        let request = json!({ "requests": [{ "type": "execute", "stmt": stmt }] });
        let results = send(&node, &request.to_string());
        let value = result(&results, 0)["rows"][0][0]["value"].as_f64().unwrap();
        assert_eq!(value.to_bits(), float.to_bits(), "{float}");
    }
    let results = send(
        &node,
        r#"{"requests":[{"type":"execute","stmt":{"sql":"SELECT ?, x'01'","args":
            [{"type":"blob","base64":"AQ=="}]}}]}"#,
    );
    let blob = json!({ "type": "blob", "base64": "AQ" });
    assert_eq!(result(&results, 0)["rows"][0], json!([blob, blob]), "sent without padding");
    stop(vec![node]);
}

#[test]
fn numbers_go_out_as_floats_and_are_taken_as_the_statement_needs_them() {
    let (_cluster, node) = node();
    node.run(&["INSERT INTO items (name) VALUES ('a'), ('b'), ('c')"]);
    // client.execute({ sql, args: [2, 1] })
    let results = send(
        &node,
        r#"{"requests":[{"type":"execute","stmt":{
            "sql":"SELECT name FROM items WHERE id > 0 ORDER BY id LIMIT ? OFFSET ?;",
            "args":[{"type":"float","value":2.0},{"type":"float","value":1}],"named_args":[],
            "want_rows":true}},{"type":"close"}]}"#,
    );
    let text = |text: &str| json!([{ "type": "text", "value": text }]);
    assert_eq!(result(&results, 0)["rows"], json!([text("b"), text("c")]));
    // What JSON has no number for must not spoil the whole answer.
    let results = send(
        &node,
        r#"{"requests":[{"type":"execute","stmt":{"sql":"SELECT 9e999, CAST(x'ff' AS TEXT), 1"}},
            {"type":"close"}]}"#,
    );
    assert_eq!(result(&results, 0)["rows"][0][2], json!({ "type": "integer", "value": "1" }));
    stop(vec![node]);
}

#[test]
fn batch_with_stored_sql() {
    let (_cluster, node) = node();
    // client.batch([{ sql, args: [1] }, { sql, args: [2] }, "SELECT count(*) AS n FROM items"], "write")
    let results = send(
        &node,
        r#"{"requests":[
            {"type":"store_sql","sql_id":0,"sql":"INSERT INTO items (id, name) VALUES (?, 'item ' || ?)"},
            {"type":"store_sql","sql_id":1,"sql":"SELECT count(*) AS n FROM items"},
            {"type":"batch","batch":{"steps":[
                {"stmt":{"sql":"BEGIN IMMEDIATE","args":[],"named_args":[],"want_rows":false}},
                {"condition":{"type":"ok","step":0},"stmt":{"sql_id":0,"args":
                    [{"type":"float","value":1},{"type":"float","value":1}],"named_args":[],"want_rows":true}},
                {"condition":{"type":"ok","step":1},"stmt":{"sql_id":0,"args":
                    [{"type":"float","value":2},{"type":"float","value":2}],"named_args":[],"want_rows":true}},
                {"condition":{"type":"ok","step":2},"stmt":{"sql_id":1,"args":[],"named_args":[],"want_rows":true}},
                {"condition":{"type":"ok","step":3},"stmt":{"sql":"COMMIT","args":[],"named_args":[],"want_rows":false}},
                {"condition":{"type":"not","cond":{"type":"ok","step":4}},
                    "stmt":{"sql":"ROLLBACK","args":[],"named_args":[],"want_rows":false}}
            ]}},
            {"type":"close"}]}"#,
    );
    let kinds: Vec<&Value> = results.iter().map(|result| &result["response"]["type"]).collect();
    assert_eq!(kinds, ["store_sql", "store_sql", "batch", "close"]);
    let batch = &results[2]["response"]["result"];
    assert_eq!(batch["step_errors"], json!([null, null, null, null, null, null]));
    let steps = batch["step_results"].as_array().unwrap();
    assert_eq!(steps.len(), 6, "one slot for each step");
    assert_eq!(steps[2]["affected_row_count"], 1);
    assert_eq!(steps[2]["last_insert_rowid"], "2");
    assert_eq!(steps[3]["cols"][0]["name"], "n");
    assert_eq!(steps[3]["rows"], json!([[{ "type": "integer", "value": "2" }]]));
    assert!(steps[4].is_object() && steps[5].is_null(), "committed, so not rolled back");
    assert_closed(&results);
    stop(vec![node]);
}

#[test]
fn an_error_carries_the_code_and_the_text_of_sqlite() {
    let (_cluster, node) = node();
    let insert = r#"{"requests":[{"type":"execute","stmt":{
        "sql":"INSERT INTO items (name) VALUES ('twice')","args":[],"named_args":[],
        "want_rows":true}},{"type":"close"}]}"#;
    result(&send(&node, insert), 0);
    let results = send(&node, insert);
    assert_eq!(results[0]["type"], "error");
    assert_eq!(results[0]["error"]["code"], "SQLITE_CONSTRAINT", "not the extended one");
    let message = results[0]["error"]["message"].as_str().unwrap();
    assert!(message.contains("UNIQUE constraint failed: items.name"), "{message}");
    assert_closed(&results);
    stop(vec![node]);
}

#[test]
fn a_batch_that_fails_leaves_nothing_behind() {
    let (_cluster, node) = node();
    let results = send(
        &node,
        r#"{"requests":[
            {"type":"batch","batch":{"steps":[
                {"stmt":{"sql":"BEGIN IMMEDIATE"}},
                {"condition":{"type":"ok","step":0},"stmt":{"sql":"INSERT INTO items (name) VALUES ('a')"}},
                {"condition":{"type":"ok","step":1},"stmt":{"sql":"INSERT INTO items (name) VALUES ('a')"}},
                {"condition":{"type":"ok","step":2},"stmt":{"sql":"INSERT INTO items (name) VALUES ('b')"}},
                {"condition":{"type":"ok","step":3},"stmt":{"sql":"COMMIT"}},
                {"condition":{"type":"not","cond":{"type":"ok","step":4}},"stmt":{"sql":"ROLLBACK"}}
            ]}},
            {"type":"close"}]}"#,
    );
    let batch = &results[0]["response"]["result"];
    let failed: Vec<bool> =
        batch["step_errors"].as_array().unwrap().iter().map(Value::is_object).collect();
    assert_eq!(failed, [false, false, true, false, false, false]);
    assert_eq!(batch["step_errors"][2]["code"], "SQLITE_CONSTRAINT");
    let ran: Vec<bool> =
        batch["step_results"].as_array().unwrap().iter().map(Value::is_object).collect();
    assert_eq!(ran, [true, true, false, false, false, true]);
    assert_eq!(node.run(&["SELECT count(*) FROM items"])["rows"][0][0]["value"], "0");
    stop(vec![node]);
}

#[test]
fn execute_multiple_runs_a_script() {
    let (_cluster, node) = node();
    let results = send(
        &node,
        r#"{"requests":[{"type":"sequence","sql":
            "INSERT INTO items (name) VALUES ('a;b'); INSERT INTO items (name) VALUES ('c');"},
            {"type":"close"}]}"#,
    );
    assert_eq!(results[0], json!({ "type": "ok", "response": { "type": "sequence" } }));
    let names = "SELECT group_concat(name, '+') FROM (SELECT name FROM items ORDER BY name)";
    assert_eq!(node.run(&[names])["rows"][0][0]["value"], "a;b+c");
    stop(vec![node]);
}

#[test]
fn a_request_that_breaks_the_protocol_is_answered_in_json() {
    let (_cluster, node) = node();
    for body in ["{", r#"{"requests":[{"type":"nonsense"}]}"#, r#"{"baton":"b","requests":[]}"#] {
        let answer = node.client().send("POST", "/v2/pipeline", body).unwrap();
        assert_eq!(answer.status, 400, "{body}");
        assert_json(&answer);
        let error = answer.json();
        assert!(error["message"].is_string() && error["code"].is_string(), "{error}");
    }
    for (path, status) in [("/health", 200), ("/v2", 200), ("/v3", 200), ("/v3-protobuf", 404)] {
        assert_eq!(node.client().get(path).unwrap().status, status, "{path}");
    }
    stop(vec![node]);
}
