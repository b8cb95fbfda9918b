//! `littoral sql`: runs SQL on a node, over the same protocol as any client.

use std::io::Read as _;

use anyhow::{anyhow, bail};
use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::{
    Hinted, NotInOrder, OrHint as _,
    client::{Target, refused},
    say, table,
};
use crate::http::{sets_foreign_keys, statements};

/// Run SQL on a node that runs.
///
/// Statements between BEGIN and COMMIT are one transaction; without them each stands for itself. The first
/// error ends it. At the origin, what stands between PRAGMA foreign_keys = off and on is a migration.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  littoral sql --config edge1/littoral.toml -c \"SELECT * FROM stock\"\n  \
    littoral sql --url http://127.0.0.1:4401 --json < script.sql"
)]
pub(super) struct Sql {
    #[command(flatten)]
    target: Target,
    /// The SQL; read from stdin if left out.
    #[arg(short, long, value_name = "SQL", allow_hyphen_values = true)]
    command: Option<String>,
    /// Print one JSON array per statement that returns columns.
    #[arg(long)]
    json: bool,
}

impl Sql {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let script = match &self.command {
            Some(sql) => sql.clone(),
            None => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                text
            }
        };
        let texts = statements(&script);
        if texts.is_empty() {
            bail!("there is no statement");
        }
        if left_open(&texts) {
            return Err(anyhow!("the script leaves a transaction open; nothing was run"))
                .or_hint("end it with COMMIT: a transaction begins and ends in one call");
        }
        for part in parts(&texts) {
            self.run_part(part, &script).await?;
        }
        Ok(())
    }

    /// Runs statements in one request.
    async fn run_part(&self, texts: &[&str], script: &str) -> anyhow::Result<()> {
        let steps: Vec<Value> = texts
            .iter()
            .enumerate()
            .map(|(i, sql)| {
                // A migration ends with a PRAGMA that succeeds also if what is before it has not.
                let before = i.saturating_sub(2)..i;
                let all: Vec<Value> =
                    before.map(|step| json!({ "type": "ok", "step": step })).collect();
                json!({ "condition": { "type": "and", "conds": all }, "stmt": { "sql": sql } })
            })
            .collect();
        let body = json!({ "requests": [
            { "type": "batch", "batch": { "steps": steps } },
            { "type": "close" },
        ]});
        let (status, answer) = self.target.ask(Method::POST, "/v3/pipeline", Some(&body)).await?;
        if !status.is_success() {
            return Err(refused(status, &answer));
        }
        let batch = &answer["results"][0];
        if batch["type"] == "error" {
            return failure(&batch["error"], script, false);
        }
        let result = &batch["response"]["result"];
        for (i, sql) in texts.iter().enumerate() {
            let error = &result["step_errors"][i];
            if !error.is_null() {
                return if error["code"] == ACCEPTED {
                    Err(accepted(error, not_run(result, i)))
                } else {
                    failure(error, sql, left_open(&texts[..i]))
                };
            }
            let rows = &result["step_results"][i];
            if !rows.is_null() {
                self.print(rows, sql)?;
            }
        }
        Ok(())
    }

    fn print(&self, result: &Value, sql: &str) -> anyhow::Result<()> {
        if list(&result["cols"]).next().is_none() {
            let changed = result["affected_row_count"].as_u64().unwrap_or_default();
            let first = sql.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next();
            let writes_rows = ["INSERT", "UPDATE", "DELETE", "REPLACE"];
            let is_told = first
                .is_some_and(|word| writes_rows.iter().any(|verb| word.eq_ignore_ascii_case(verb)));
            if (changed > 0 || is_told) && !self.json {
                say(format_args!("{changed} row{} changed", if changed == 1 { "" } else { "s" }))?;
            }
            return Ok(());
        }
        if self.json {
            return say(Value::Array(objects(result)));
        }
        let (columns, rows) = shown_rows(result);
        for line in table::lines(&columns, &rows) {
            say(line)?;
        }
        Ok(())
    }
}

/// Statements are sent together up to this many bytes, and further while a transaction is open.
const PART_BYTES: usize = 4 << 20;

/// The code of a change that is accepted and waits.
const ACCEPTED: &str = "LITTORAL_SCHEMA_ACCEPTED";

/// How a script ends that has come to a change which waits.
fn accepted(error: &Value, not_run: usize) -> anyhow::Error {
    let message = text(&error["message"]);
    let error = if not_run == 0 {
        anyhow!(message)
    } else {
        anyhow!("{message}. What follows it in the script was not run: {not_run} statements")
    };
    let hint = "`littoral schema status` tells for whom it waits".to_owned();
    let error = anyhow::Error::new(Hinted { error, hint });
    if not_run == 0 { NotInOrder::noted(&error) } else { error }
}

/// How many statements follow the migration that a step of a batch is in.
fn not_run(result: &Value, step: usize) -> usize {
    let results = list(&result["step_results"]).skip(step + 1);
    results.skip_while(|rows| rows.is_null()).skip(1).count()
}

/// The rows of a result, each as a JSON object.
pub(super) fn objects(result: &Value) -> Vec<Value> {
    let columns = columns(result);
    list(&result["rows"])
        .map(|row| Value::Object(columns.iter().cloned().zip(list(row).map(plain)).collect()))
        .collect()
}

/// The columns and rows of a result, as they are printed.
pub(super) fn shown_rows(result: &Value) -> (Vec<String>, Vec<Vec<String>>) {
    let rows = list(&result["rows"]).map(|row| list(row).map(shown).collect()).collect();
    (columns(result), rows)
}

fn columns(result: &Value) -> Vec<String> {
    list(&result["cols"]).map(|col| text(&col["name"])).collect()
}

/// What of a script belongs together.
#[derive(Default)]
struct Together {
    in_transaction: bool,
    in_migration: bool,
}

impl Together {
    fn take(&mut self, text: &str) {
        let mut words = text.trim_start().split(|c: char| !c.is_ascii_alphabetic());
        match words.next().unwrap_or_default().to_ascii_uppercase().as_str() {
            "BEGIN" => self.in_transaction = true,
            "COMMIT" | "END" => self.in_transaction = false,
            "ROLLBACK" => self.in_transaction &= text.to_ascii_uppercase().contains(" TO "),
            _ => match sets_foreign_keys(text) {
                Some("off") => self.in_migration = true,
                Some("on") => self.in_migration = false,
                _ => {}
            },
        }
    }
}

/// Whether a script begins a transaction that it does not end.
fn left_open(texts: &[&str]) -> bool {
    let mut together = Together::default();
    texts.iter().for_each(|text| together.take(text));
    together.in_transaction
}

/// The parts of a long script that are sent one after the other: a request has a bound.
fn parts<'a, 's>(texts: &'a [&'s str]) -> Vec<&'a [&'s str]> {
    let (mut parts, mut start, mut bytes) = (Vec::new(), 0, 0);
    let mut together = Together::default();
    for (i, text) in texts.iter().enumerate() {
        together.take(text);
        bytes += text.len();
        if bytes > PART_BYTES && !together.in_transaction && !together.in_migration {
            parts.push(&texts[start..=i]);
            (start, bytes) = (i + 1, 0);
        }
    }
    parts.extend((start < texts.len()).then(|| &texts[start..]));
    parts
}

fn failure(error: &Value, sql: &str, in_transaction: bool) -> anyhow::Result<()> {
    let code = text(&error["code"]);
    let undone = if in_transaction { "\n  nothing of its transaction was done" } else { "" };
    let failed = anyhow!("{code}: {}\n  in: {sql}{undone}", text(&error["message"]));
    match code.as_str() {
        "LITTORAL_ORIGIN_UNREACHABLE" => Err(failed)
            .or_hint("is the origin running, and linked to this node, if through others?"),
        "LITTORAL_SCHEMA_CHANGING" => {
            Err(failed).or_hint("`littoral schema status` tells which change waits, and for whom")
        }
        "LITTORAL_OUTCOME_UNKNOWN" => Err(failed).or_hint(
            "look whether it is there before you run it again; a program that sends an Idempotency-Key \
             can ask (POST /v1/outcome, see docs/http-api.md)",
        ),
        "LITTORAL_NOT_GRANTED" => {
            Err(failed).or_hint("the token must give it: see `littoral token issue --help`")
        }
        "LITTORAL_NOT_A_MEMBER" => {
            Err(failed).or_hint("is the origin running, and dialed by this node?")
        }
        _ => Err(failed),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A value of the protocol as plain JSON. Integers beyond 2^53 stay exact as text.
fn plain(value: &Value) -> Value {
    match value["type"].as_str() {
        Some("integer") => {
            let number = value["value"].as_str().and_then(|digits| digits.parse::<i64>().ok());
            match number {
                Some(n) if n.unsigned_abs() <= 1 << 53 => json!(n),
                _ => value["value"].clone(),
            }
        }
        Some("float" | "text") => value["value"].clone(),
        Some("blob") => json!({ "base64": value["base64"] }),
        _ => Value::Null,
    }
}

fn shown(value: &Value) -> String {
    match value["type"].as_str() {
        Some("integer" | "text") => text(&value["value"]),
        Some("float") => value["value"].to_string(),
        Some("blob") => format!("base64:{}", text(&value["base64"])),
        _ => "NULL".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_script_is_sent_in_parts_that_end_no_transaction() {
        let long = format!("INSERT INTO t VALUES('{}')", "x".repeat(PART_BYTES));
        let long = long.as_str();
        assert_eq!(parts(&["SELECT 1", "SELECT 2"]).len(), 1);
        let texts = [long, "BEGIN", long, "SELECT 1", "END", "SELECT 2"];
        assert_eq!(parts(&texts), [&texts[..1], &texts[1..5], &texts[5..]]);
        let texts = ["PRAGMA foreign_keys = OFF", long, long, "PRAGMA foreign_keys=on", long];
        assert_eq!(parts(&texts), [&texts[..4], &texts[4..]]);
        assert!(left_open(&["BEGIN"]) && !left_open(&["BEGIN", "ROLLBACK"]));
    }
}
