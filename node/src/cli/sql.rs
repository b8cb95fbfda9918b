//! `littoral sql`: runs SQL on a node, over the same protocol as any client.

use std::io::Read as _;

use anyhow::{anyhow, bail};
use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::{
    OrHint as _,
    client::{Target, refused},
    say, table,
};
use crate::http::statements;

/// Run SQL on a node that runs.
///
/// Statements between BEGIN and COMMIT are one transaction; without them each stands for itself. The first
/// error ends it.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  littoral sql --config edge1/littoral.toml -c \"SELECT * FROM stock\"\n  \
    littoral sql --url http://127.0.0.1:4401 --json < script.sql"
)]
pub(super) struct Sql {
    #[command(flatten)]
    target: Target,
    /// The SQL; read from stdin if left out.
    #[arg(short, long, value_name = "SQL")]
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
        let steps: Vec<Value> = texts
            .iter()
            .enumerate()
            .map(|(i, sql)| {
                let condition = i.checked_sub(1).map(|step| json!({ "type": "ok", "step": step }));
                json!({ "condition": condition, "stmt": { "sql": sql } })
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
            return failure(&batch["error"], &script);
        }
        let result = &batch["response"]["result"];
        for (i, sql) in texts.iter().enumerate() {
            let error = &result["step_errors"][i];
            if !error.is_null() {
                return failure(error, sql);
            }
            let rows = &result["step_results"][i];
            if !rows.is_null() {
                self.print(rows)?;
            }
        }
        Ok(())
    }

    fn print(&self, result: &Value) -> anyhow::Result<()> {
        if list(&result["cols"]).next().is_none() {
            let changed = result["affected_row_count"].as_u64().unwrap_or_default();
            if changed > 0 && !self.json {
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

/// Whether a script begins a transaction that it does not end.
fn left_open(texts: &[&str]) -> bool {
    let first_word = |text: &str| {
        text.trim_start()
            .split(|c: char| !c.is_ascii_alphabetic())
            .next()
            .unwrap_or_default()
            .to_ascii_uppercase()
    };
    let mut open = false;
    for text in texts {
        match first_word(text).as_str() {
            "BEGIN" => open = true,
            "COMMIT" | "END" => open = false,
            "ROLLBACK" => open &= text.to_ascii_uppercase().contains(" TO "),
            _ => {}
        }
    }
    open
}

fn failure(error: &Value, sql: &str) -> anyhow::Result<()> {
    let code = text(&error["code"]);
    let failed = anyhow!("{code}: {}\n  in: {sql}", text(&error["message"]));
    match code.as_str() {
        "LITTORAL_ORIGIN_UNREACHABLE" => Err(failed)
            .or_hint("is the origin running, and linked to this node, if through others?"),
        "LITTORAL_SCHEMA_CHANGING" => Err(failed).or_hint(
            "if this is the change itself, it is accepted and happens by itself; do not run it again: \
             `littoral schema status` tells whether it still waits, and for whom",
        ),
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
