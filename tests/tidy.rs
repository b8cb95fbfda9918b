//! What holds of the source as a whole: who may name what, and documents that keep up with the code.

use std::{
    fs,
    path::{Path, PathBuf},
};

const CRATES: [&str; 5] = ["engine", "node", "sim", "tests", "benches"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files below some places of the project, as their path in it and their text.
fn files(places: &[&str], endings: &[&str]) -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = places.iter().map(|place| root.join(place)).collect();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            continue;
        }
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
        if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort();
    assert!(!found.is_empty(), "nothing in {places:?}");
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The lines of the block that begins with a line that ends so, up to its closing brace.
fn block<'s>(source: &'s str, head: &str) -> Vec<&'s str> {
    let mut lines = source.lines().skip_while(|line| !line.ends_with(head)).skip(1).peekable();
    assert!(lines.peek().is_some(), "there is no {head}");
    lines.map_while(|line| (line != "}").then(|| line.trim())).collect()
}

/// The names of an enum's variants, in their order.
fn variants(source: &str, head: &str) -> Vec<String> {
    block(source, head)
        .into_iter()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()))
        .map(|line| line.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_source_file_begins_by_saying_what_it_is() {
    for (name, text) in files(&CRATES, &[".rs"]) {
        assert!(text.starts_with("//! "), "{name} has no module documentation at its top");
    }
}

#[test]
fn sqlite_is_named_only_where_it_is_the_business() {
    // Everything else takes values and returns values.
    let allowed = [
        "engine/src/capture/",
        "engine/src/contested/",
        "engine/src/db/",
        "engine/src/error.rs",
        "engine/src/genesis.rs",
        "engine/src/grants.rs",
        "engine/src/ids.rs",
        "engine/src/log/",
        "engine/src/merge/",
        "engine/src/open.rs",
        "engine/src/replica/frontier.rs",
        "engine/src/replica/holds.rs",
        "engine/src/replica/links.rs",
        "engine/src/replica/mod.rs",
        "engine/src/replica/storage.rs",
        "engine/src/replica/answering.rs",
        "engine/src/replica/verifying.rs",
        "engine/src/schema/",
        "engine/src/sqlite/",
    ];
    let naming: Vec<String> = files(&["engine/src"], &[".rs"])
        .into_iter()
        .filter(|(_, text)| text.contains("rusqlite"))
        .map(|(name, _)| name)
        .collect();
    for name in &naming {
        assert!(allowed.iter().any(|place| name.starts_with(place)), "{name} names rusqlite");
    }
    for place in allowed {
        assert!(naming.iter().any(|name| name.starts_with(place)), "{place} does not need to");
    }
}

#[test]
fn the_engine_reads_no_clock_and_starts_no_thread() {
    let banned = ["std::time::Instant", "SystemTime", "Instant::now", "thread::spawn", "std::net"];
    for (name, text) in files(&["engine/src"], &[".rs"]) {
        for word in banned {
            assert!(!text.contains(word), "{name} mentions {word}");
        }
        let mut imports = text.split("use std::").skip(1).filter_map(|rest| rest.split(';').next());
        let imported = imports.any(|import| import.contains("Instant"));
        assert!(!imported, "{name} imports the clock of the standard library");
    }
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    let homes = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
    ];
    let endings = [".rs", ".toml", ".md", ".sql", ".hex", "run"];
    let mut places = CRATES.to_vec();
    places.extend([".cargo", ".ci", "docs", "Cargo.toml", "README.md", "CHANGELOG.md"]);
    places.extend(["CONTRIBUTING.md", "SECURITY.md"]);
    for (name, text) in files(&places, &endings) {
        for home in homes {
            assert!(!text.contains(home), "{name} mentions {home}");
        }
    }
}

#[test]
fn every_setting_of_a_table_is_told_wherever_they_are_listed() {
    let source = read("engine/src/schema/declaring.rs");
    let (_, arms) = source.split_once("match key.as_str() {").unwrap();
    let arms = arms.lines().filter(|line| line.contains("=>"));
    let arms = arms.filter_map(|line| line.strip_prefix("                \""));
    let mut keys: Vec<&str> = arms.filter_map(|arm| Some(arm.split_once('"')?.0)).collect();
    keys.dedup();
    assert!(keys.len() >= 6 && keys.contains(&"on_stale"), "{keys:?}");
    let schema = read("docs/schema.md");
    let listed = schema.lines().find(|line| line.contains("the third, a JSON object, holds"));
    let config = read("node/src/config/tables.rs");
    let raw = block(&config, "pub(super) struct RawTable {");
    let init = read("node/src/cli/init.rs");
    let words = init.lines().find(|line| line.contains("const TABLE_KEYS")).unwrap();
    for key in keys {
        assert!(listed.unwrap().contains(&format!("`{key}`")), "{key} in docs/schema.md");
        let field = format!("{key}: ");
        assert!(raw.iter().any(|line| line.starts_with(&field)), "{key} in [tables.NAME]");
        // Of columns, each is its own word there.
        assert!(key == "columns" || words.contains(key), "{key} in --table");
    }
}

#[test]
fn every_metric_and_every_part_of_the_status_is_documented() {
    let document = read("docs/http-api.md");
    let metrics = read("node/src/http/metrics.rs") + &read("node/src/http/meters.rs");
    for part in metrics.split("\"littoral_").skip(1) {
        let name: String =
            part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
        assert!(document.contains(&format!("`littoral_{name}`")), "littoral_{name}");
    }
    let status = read("node/src/http/status.rs");
    for line in status.lines() {
        // The keys of the answer itself; what is within them is told in their rows.
        let key = line.strip_prefix("        \"").and_then(|rest| rest.split_once("\":"));
        if let Some((key, _)) = key {
            assert!(document.contains(&format!("`{key}`")), "{key} of /status");
        }
    }
}

#[test]
fn every_bug_that_the_engine_knows_can_be_planted() {
    let declared = variants(&read("engine/src/testing.rs"), "pub enum Bug {");
    let mut planted = vec!["None".to_owned()];
    planted.extend(littoral::testing::Bug::ALL.map(|bug| format!("{bug:?}")));
    assert_eq!(declared, planted);
}

#[test]
fn the_protocol_document_lists_every_message() {
    let document = read("docs/protocol.md");
    let messages = variants(&read("engine/src/protocol/message.rs"), "pub(crate) enum Message {");
    assert!(messages.len() >= 5, "{messages:?}");
    for (number, message) in messages.iter().enumerate() {
        let row = format!("| {number} | `{message}` |");
        assert!(document.contains(&row), "docs/protocol.md lacks {row}");
    }
    let hello = block(&read("engine/src/protocol/message.rs"), "pub(crate) struct Hello {")
        .into_iter()
        .filter_map(|line| line.strip_prefix("pub(crate) ")?.split_once(':'))
        .map(|(field, _)| field.to_owned())
        .collect::<Vec<_>>();
    assert!(hello.len() >= 5, "{hello:?}");
    for field in hello {
        assert!(document.contains(&format!("| `{field}` |")), "docs/protocol.md lacks {field}");
    }
}

#[test]
fn the_protocol_document_lists_every_close_code() {
    let document = read("docs/protocol.md");
    let driver = read("engine/src/driver.rs");
    let codes: Vec<(&str, &str)> = block(&driver, "pub enum CloseCode {")
        .into_iter()
        .filter_map(|line| line.strip_suffix(',')?.split_once(" = "))
        .collect();
    assert!(codes.len() >= 5, "{codes:?}");
    for (name, number) in codes {
        let row = format!("| {number} | `{name}` |");
        assert!(document.contains(&row), "docs/protocol.md lacks {row}");
    }
}

#[test]
fn the_format_document_lists_every_field() {
    let document = read("docs/format.md");
    let codec = read("engine/src/entry/codec.rs");
    let tags: Vec<(&str, &str)> = codec
        .lines()
        .filter_map(|line| line.strip_prefix("const TAG_")?.strip_suffix(';'))
        .filter_map(|line| line.split_once(": u64 = "))
        .collect();
    assert!(tags.len() >= 5, "{tags:?}");
    for (name, number) in tags {
        let row = format!("| {number} | ");
        let words = name.to_lowercase();
        let listed = document
            .lines()
            .any(|line| line.starts_with(&row) && line.to_lowercase().contains(&words));
        assert!(listed, "docs/format.md lacks TAG_{name} = {number}");
    }
}
