//! Requests of clients and programs of other nodes, damaged: each is planned, or refused with a code and a
//! reason.

use littoral::testing::fuzz::{Fuzz, cases, within_memory};
use serde_json::Value;

use super::{
    forward, parse,
    program::{BadRequest, Fate, Program, Stored},
    sql,
    wire::{CursorRequest, PipelineRequest, StreamRequest},
};

/// What published clients sent.
const RECORDED: &str = include_str!("../../../../tests/fixtures/clients.json");

/// All that a test reserves, whatever lengths are claimed.
const MEMORY_MAX: u64 = 1 << 30;

/// Words and signs of SQL and of requests.
const WORDS: [&str; 38] = [
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "END",
    "SAVEPOINT",
    "RELEASE",
    "SELECT",
    "INSERT",
    "PRAGMA",
    "foreign_keys",
    "EXPLAIN",
    "TRIGGER",
    "CREATE",
    "TEMP",
    "WITH",
    "CASE",
    "--",
    "/*",
    "*/",
    "'",
    "\"",
    "`",
    "[",
    "]",
    ";",
    "(",
    ")",
    "?",
    "?1",
    "?999999999999",
    ":a",
    "@b",
    "$c::d(e)",
    "\0",
    "é",
    "\u{feff}",
    "\\",
    "\n",
];

fn recorded() -> Vec<Value> {
    let pairs: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    pairs.into_iter().map(|mut pair| pair["request"].take()).collect()
}

/// A value within another, some levels down.
fn within<'v>(fuzz: &mut Fuzz, value: &'v mut Value) -> &'v mut Value {
    let inner = match value {
        Value::Array(values) => values.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    };
    if inner == 0 || fuzz.below(5) == 0 {
        return value;
    }
    let at = fuzz.below(inner);
    match value {
        Value::Array(values) => within(fuzz, &mut values[at]),
        Value::Object(fields) => within(fuzz, fields.values_mut().nth(at).unwrap()),
        _ => value,
    }
}

fn strange(fuzz: &mut Fuzz, corpus: &[Value]) -> Value {
    match fuzz.below(10) {
        0 => Value::Null,
        1 => Value::from(u64::MAX),
        2 => Value::from(i64::MIN),
        3 => Value::from(1e308),
        4 => Value::from("x".repeat(fuzz.below(100_000))),
        5 => Value::Array(Vec::new()),
        6 => (0..fuzz.below(200)).fold(Value::from(true), |inner, _| Value::Array(vec![inner])),
        7 => {
            let (levels, step) = (fuzz.below(300), fuzz.word() % 3);
            let not = |inner, _| serde_json::json!({ "type": "not", "cond": inner });
            (0..levels).fold(serde_json::json!({ "type": "ok", "step": step }), not)
        }
        _ => {
            let mut other = fuzz.pick(corpus).clone();
            within(fuzz, &mut other).take()
        }
    }
}

/// A recorded request with some parts exchanged, left out, doubled or changed.
fn request(fuzz: &mut Fuzz, corpus: &[Value]) -> Value {
    let mut request = fuzz.pick(corpus).clone();
    for _ in 0..=fuzz.below(5) {
        let new = strange(fuzz, corpus);
        let place = within(fuzz, &mut request);
        let choice = fuzz.below(6);
        match place {
            Value::String(text) if choice < 4 => {
                *text = fuzz.text(std::slice::from_ref(text), &WORDS);
            }
            Value::Array(values) if choice < 3 => {
                let at = fuzz.below(values.len() + 1);
                match values.get(at).cloned() {
                    Some(_) if choice == 0 => drop(values.remove(at)),
                    Some(again) => values.insert(at, again),
                    None => values.push(new),
                }
            }
            Value::Object(fields) if choice < 3 => {
                let name = fields.keys().nth(fuzz.below(fields.len())).cloned();
                let Some(name) = name else { continue };
                let value = fields.remove(&name).unwrap_or_default();
                if choice == 0 {
                    fields.insert(fuzz.text(&[name], &WORDS), value);
                } else if choice == 1 {
                    fields.insert(name, new);
                }
            }
            other => *other = new,
        }
    }
    request
}

fn assert_told(error: &BadRequest) {
    let (code, message) = (&error.0.code, &error.0.message);
    assert!(
        !code.is_empty() && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'),
        "{code}"
    );
    assert!(!message.is_empty() && message.len() < 2000, "{code}: {} bytes", message.len());
}

/// Asks of a program all that is asked while it runs.
fn walk(fuzz: &mut Fuzz, program: &Program) {
    let steps = program.steps.len();
    let fates: Vec<Fate> =
        (0..steps).map(|_| *fuzz.pick(&[Fate::Ok, Fate::Error, Fate::Skipped])).collect();
    let _ = program.begins_transaction();
    for step in 0..steps {
        let _ = program.runs(step, &fates[..step], fuzz.below(2) == 0);
        let _ = (program.verb(step), program.may_only_read(step));
        let _ = program.ends_transaction_after(step);
        let end = program.script_end(step);
        assert!(step < end && end <= steps, "{step}..{end} of {steps}");
    }
}

#[test]
fn a_damaged_request_is_planned_or_refused_with_a_reason() {
    let test = concat!(module_path!(), "::a_damaged_request_is_planned_or_refused_with_a_reason");
    within_memory(test, MEMORY_MAX, check_requests);
}

fn check_requests() {
    let corpus = recorded();
    let texts: Vec<Vec<u8>> =
        corpus.iter().map(|request| request.to_string().into_bytes()).collect();
    let mut fuzz = Fuzz::new(2);
    let (mut planned, mut refused) = (0, 0);
    for _ in 0..cases(5000) {
        let body = match fuzz.below(4) {
            0 => fuzz.bytes(&texts),
            _ => request(&mut fuzz, &corpus).to_string().into_bytes(),
        };
        let pipeline = parse::<PipelineRequest>(&body).map(|request| request.requests);
        let requests = pipeline.or_else(|error| {
            assert_told(&error);
            let cursor = parse::<CursorRequest>(&body)?;
            Ok(vec![StreamRequest::Batch { batch: cursor.batch }])
        });
        match requests.and_then(|requests| Program::plan(requests, &mut Stored::default())) {
            Ok(program) => {
                planned += 1;
                walk(&mut fuzz, &program);
            }
            Err(error) => {
                refused += 1;
                assert_told(&error);
            }
        }
    }
    assert!(planned > 10 && refused > 10, "{planned} were planned, {refused} refused");
}

#[test]
fn a_damaged_script_comes_apart_into_its_statements() {
    let mut scripts = Vec::new();
    for request in recorded() {
        let text = request.to_string();
        let parts = text.split("\"sql\":\"").skip(1);
        scripts.extend(parts.filter_map(|rest| Some(rest.split_once("\",\"")?.0.to_owned())));
    }
    assert!(scripts.len() > 50);
    let mut fuzz = Fuzz::new(3);
    for _ in 0..cases(5000) {
        let script = fuzz.text(&scripts, &WORDS);
        let statements = sql::statements(&script);
        let all: usize = statements.iter().map(|statement| statement.len()).sum();
        assert!(all <= script.len(), "{script:?} became {statements:?}");
        for statement in statements {
            assert!(script.contains(statement) && !statement.trim().is_empty(), "{script:?}");
            let _ = sql::Verb::of(statement);
            let _ = (sql::changes_schema(statement), sql::is_explain(statement));
            let _ = sql::sets_foreign_keys(statement);
            assert!(sql::Parameters::of(statement).names().count() <= 1 << 16, "{statement:?}");
        }
    }
}

#[test]
fn a_damaged_program_of_another_node_becomes_a_job_or_is_answered() {
    let statement = |sql: &str| {
        serde_json::json!({
            "action": { "run": { "sql": sql, "arguments": [null, { "type": "integer", "value": "1" }],
                "want_rows": true } },
            "base": 0, "condition": { "type": "ok", "step": 0 },
        })
    };
    let corpus = vec![
        serde_json::json!({
            "grants": { "read": null, "insert": ["a"], "update": [], "delete": [], "schema": true,
                "engine": false },
            "explicit": true, "fates": ["ok", "error"],
            "steps": [{ "action": { "describe": "SELECT 1" }, "base": 0 }, statement("INSERT INTO a VALUES (?, ?)")],
        }),
        serde_json::json!({
            "grants": null, "explicit": false, "fates": [],
            "steps": [{ "action": "autocommit", "base": 0, "continues": true }, statement("COMMIT")],
        }),
    ];
    let mut fuzz = Fuzz::new(4);
    let (mut jobs, mut refused) = (0, 0);
    for _ in 0..cases(2000) {
        let mut program = request(&mut fuzz, &corpus).to_string().into_bytes();
        if fuzz.below(4) == 0 {
            program = fuzz.bytes(&[program]);
        }
        match forward::prepare(&program) {
            Ok(_) => jobs += 1,
            Err(answer) => {
                refused += 1;
                let answer: Value = serde_json::from_slice(&answer).unwrap();
                assert!(answer["error"]["message"].as_str().is_some_and(|text| !text.is_empty()));
            }
        }
    }
    assert!(jobs > 10 && refused > 10, "{jobs} became jobs, {refused} were refused");
}
