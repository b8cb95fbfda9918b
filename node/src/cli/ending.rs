//! How a command ends: its exit code, and what stderr is told, for people or, with `--json`, for scripts.
//!
//! There are four codes, and each means the same for every command; `--help` and docs/operating.md list
//! them.

use std::{
    fmt,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::CommandFactory as _;
use serde_json::{Value, json};

use super::{Cli, ReaderGone, hint};

/// It failed, or nobody read its output to the end.
const FAILED: u8 = 1;
/// The command line is wrong; clap's own code for it.
const USAGE: u8 = 2;
/// The command did its work, and what it found is not in order.
const NOT_IN_ORDER: u8 = 3;

/// What the commands that have [`NOT_IN_ORDER`] mean by it.
pub(super) const FINDINGS: &[(&str, &str)] = &[
    ("check-config", "the configuration can be read, and `serve` would refuse it"),
    ("schema status", "a change of the schema waits"),
    ("sql", "a change of the schema is accepted, and waits until every node knows of it"),
    ("status", "the node is not ready, or works in part only (`degraded`)"),
    ("verify", "rows still differ, or some could not be decided"),
];

/// The commands, with their exit codes in the help of each.
pub(super) fn commands() -> clap::Command {
    with_exit_codes(Cli::command(), None)
}

fn with_exit_codes(command: clap::Command, group: Option<&str>) -> clap::Command {
    let name = command.get_name().to_owned();
    let path = match group {
        None => String::new(),
        Some("") => name,
        Some(group) => format!("{group} {name}"),
    };
    let mut help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    help += "\n\nExit codes:\n  0  done\n  1  it failed; stderr says why\n  2  the command line is wrong";
    if let Some((_, finding)) = FINDINGS.iter().find(|(of, _)| *of == path) {
        help += &format!("\n  3  {finding}");
    }
    command.mut_subcommands(|one| with_exit_codes(one, Some(&path))).after_help(help)
}

/// What a command found is not in order, though it did its work.
#[derive(Debug)]
pub(super) struct NotInOrder {
    /// `None` if its output has said all.
    told: Option<Told>,
}

#[derive(Debug)]
struct Told {
    word: &'static str,
    what: String,
    hint: Option<String>,
}

impl NotInOrder {
    /// The command's output says what.
    pub(super) fn shown() -> anyhow::Error {
        anyhow::Error::new(Self { told: None })
    }

    /// It is an error in what was looked at.
    pub(super) fn found(error: &anyhow::Error) -> anyhow::Error {
        Self::told("error", error)
    }

    /// It is nothing wrong, and not finished either.
    pub(super) fn noted(error: &anyhow::Error) -> anyhow::Error {
        Self::told("note", error)
    }

    fn told(word: &'static str, error: &anyhow::Error) -> anyhow::Error {
        let told = Told { word, what: format!("{error:#}"), hint: hint(error) };
        anyhow::Error::new(Self { told: Some(told) })
    }
}

impl fmt::Display for NotInOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.told.as_ref().map_or("not all is in order", |told| &told.what))
    }
}

impl std::error::Error for NotInOrder {}

/// Whether the arguments of this process ask for JSON, also if they are wrong.
fn wants_json() -> bool {
    std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json")
}

/// Ends a process whose arguments are wrong, or which was asked for help.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // A reader who has seen enough of the help, as `head` has, is no failure.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if wants_json() {
        let text = error.to_string();
        let text = text.trim();
        let text = text.strip_prefix("error: ").unwrap_or(text).to_owned();
        let told = Told { word: "error", what: text, hint: None };
        // If stderr is gone there is nobody left to tell.
        let _ = say_on_stderr(&told, true, Some(USAGE));
    } else {
        let _ = error.print();
    }
    ExitCode::from(USAGE)
}

/// Tells why a command has not just succeeded; gives its exit code.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<ReaderGone>() {
        return ExitCode::from(FAILED);
    }
    let (code, told) = match error.downcast_ref::<NotInOrder>() {
        Some(NotInOrder { told: None }) => return ExitCode::from(NOT_IN_ORDER),
        Some(NotInOrder { told: Some(Told { word, what, hint }) }) => {
            (NOT_IN_ORDER, Told { word, what: what.clone(), hint: hint.clone() })
        }
        None => (FAILED, Told { word: "error", what: format!("{error:#}"), hint: hint(error) }),
    };
    // If stderr is gone there is nobody left to tell.
    let _ = say_on_stderr(&told, wants_json(), Some(code));
    ExitCode::from(code)
}

/// Says on stderr what may go wrong, and goes on.
pub(super) fn warn(what: impl fmt::Display, hint: impl fmt::Display) {
    let told = Told { word: "warning", what: what.to_string(), hint: Some(hint.to_string()) };
    // If stderr is gone there is nobody left to tell.
    let _ = say_on_stderr(&told, wants_json(), None);
}

fn say_on_stderr(told: &Told, as_json: bool, code: Option<u8>) -> io::Result<()> {
    let Told { word, what, hint } = told;
    let mut stderr = io::stderr().lock();
    if as_json {
        let mut line = json!({ (*word): what });
        if let Some(hint) = hint {
            line["hint"] = Value::from(hint.as_str());
        }
        if let Some(code) = code {
            line["exit_code"] = code.into();
        }
        return writeln!(stderr, "{line}");
    }
    writeln!(stderr, "{word}: {what}")?;
    match hint {
        Some(hint) => writeln!(stderr, "hint: {hint}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs};

    use super::*;

    /// Every command and group of commands, by its words.
    fn all(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        for one in command.get_subcommands() {
            let path = format!("{path} {}", one.get_name()).trim().to_owned();
            all(one, &path, found);
            found.push((path, one.clone()));
        }
    }

    fn found() -> Vec<(String, clap::Command)> {
        let mut found = Vec::new();
        all(&commands(), "", &mut found);
        assert!(found.len() > 20, "{found:?}");
        found
    }

    /// The lines of the examples in a help, each whole.
    fn examples(help: &str) -> Vec<String> {
        let lines = help.lines().skip_while(|line| !line.starts_with("Example"));
        let lines = lines.skip(1).take_while(|line| line.starts_with("  "));
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        text.replace("\\\n", " ").lines().map(|line| line.trim().to_owned()).collect()
    }

    /// The words of a line of shell, without variables and what redirects.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
        for c in line.chars() {
            match (c, quote) {
                (c, Some(end)) if c == end => quote = None,
                ('"' | '\'', None) => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (' ', None) => words.extend(word.take()),
                (c, _) => word.get_or_insert_default().push(c),
            }
        }
        assert_eq!(quote, None, "{line}");
        words.extend(word);
        let start = words.iter().position(|word| word == "littoral");
        let words = words.split_off(start.unwrap_or_else(|| panic!("{line}")));
        let end = words.iter().position(|word| ["<", ">", "|", "#"].contains(&word.as_str()));
        words[..end.unwrap_or(words.len())].to_vec()
    }

    #[test]
    fn every_command_has_json_examples_that_parse_and_exit_codes() {
        for (path, command) in found() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let is_group = command.has_subcommands();
            let has_json = command.get_arguments().any(|argument| argument.get_id() == "json");
            assert!(is_group || has_json, "`{path}` has no --json");
            assert!(help.contains("Exit codes:\n  0  "), "`{path}`: {help}");
            let examples = examples(&help);
            assert!(!examples.is_empty(), "`{path}` has no example: {help}");
            for example in examples {
                // The comment behind an example of the whole is set off by spaces.
                let line = example.split("   ").next().unwrap();
                let words = words(line);
                let parsed = commands().try_get_matches_from(&words);
                assert!(parsed.is_ok(), "`{path}`: {example}: {:?}", parsed.err());
                assert!(line.contains(&format!("littoral {path}")), "`{path}`: {example}");
            }
        }
        let help = commands().get_after_help().unwrap().to_string();
        for example in examples(&help) {
            let parsed =
                commands().try_get_matches_from(words(example.split("   ").next().unwrap()));
            assert!(parsed.is_ok(), "{example}: {:?}", parsed.err());
        }
    }

    #[test]
    fn every_command_and_every_exit_code_is_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operating.md");
        let document = fs::read_to_string(path).unwrap();
        let names: BTreeSet<String> = found().into_iter().map(|(name, _)| name).collect();
        for name in &names {
            let is_group = names.iter().any(|other| other.starts_with(&format!("{name} ")));
            assert!(is_group || document.contains(&format!("`{name}`")), "{name}");
        }
        for (name, finding) in FINDINGS {
            assert!(names.contains(*name), "{name}");
            assert!(document.contains(&format!("| `{name}` | {finding} |")), "{name}: {finding}");
        }
        for code in [0, FAILED, USAGE, NOT_IN_ORDER] {
            assert!(document.contains(&format!("| {code} | ")), "{code}");
        }
    }
}
