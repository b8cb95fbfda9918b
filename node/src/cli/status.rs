//! `littoral status`: what a running node knows of itself and its peers.

use clap::Args;
use serde_json::Value;

use super::{client::Target, moment, say, table};

/// Show what a node knows of itself and its peers.
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
        if !status["degraded"].is_null() {
            line("degraded", &status["degraded"])?;
        }
        line("applied", &status["applied"])?;
        line("durable", &status["durable"])?;
        line("contested", &status["contested_rows"])?;
        say(format_args!("{:<11} {}", "clock", clock(&status["clock"])))?;
        let lag = match status["lag_ms"].as_u64() {
            Some(ms) => format!("{ms} ms behind the origin at most"),
            None => "not known yet: no link has told what the origin has".to_owned(),
        };
        say(format_args!("{:<11} {lag}", "lag"))?;
        let conflicts = shown(&status["counts"]["conflicts"]);
        say(format_args!("{:<11} {conflicts} since start", "conflicts"))?;
        say(format_args!("{:<11} {}", "certificate", certificate(&status)))?;
        print_list(
            &status["members"],
            &[("member", "node"), ("author", "author"), ("incarnation", "incarnation")],
        )?;
        print_list(
            &heard(&status),
            &[
                ("frontier waits for", "node"),
                ("missing", "missing"),
                ("held since", "since"),
                ("last heard", "heard"),
            ],
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
            &holds(&status["peers"]),
            &[("holds", "entry"), ("of", "of"), ("ahead ms", "ahead_ms"), ("why", "why")],
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

/// For how long the node's certificate is valid, by the node's clock.
fn certificate(status: &Value) -> String {
    let days = |until: &Value| {
        let ms = until.as_i64()? - status["clock"]["wall_ms"].as_i64()?;
        Some(ms.div_euclid(24 * 60 * 60 * 1000))
    };
    match days(&status["certificate"]["not_after_ms"]) {
        Some(days) if days < 0 => "has expired: peers refuse this node".to_owned(),
        Some(days) => format!("valid for {days} days"),
        None => "-".to_owned(),
    }
}

/// How wrong the clock is, as far as the node can tell.
fn clock(clock: &Value) -> String {
    let stamps = match clock["stamps_ahead_ms"].as_u64() {
        Some(ms) if ms > 5000 => format!("; newest stamp {ms} ms ahead"),
        _ => String::new(),
    };
    let number = |key: &str| clock[key].as_i64().unwrap_or_default();
    match clock["error_ms"].as_u64() {
        None => format!("the origin's is not known yet{stamps}"),
        Some(error) => {
            let ahead = number("wall_ms") - number("corrected_ms");
            format!("{ahead} ms ahead of the origin's, give or take {error} ms{stamps}")
        }
    }
}

/// The entries at which the node holds its peers.
fn holds(peers: &Value) -> Value {
    let peers = peers.as_array().into_iter().flatten();
    let held = peers.filter(|peer| !peer["holds"].is_null()).map(|peer| {
        let mut hold = peer["holds"].clone();
        hold["of"] = peer["node"].clone();
        hold
    });
    held.collect()
}

/// The members that hold the frontier back, with since when, and when each was heard last.
pub(super) fn heard(status: &Value) -> Value {
    let held = status["stability"]["held_back_by"].as_array().into_iter().flatten();
    let members = held.map(|member| {
        let mut member = member.clone();
        let at = moment::shown(&member["heard_ms"], status);
        member["since"] = moment::shown(&member["since_ms"], status).into();
        member["heard"] = at.unwrap_or_else(|| "not since this node started".to_owned()).into();
        member
    });
    members.collect()
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
