//! A user's scenarios: those that the project shows hold and fail as they say, a violation is reported with
//! what led to it, and every mistake in a scenario is told before anything is run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn simulate(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_littoral-sim-under-test");
    Command::new(program).args(arguments).current_dir(root()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn summary(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(output)))
}

const OVERSOLD: &str = "sim/scenarios/stock-oversold.toml";
const AT_ORIGIN: &str = "sim/scenarios/stock-at-origin.toml";

#[test]
fn a_stock_that_everybody_writes_oversells() {
    let output = simulate(&["run", OVERSOLD, "--seeds", "20"]);
    let told = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{told}{}", stderr(&output));
    for part in [
        "invariant \"never oversold\" violated on ",
        "sku  quantity",
        "what led there:",
        "fra  setup",
        "inserted quantity = ",
        "shoppers/buy(sku = ",
        "had not seen ",
        "replay: littoral-sim replay ",
        "\"never oversold\" is violated by ",
    ] {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }
    assert_eq!(told.matches("what led there:").count(), 1, "{told}");
}

#[test]
// Seed 86: an acknowledgement that a relay had from elsewhere was taken for one its peer knew.
fn a_stock_that_the_origin_writes_does_not() {
    let output = simulate(&["run", AT_ORIGIN, "--seeds", "90", "--json"]);
    let summary = summary(&output);
    assert_eq!(output.status.code(), Some(0), "{summary}");
    assert_eq!((&summary["seeds"], &summary["passed"]), (&Value::from(90), &Value::from(90)));
    assert!(summary["calls"][0]["done"].as_u64().unwrap() > 1000, "{summary}");
}

#[test]
fn a_stock_that_is_read_at_the_origin_takes_calls_from_everywhere() {
    let scenario = "sim/scenarios/stock-origin-strong.toml";
    let output = simulate(&["run", scenario, "--seeds", "60", "--json"]);
    let summary = summary(&output);
    assert_eq!(output.status.code(), Some(0), "{summary}");
    for block in [0, 1] {
        let calls = &summary["calls"][block];
        let count = |name: &str| calls[name].as_u64().unwrap();
        assert!(count("forwarded") > 100 && count("done") > count("forwarded"), "{calls}");
    }
}

#[test]
fn a_violation_is_replayed_by_the_command_that_it_names() {
    let output = simulate(&["run", OVERSOLD, "--seeds", "20", "--json", "--fail-fast"]);
    let failed = summary(&output)["failures"][0].clone();
    let command = failed["replay"].as_str().unwrap();
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    let replayed = simulate(&words);
    assert_eq!(replayed.status.code(), Some(1));
    let told = stdout(&replayed);
    assert!(told.contains(failed["what"].as_str().unwrap()), "{told}");
    for line in failed["violation"]["report"].as_array().unwrap() {
        assert!(told.contains(line.as_str().unwrap()), "{line}\n{told}");
    }
    let trace = stderr(&replayed);
    assert!(trace.contains("  fra  ") && trace.contains("UPDATE stock"), "{trace}");
}

#[test]
fn a_seed_of_a_scenario_is_the_same_run_in_every_process() {
    let hash = |extra: &[&str]| {
        let output = simulate(&[&["run", AT_ORIGIN, "--seeds", "6", "--json"], extra].concat());
        summary(&output)["hash"].as_str().unwrap().to_owned()
    };
    let one = hash(&[]);
    assert!(!one.is_empty());
    assert_eq!(one, hash(&["--twice"]));
    assert_eq!(one, hash(&["--jobs", "2"]));
    assert_ne!(one, hash(&["--first-seed", "2"]));
}

#[test]
fn an_engine_fault_is_told_from_a_violation() {
    let output = simulate(&["run", OVERSOLD, "--seeds", "10", "--plant", "CounterAbsolute"]);
    let told = stdout(&output);
    assert_eq!(output.status.code(), Some(2), "{told}{}", stderr(&output));
    assert!(told.contains("ENGINE FAULT: broken promise"), "{told}");
    assert!(told.contains("--plant CounterAbsolute"), "{told}");
}

// --- Scenarios of the tests' own

const SCENARIO: &str = "schema = \"schema.sql\"
policies = \"policies.toml\"
setup = \"setup.sql\"

[world]
nodes = [\"hub\", \"edge\"]
time = \"5s\"

[workload.people]
file = \"people.sql\"
clients = 2

[faults]
random = \"none\"
always = [{ at = \"1s\", for = \"2s\", partition = [[\"edge\"], [\"rest\"]] }]

[[invariant]]
name = \"few\"
sql = \"SELECT id, n FROM t WHERE n > 1000\"
";

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(TempDir::new().unwrap());
        files.write("scenario.toml", SCENARIO);
        files.write("schema.sql", "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);\n");
        files.write("policies.toml", "[tables.t]\nwriters = \"any\"\nkey = \"explicit\"\n");
        files.write("setup.sql", "INSERT INTO t VALUES (1, 0);\n");
        files.write(
            "people.sql",
            "-- name: add\n-- args: n = int(1..9)\nUPDATE t SET n = n + :n WHERE id = 1;\n",
        );
        files
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.0.path().join(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from}");
        self.write(name, &text.replacen(from, to, 1));
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let file = self.0.path().join("scenario.toml");
        simulate(&[&["run", file.to_str().unwrap()], arguments].concat())
    }
}

#[test]
fn the_scenario_that_the_mistakes_are_made_in_is_good() {
    let output = Files::new().run(&["--seeds", "3"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn every_mistake_is_told_with_its_place_and_a_way_out() {
    // File, what is replaced, by what, and what is told.
    let cases: &[(&str, &str, &str, &[&str])] = &[
        ("scenario.toml", "[world]", "[world", &["scenario.toml:", "TOML parse error"]),
        ("scenario.toml", "[world]", "[wrold]", &["unknown field `wrold`", "mean \"world\"?"]),
        ("scenario.toml", "time =", "tiem =", &["unknown field `tiem`", "mean \"time\"?"]),
        ("scenario.toml", "schema = \"schema.sql\"\n", "", &["missing field `schema`"]),
        ("scenario.toml", "schema.sql", "shcema.sql", &["schema: cannot read", "shcema.sql"]),
        ("scenario.toml", "\"hub\", \"edge\"", "\"hub\"", &["world.nodes", "expected 2 to 16"]),
        ("scenario.toml", "\"hub\", \"edge\"", "\"hub\", \"hub\"", &["\"hub\" stands there twice"]),
        ("scenario.toml", "\"hub\", \"edge\"", "\"hub\", \"Edge 1\"", &["lowercase"]),
        ("scenario.toml", "\"hub\", \"edge\"", "\"hub\", \"any\"", &["none of the words"]),
        ("scenario.toml", "\"5s\"", "\"5\"", &["world.time", "\"250ms\""]),
        ("scenario.toml", "\"5s\"", "\"90m\"", &["world.time: expected 1s to 60m"]),
        ("scenario.toml", "\"5s\"", "5", &["invalid type", "expected a string"]),
        ("scenario.toml", "time", "topology = \"strar\"\ntime", &["\"strar\"", "mean \"star\"?"]),
        (
            "scenario.toml",
            "time",
            "synchronous = \"off\"\ntime",
            &["world.synchronous", "\"normal\""],
        ),
        ("scenario.toml", "time", "latency = \"9s..1s\"\ntime", &["world.latency", "20ms..80ms"]),
        ("scenario.toml", "clients = 2", "clients = 0", &["workload.people.clients", "1 to 200"]),
        (
            "scenario.toml",
            "clients = 2",
            "at = \"egdes\"",
            &["no node \"egdes\"", "mean \"edges\"?"],
        ),
        ("scenario.toml", "clients = 2", "think = \"soon\"", &["workload.people.think"]),
        ("scenario.toml", "random = \"none\"", "random = [\"partiton\"]", &["mean \"partition\"?"]),
        ("scenario.toml", "[\"rest\"]", "[\"hbu\"]", &["no node \"hbu\"", "mean \"hub\"?"]),
        ("scenario.toml", "[\"rest\"]", "[\"edge\"]", &["\"edge\" stands there twice"]),
        ("scenario.toml", ", [\"rest\"]", "", &["expected two groups"]),
        ("scenario.toml", "at = \"1s\"", "at = \"6s\"", &["not within world.time"]),
        ("scenario.toml", ", partition", ", kill = \"hub\", partition", &["expected one of"]),
        (
            "scenario.toml",
            "partition = [[\"edge\"], [\"rest\"]]",
            "cut = [\"hub\", \"edge\"]",
            &["[[link]]"],
        ),
        (
            "scenario.toml",
            "[workload.people]",
            "[[link]]\nbetween = [\"hub\"]\n[workload.people]",
            &["link.between"],
        ),
        ("scenario.toml", "file = \"people.sql\"", "file = \"nobody.sql\"", &["nobody.sql"]),
        ("scenario.toml", "[[invariant]]", "[[invariants]]", &["mean \"invariant\"?"]),
        (
            "scenario.toml",
            "name = \"few\"",
            "name = \"few\"\nwhen = \"finally\"",
            &["mean \"final\"?"],
        ),
        ("scenario.toml", "name = \"few\"", "name = \"few\"\non = \"egde\"", &["mean \"edge\"?"]),
        ("scenario.toml", "FROM t WHERE", "FROM tt WHERE", &["no such table: tt", "the tables t"]),
        (
            "scenario.toml",
            "SELECT id, n FROM t WHERE n > 1000",
            "DELETE FROM t",
            &["invariant \"few\""],
        ),
        ("scenario.toml", "n > 1000", "n > :n", &["has a parameter"]),
        ("scenario.toml", "n > 1000", "n > 1000; SELECT 1", &["expected one SELECT"]),
        ("schema.sql", "PRIMARY KEY", "PRIMARY KYE", &["schema.sql", "syntax error"]),
        ("schema.sql", "NOT NULL", "NOT NULL UNIQUE", &["schema.sql", "UNIQUE"]),
        (
            "policies.toml",
            "\"any\"",
            "\"all\"",
            &["policies.toml", "tables.t.writers", "any, origin"],
        ),
        ("policies.toml", "writers", "writer", &["policies.toml", "mean \"writers\"?"]),
        ("policies.toml", "tables.t", "tables.tt", &["\"tt\""]),
        ("setup.sql", "VALUES (1, 0)", "VALUES (1, NULL)", &["setup.sql:1", "NOT NULL"]),
        ("people.sql", "-- name: add", "-- nmae: add", &["people.sql"]),
        ("people.sql", "int(1..9)", "int(9..1)", &["people.sql:2", "empty", "zipf"]),
        ("people.sql", "+ :n", "+ :m", &["people.sql:3", "no argument :m", "mean \"n\"?"]),
        (
            "people.sql",
            "UPDATE t",
            "UPDATE tt",
            &["people.sql:3", "no such table: tt", "the tables t"],
        ),
        ("people.sql", "WHERE id = 1;", "; COMMIT;", &["people.sql:3", "COMMIT"]),
    ];
    for (file, from, to, told) in cases {
        let files = Files::new();
        files.edit(file, from, to);
        let output = files.run(&["--seeds", "1"]);
        let error = stderr(&output);
        let what = format!("{file}: {from} → {to}:\n{error}{}", stdout(&output));
        assert_eq!(output.status.code(), Some(64), "{what}");
        assert!(error.starts_with("error: "), "{what}");
        for part in *told {
            assert!(error.contains(part), "{part} is missing: {what}");
        }
    }
}

#[test]
fn clients_that_never_reach_the_origin_show_nothing() {
    let files = Files::new();
    files.write("policies.toml", "[tables.t]\nwriters = \"origin\"\n");
    files.edit("scenario.toml", "clients = 2", "clients = 2\nat = \"edges\"");
    let reached = files.run(&["--seeds", "3"]);
    assert_eq!(reached.status.code(), Some(0), "{}", stdout(&reached));
    assert!(stdout(&reached).contains("of them sent to the origin"), "{}", stdout(&reached));
    files.edit("scenario.toml", "at = \"1s\", for = \"2s\"", "at = \"1ms\", for = \"60s\"");
    let output = files.run(&["--seeds", "3"]);
    let told = stdout(&output);
    assert_eq!(output.status.code(), Some(5), "{told}");
    assert!(told.contains("did not reach the origin"), "{told}");
    assert!(told.contains("no call of people/add was ever done"), "{told}");
}

#[test]
fn a_constraint_that_refuses_a_call_is_an_ordinary_outcome() {
    let files = Files::new();
    files.edit("schema.sql", "n INTEGER NOT NULL", "n INTEGER NOT NULL CHECK (n < 20)");
    files.write("policies.toml", "");
    files.edit("scenario.toml", "clients = 2", "at = \"origin\"");
    let output = files.run(&["--seeds", "3", "--json"]);
    let summary = summary(&output);
    assert_eq!(output.status.code(), Some(0), "{summary}");
    assert!(summary["calls"][0]["constraint"].as_u64().unwrap() > 0, "{summary}");
}

#[test]
fn calls_that_a_constraint_refuses_each_time_show_nothing() {
    let files = Files::new();
    files.edit("schema.sql", "n INTEGER NOT NULL", "n INTEGER NOT NULL CHECK (n < 1)");
    files.write("policies.toml", "");
    files.edit("scenario.toml", "clients = 2", "at = \"origin\"");
    let output = files.run(&["--seeds", "3"]);
    let told = stdout(&output);
    assert_eq!(output.status.code(), Some(5), "{told}");
    assert!(told.contains("people/add: 0 done, "), "{told}");
    assert!(told.contains("no call of people/add was ever done"), "{told}");
}

#[test]
fn the_configuration_of_a_node_serves_as_policies() {
    let files = Files::new();
    files.write(
        "policies.toml",
        "[node]\nname = \"hub\"\nanything = 1\n[tables.t]\nwriters = \"any\"\nkey = \"explicit\"\n",
    );
    let output = files.run(&["--seeds", "1"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn tables_that_stay_on_their_node_may_differ() {
    let files = Files::new();
    files.write(
        "schema.sql",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
         CREATE TABLE draft (id INTEGER PRIMARY KEY AUTOINCREMENT, node TEXT, n INTEGER);",
    );
    files.write(
        "policies.toml",
        "[tables.t]\nwriters = \"any\"\nkey = \"explicit\"\n[tables.draft]\npolicy = \"local\"\n",
    );
    files.write(
        "people.sql",
        "-- name: jot\n-- args: node = node(), n = int(1..9)
INSERT INTO draft (node, n) VALUES (:node, :n);
UPDATE t SET n = n + :n WHERE id = 1;",
    );
    let output = files.run(&["--seeds", "5"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn invariants_are_looked_at_when_and_where_they_say() {
    for (more, node, moment) in [
        ("", None, "while clients write"),
        ("when = \"final\"", Some("hub"), "after everything has settled"),
        ("when = \"converged\"\non = \"edge\"", Some("edge"), "all nodes having the same entries"),
        ("on = \"origin\"", Some("hub"), "while clients write"),
    ] {
        let files = Files::new();
        files.edit("scenario.toml", "n > 1000", "n > 0");
        files.edit("scenario.toml", "name = \"few\"", &format!("name = \"few\"\n{more}"));
        let output = files.run(&["--seed", "1"]);
        let told = stdout(&output);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(moment), "{more}: {told}");
        assert!(node.is_none_or(|node| told.contains(&format!("on {node} at"))), "{more}: {told}");
    }
}

#[test]
fn a_scenario_says_itself_how_many_nodes_there_are() {
    let output = simulate(&["run", OVERSOLD, "--nodes", "3"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("[world]"), "{}", stderr(&output));
    let output = simulate(&["run", "no-such-file.toml"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("no-such-file.toml: cannot be read"), "{}", stderr(&output));
}
