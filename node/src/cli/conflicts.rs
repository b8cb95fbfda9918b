//! `littoral conflicts`: what merging has discarded, and which rows need somebody's attention.

use anyhow::{anyhow, bail};
use clap::Args;
use hyper::Method;
use serde_json::{Value, json};

use super::{OrHint as _, client::Target, say, sql, table};

/// Shows what concurrent writes have discarded at a node, the newest first: the value that stands, the one
/// that was lost, and who wrote each. A parked row, or one that breaks a CHECK, is listed with its reason.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    littoral conflicts --config edge1/littoral.toml\n  \
    littoral conflicts --url http://127.0.0.1:4401 --table stock --limit 5 --json\n  \
    littoral conflicts --config edge1/littoral.toml --rule parked")]
pub(super) struct Conflicts {
    #[command(flatten)]
    target: Target,
    /// Only those of this table.
    #[arg(long)]
    table: Option<String>,
    /// Only those of this rule, such as lww, parked or check.
    #[arg(long)]
    rule: Option<String>,
    /// So many at most.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print them as one JSON array.
    #[arg(long)]
    json: bool,
}

const SQL: &str = "SELECT id, rule, \"table\", \"row\", \"column\", kept, kept_by, lost, lost_by,
    strftime('%Y-%m-%dT%H:%M:%fZ', lost_at / 1000.0, 'unixepoch') AS lost_at, reason
  FROM littoral_conflicts
  WHERE (?1 IS NULL OR \"table\" = ?1 COLLATE NOCASE) AND (?2 IS NULL OR rule = ?2)
  ORDER BY id DESC LIMIT ?3";

/// A table that is gone may have conflicts, so this counts only where there are none.
const KNOWN: &str = "SELECT count(*) FROM littoral_tables WHERE name = ?1 COLLATE NOCASE";

impl Conflicts {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let text = |value: &Option<String>| match value {
            Some(text) => json!({ "type": "text", "value": text }),
            None => json!({ "type": "null" }),
        };
        let limit = json!({ "type": "integer", "value": self.limit.to_string() });
        let args = json!([text(&self.table), text(&self.rule), limit]);
        let body = json!({ "requests": [
            { "type": "execute", "stmt": { "sql": SQL, "args": args } },
            { "type": "execute", "stmt": { "sql": KNOWN, "args": [text(&self.table)] } },
            { "type": "close" },
        ]});
        let (status, answer) = self.target.ask(Method::POST, "/v3/pipeline", Some(&body)).await?;
        if !status.is_success() {
            bail!("the node answered {status}: {}", answer["message"].as_str().unwrap_or_default());
        }
        let outcome = &answer["results"][0];
        if outcome["type"] == "error" {
            let message = outcome["error"]["message"].as_str().unwrap_or_default();
            return Err(anyhow!("the node could not tell: {message}")).or_hint(
                "a token needs the right \"engine\" for it: `littoral token issue --engine`",
            );
        }
        let result = &outcome["response"]["result"];
        let is_empty = result["rows"].as_array().is_none_or(Vec::is_empty);
        let known = &answer["results"][1]["response"]["result"]["rows"][0][0]["value"];
        if let Some(table) = self.table.as_ref().filter(|_| is_empty && known == "0") {
            return Err(anyhow!("there is no table {table} that replicates"))
                .or_hint("`littoral status` lists the tables");
        }
        if self.json {
            return say(Value::Array(sql::objects(result)));
        }
        let (columns, rows) = sql::shown_rows(result);
        if rows.is_empty() {
            return say("there are none");
        }
        for line in table::lines(&columns, &rows) {
            say(line)?;
        }
        Ok(())
    }
}
