//! Values of columns that are declared personal: clients that read the table get them, and nothing else shows
//! them.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::harness::{Cluster, Node, assert_converge, stop, until};

const SCHEMA: &str = "
    CREATE TABLE people(mail TEXT PRIMARY KEY NOT NULL, name TEXT, town TEXT,
      visits INTEGER NOT NULL DEFAULT 0, CHECK (visits < 3));";

const POLICY: &str = "people:writers=any,mail=personal,name=personal,visits=counter";

/// What all personal values have in common.
const MARK: &str = "SECRET";

/// Runs a command against a node; gives what it prints, whatever becomes of it.
fn command(node: &Node, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-under-test"));
    command.args(arguments).args(["--url", &format!("http://{}", node.http)]);
    let output = command.output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    out + &err
}

#[test]
fn personal_values_are_read_from_their_table_and_shown_nowhere_else() {
    let cluster = Cluster::init(SCHEMA, &[POLICY], &["origin", "edge1", "edge2"]);
    for name in ["origin", "edge1", "edge2"] {
        // Every statement is a slow one.
        cluster.configure(name, "[http]\n", "[http]\nslow_statement_ms = 1\n");
    }
    let mut nodes = cluster.serve_star(&["origin", "edge1", "edge2"]);
    nodes[1].run(&["INSERT INTO people VALUES ('SECRET mail', 'SECRET name', 'quay', 0)"]);
    assert_converge(&nodes, &["SELECT * FROM people"]);

    // Alone, the edges write what conflicts: a value that loses, and a row that breaks its CHECK.
    nodes.remove(0).stop();
    until("the edges to be alone", || {
        nodes.iter().all(|edge| edge.status()["peers"].as_array().unwrap().is_empty())
    });
    for (node, name, town) in [(0, "SECRET one", "here"), (1, "SECRET two", "there")] {
        let set =
            format!("UPDATE people SET name = '{name}', town = '{town}', visits = visits + 2");
        nodes[node].run(&[&set]);
    }
    let origin = cluster.serve("origin", &[&nodes[0], &nodes[1]]);
    nodes.insert(0, origin);
    assert_converge(&nodes, &["SELECT * FROM people"]);

    let read = &nodes[0].run(&["SELECT mail, name FROM people"])["rows"][0];
    assert_eq!(read[0]["value"], "SECRET mail", "whoever may read the table reads it");
    let kept = "SELECT count(*) FROM littoral_conflicts WHERE lost LIKE 'SECRET%'";
    assert_eq!(nodes[0].run(&[kept])["rows"][0][0]["value"], "1", "nothing is lost");

    let conflicts = command(&nodes[0], &["conflicts", "--json"]);
    let conflicts: Vec<Value> = serde_json::from_str(&conflicts).unwrap();
    let of =
        |column: &str| conflicts.iter().find(|conflict| conflict["column"] == *column).unwrap();
    let shown = |conflict: &Value| {
        [&conflict["row"], &conflict["kept"], &conflict["lost"]].map(Value::clone)
    };
    let key = json!("[\"(personal)\"]");
    let hidden = json!("(personal)");
    assert_eq!(shown(of("name")), [key.clone(), hidden.clone(), hidden]);
    assert_eq!(shown(of("town")), [key.clone(), json!("there"), json!("here")]);
    let check = conflicts.iter().find(|conflict| conflict["rule"] == "check").unwrap();
    assert_eq!(check["row"], key);
    let row: Value = serde_json::from_str(check["kept"].as_str().unwrap()).unwrap();
    assert_eq!((&row["name"], &row["visits"]), (&json!("(personal)"), &json!(4)));

    for node in &nodes {
        for arguments in [
            &["conflicts"][..],
            &["conflicts", "--json"],
            &["status"],
            &["status", "--json"],
            &["schema", "status"],
            &["gc", "explain"],
            &["policy", "explain", "SELECT * FROM people WHERE mail = 'x'"],
        ] {
            let shown = command(node, arguments);
            assert!(!shown.contains(MARK), "{}: {arguments:?}: {shown}", node.name);
        }
        for path in ["/status", "/metrics", "/ready"] {
            let shown = node.client().get(path).unwrap().body;
            assert!(!shown.contains(MARK), "{}: {path}: {shown}", node.name);
        }
    }
    let verified = command(&nodes[1], &["verify", "--json"]);
    assert!(!verified.contains(MARK) && verified.contains("\"differing\":0"), "{verified}");

    // A refusal that names a row does not say which.
    let policy = "SELECT littoral_policy('people', 'read-after-write', \
        json('{\"writers\": \"any\", \"columns\": {\"town\": \"set\", \"mail\": \"personal\"}}'))";
    let requests = json!([{ "type": "execute", "stmt": { "sql": policy } }]);
    let refused = nodes[0].client().pipeline(&requests).unwrap();
    let refused = refused[0]["error"]["message"].as_str().unwrap();
    assert!(!refused.contains(MARK), "{refused}");

    let status = nodes[2].status();
    let columns = &status["tables"][0]["columns"];
    assert_eq!(*columns, json!({ "mail": "personal", "name": "personal", "visits": "counter" }));
    stop(nodes);
    for name in ["origin", "edge1", "edge2"] {
        let log = fs::read_to_string(cluster.home().join(format!("{name}.log"))).unwrap();
        assert!(!log.contains(MARK), "{name}: {log}");
    }
}

#[test]
fn what_was_listed_before_a_column_became_personal_or_got_another_name_is_hidden_too() {
    let policy = "people:writers=any,name=personal,visits=counter";
    let cluster = Cluster::init(SCHEMA, &[policy], &["origin", "edge1"]);
    let nodes = cluster.serve_star(&["origin", "edge1"]);
    nodes[0].run(&["INSERT INTO people VALUES ('SECRET mail', 'SECRET name', 'quay', 0)"]);
    assert_converge(&nodes, &["SELECT * FROM people"]);
    // Apart, both add to what a CHECK bounds, and set what can be only one.
    let [origin, edge] = <[Node; 2]>::try_from(nodes).unwrap();
    edge.stop();
    origin.run(&["UPDATE people SET visits = 2, town = 'here'"]);
    origin.stop();
    let edge = cluster.serve("edge1", &[]);
    edge.run(&["UPDATE people SET visits = 2, town = 'there', name = 'SECRET new'"]);
    let origin = cluster.serve("origin", &[&edge]);
    let nodes = vec![origin, edge];
    assert_converge(&nodes, &["SELECT * FROM people"]);
    let listed = |node: &Node| -> Vec<Value> {
        serde_json::from_str(&command(node, &["conflicts", "--json"])).unwrap()
    };
    for node in &nodes {
        let listed = listed(node);
        assert!(listed.iter().any(|one| one["rule"] == "check"), "{listed:?}");
        assert!(listed.iter().all(|one| one["row"] == "[\"SECRET mail\"]"), "{listed:?}");
    }

    let personal = "SELECT littoral_policy('people', 'read-after-write', json('{\"writers\": \"any\", \
        \"columns\": {\"name\": \"personal\", \"mail\": \"personal\", \"visits\": \"counter\"}}'))";
    nodes[0].run(&[personal]);
    // Another column gets the name that a personal one had.
    for change in [
        "ALTER TABLE people RENAME COLUMN name TO called",
        "ALTER TABLE people RENAME COLUMN town TO name",
        "ALTER TABLE people ADD COLUMN town TEXT",
    ] {
        let script = format!("PRAGMA foreign_keys = off; {change}; PRAGMA foreign_keys = on");
        let requests = json!([{ "type": "sequence", "sql": script }]);
        let answer = nodes[0].client().pipeline(&requests).unwrap();
        let waits = answer[0]["error"]["code"] == "LITTORAL_SCHEMA_ACCEPTED";
        assert!(waits || answer[0]["type"] == "ok", "{change}: {answer:?}");
        until("the change to be carried out", || nodes[0].status()["freeze"].is_null());
    }
    assert_converge(&nodes, &["SELECT mail, called, name, town, visits FROM people"]);
    for node in &nodes {
        let listed = listed(node);
        assert!(!json!(listed).to_string().contains(MARK), "{}: {listed:?}", node.name);
        let key = "[\"(personal)\"]";
        assert!(listed.iter().all(|one| one["row"] == key), "{}: {listed:?}", node.name);
        let check = listed.iter().find(|one| one["rule"] == "check").unwrap();
        let row: Value = serde_json::from_str(check["kept"].as_str().unwrap()).unwrap();
        let town = row["name"].as_str().unwrap();
        assert!(["here", "there"].contains(&town), "{row}");
        assert_eq!(row["visits"], 4, "{row}");
    }
    stop(nodes);
}
