//! Configurations, damaged: each is read, or refused with words that say what is wrong where.

use std::path::Path;

use littoral::testing::fuzz::{Fuzz, cases, within_memory};

use super::*;

const POLICIES: [&str; 3] = [
    include_str!("../../../sim/scenarios/shop/anybody-writes.toml"),
    include_str!("../../../sim/scenarios/shop/origin-writes.toml"),
    include_str!("../../../sim/scenarios/shop/origin-strong.toml"),
];

const WORDS: [&str; 30] = [
    "node",
    "links",
    "tls",
    "http",
    "storage",
    "genesis",
    "tables",
    "[",
    "]",
    "[[",
    "{",
    "}",
    "=",
    ".",
    "\"",
    "'''",
    "\n",
    "#",
    "-",
    "true",
    "0x",
    "inf",
    "1979-05-27",
    "\"any\"",
    "\"eventual\"",
    "\\u",
    "\0",
    "é",
    "\u{202e}",
    "..",
];

/// All that a test reserves, whatever numbers are given.
const MEMORY_MAX: u64 = 1 << 30;

/// Every setting there is, at an origin; an edge says less.
const ORIGIN: &str = r#"
[node]
name = "origin"
cluster = "000102030405060708090a0b0c0d0e0f"
incarnation = "ffffffffffffffffffffffffffffffff"
data = "data.sqlite"
read_only = false

[links]
listen = "127.0.0.1:0"
dial = [{ node = "edge1", address = "localhost:4400" }, { node = "edge2", address = "[::1]:1" }]

[tls]
ca = "ca.pem"
certificate = "node.pem"
key = "node.key"
revoked = "revoked.pem"

[http]
listen = "127.0.0.1:8080"
allow_unauthenticated = false
max_body_bytes = 33554432
ready_max_lag_ms = 60000
bookmark_key = "bookmarks.key"

[http.auth]
keys = ["tokens.pem"]
issuer = "shop"
audience = "littoral"
leeway_s = 30

[http.tls]
certificate = "server.pem"
key = "server.key"

[http.limits]
connections = 1024
requests_per_second = 10000
requests_per_second_per_client = 100

[storage]
synchronous = "full"
readers = 8
max_entry = 1073741824

[genesis]
schema = "schema.sql"
members = [
  { node = "origin", incarnation = "ffffffffffffffffffffffffffffffff" },
  { node = "edge1", incarnation = "00000000000000000000000000000001" },
]

[tables.stock]
policy = "eventual"
writers = "any"
key = "explicit"
max_lag_ms = 5000
on_stale = "fail"
columns.quantity = "counter"
columns.street = "group=address"

[tables.orders]
policy = "origin-strong"
"#;

fn examples() -> Vec<String> {
    let edge = ORIGIN.split("[genesis]").next().unwrap();
    let few = edge.split("[http]").next().unwrap();
    [ORIGIN, edge, few].map(|text| text.to_owned()).to_vec()
}

fn assert_told(case: usize, error: &ConfigError) {
    let told = error.to_string();
    assert!(!told.trim().is_empty() && told.len() < 20_000, "case {case}: {} bytes", told.len());
    if let ConfigError::Value { key, expected, .. } = error {
        assert!(!key.is_empty() && !expected.is_empty(), "case {case}: {told}");
    }
}

#[test]
fn a_damaged_configuration_is_read_or_refused_with_a_reason() {
    let test =
        concat!(module_path!(), "::a_damaged_configuration_is_read_or_refused_with_a_reason");
    within_memory(test, MEMORY_MAX, check_configurations);
}

fn check_configurations() {
    let corpus = examples();
    let bytes: Vec<Vec<u8>> = corpus.iter().map(|text| text.clone().into_bytes()).collect();
    let directory = tempfile::TempDir::new().unwrap();
    let schema = "CREATE TABLE stock (id INTEGER PRIMARY KEY, quantity INTEGER, street);
                  CREATE TABLE orders (id INTEGER PRIMARY KEY);";
    fs::write(directory.path().join("schema.sql"), schema).unwrap();
    let path = Path::new("littoral.toml");
    for example in &corpus {
        Config::parse(example, path, directory.path()).unwrap();
    }
    let mut fuzz = Fuzz::new(7);
    let mut read = 0;
    for case in 0..cases(4000) {
        let text = match fuzz.below(4) {
            0 => String::from_utf8_lossy(&fuzz.bytes(&bytes)).into_owned(),
            _ => fuzz.text(&corpus, &WORDS),
        };
        match Config::parse(&text, path, directory.path()) {
            Ok(_) => read += 1,
            Err(error) => assert_told(case, &error),
        }
    }
    assert!(read > 0);
}

#[test]
fn damaged_policies_are_read_or_refused_with_a_reason() {
    let corpus = POLICIES.map(str::to_owned);
    let mut fuzz = Fuzz::new(8);
    let (mut read, mut refused) = (0, 0);
    for case in 0..cases(4000) {
        match parse_policies(&fuzz.text(&corpus, &WORDS), Path::new("policies.toml")) {
            Ok(_) => read += 1,
            Err(error) => {
                refused += 1;
                assert_told(case, &error);
            }
        }
    }
    assert!(read > 10 && refused > 10, "{read} were read, {refused} refused");
}
