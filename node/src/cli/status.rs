//! `littoral status`: what a running node knows of itself and its peers.

use clap::Args;
use serde_json::Value;

use super::{client::Target, say, table};

/// Shows what a node knows of itself and its peers.
#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    target: Target,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let status = self.target.status().await?;
        if self.json {
            return say(status);
        }
        let line = |name: &str, value: &Value| say(format_args!("{name:<11} {}", shown(value)));
        line("node", &status["node"])?;
        line("cluster", &status["cluster"])?;
        line("origin", &status["origin"])?;
        let ready = &status["not_ready"];
        say(format_args!(
            "{:<11} {}",
            "ready",
            if ready.is_null() { "yes".to_owned() } else { format!("no, {}", shown(ready)) }
        ))?;
        line("applied", &status["applied"])?;
        line("durable", &status["durable"])?;
        line("contested", &status["contested_rows"])?;
        let conflicts = shown(&status["counts"]["conflicts"]);
        say(format_args!("{:<11} {conflicts} since start", "conflicts"))?;
        print_list(
            &status["members"],
            &[("member", "node"), ("author", "author"), ("incarnation", "incarnation")],
        )?;
        print_list(
            &status["stability"]["held_back_by"],
            &[("frontier waits for", "node"), ("missing", "missing"), ("heard ms", "heard_ms")],
        )?;
        print_list(
            &status["peers"],
            &[
                ("peer", "node"),
                ("streaming", "streaming"),
                ("behind", "behind"),
                ("round trip us", "round_trip_us"),
                ("sent", "bytes_sent"),
                ("received", "bytes_received"),
            ],
        )?;
        print_list(
            &status["tables"],
            &[("table", "name"), ("policy", "policy"), ("writers", "writers")],
        )?;
        print_list(
            &status["triggers"],
            &[("trigger", "name"), ("table", "table"), ("class", "class")],
        )?;
        for table in status["stale"].as_array().into_iter().flatten() {
            say(format_args!("stale: {} (a restart of the node rebuilds it)", shown(table)))?;
        }
        Ok(())
    }
}

pub(super) fn print_list(list: &Value, columns: &[(&str, &str)]) -> anyhow::Result<()> {
    let heading: Vec<String> = columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
    let rows: Vec<Vec<String>> = list
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| columns.iter().map(|(_, key)| shown(&item[*key])).collect())
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    say("")?;
    for line in table::lines(&heading, &rows) {
        say(line)?;
    }
    Ok(())
}

pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
