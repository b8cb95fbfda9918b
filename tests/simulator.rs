//! The simulator as a user runs it: what it says of a seed, it says again in another process.
//!
//! That it finds the bugs it is meant to find takes minutes: `littoral-sim selftest` does that.

use std::process::{Command, Output};

use littoral::testing::Bug;
use serde_json::Value;

fn simulate(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_littoral-sim-under-test");
    Command::new(program).args(arguments).output().unwrap()
}

fn told(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

fn run(seed: &str) -> Value {
    let output = simulate(&["run", "--json", "--seed", seed, "--nodes", "4", "--time", "4"]);
    let summary = told(&output);
    assert!(
        output.status.success(),
        "littoral-sim run --seed {seed} --nodes 4 --time 4: {summary}"
    );
    assert_eq!((&summary["seeds"], &summary["passed"]), (&Value::from(1), &Value::from(1)));
    summary
}

#[test]
fn a_seed_is_the_same_run_in_every_process() {
    let hash = |seed: &str| run(seed)["hash"].as_str().unwrap().to_owned();
    let hashes = ["1", "2", "3"].map(hash);
    assert_eq!(hashes, ["1", "2", "3"].map(hash));
    assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2] && !hashes[0].is_empty());
}

#[test]
fn output_that_nobody_reads_ends_the_command_quietly() {
    let seed = ["--nodes", "3", "--time", "1"];
    for words in [&["run", "--seed", "1"][..], &["run", "--json", "--seed", "1"], &["replay", "1"]]
    {
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-sim-under-test"));
        command.args(words).args(seed).stdout(closed);
        let output = command.output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(141), "{words:?}: {told}");
        assert!(!told.contains("error") && !told.contains("panicked"), "{words:?}: {told}");
    }
    // A trace that nobody reads keeps nobody from hearing what the run came to.
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_littoral-sim-under-test"));
    command.args(["run", "--json", "--trace", "--seed", "1"]).args(seed).stderr(closed);
    let output = command.output().unwrap();
    assert_eq!(told(&output)["passed"], 1);
}

#[test]
fn a_run_does_something() {
    let summary = run("1");
    for figure in ["events", "jobs_done", "connections"] {
        assert!(summary[figure].as_u64().unwrap() > 0, "{figure}: {summary}");
    }
}

#[test]
fn every_bug_that_can_be_planted_is_hunted() {
    // No time for any of them: so none is found, but each is named.
    let output = simulate(&["selftest", "--json", "--budget", "0", "--nodes", "2", "--time", "1"]);
    let hunts = told(&output);
    let named: Vec<&str> =
        hunts.as_array().unwrap().iter().map(|hunt| hunt["bug"].as_str().unwrap()).collect();
    assert_eq!(named, Bug::ALL.map(|bug| format!("{bug:?}")));
}

#[test]
fn a_bug_that_is_missed_fails_the_selftest() {
    let one = ["--bug", "CounterAbsolute", "--nodes", "2", "--time", "1", "--budget", "0"];
    let output = simulate(&[&["selftest", "--json"][..], &one].concat());
    let hunts = told(&output);
    let found = hunts[0]["found"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if found { 0 } else { 1 }), "{hunts}");
    let output = simulate(&["selftest", "--bug", "NoSuchBug"]);
    assert_eq!(output.status.code(), Some(64));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(Bug::ALL.iter().all(|bug| told.contains(&format!("{bug:?}"))), "{told}");
}
