//! `littoral conflicts`: what merging has discarded, and which rows need somebody's attention. Values of
//! personal columns are not shown.

use std::collections::BTreeMap;

use anyhow::anyhow;
use clap::Args;
use hyper::Method;
use littoral::{PERSONAL_VALUE, TablePolicy};
use serde_json::{Value, json};

use super::{
    OrHint as _,
    client::{Target, refused},
    say, sql, table,
};

/// Show what merging has discarded at a node, and rows that could not be stored.
///
/// Of each, the newest first: the value that stands, the one that was lost, and who wrote each. A parked
/// row, or one that breaks a CHECK, is listed with its reason.
///
/// In the place of personal values "(personal)" is shown, and of all values of tables and columns that are
/// gone, since nobody knows any more whether they were: SQL on littoral_conflicts gives them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    littoral conflicts --config edge1/littoral.toml\n  \
    littoral conflicts --url http://127.0.0.1:4401 --table stock --limit 5 --json\n  \
    littoral conflicts --config edge1/littoral.toml --rule lww\n  \
    littoral conflicts --config edge1/littoral.toml --rule parked")]
pub(super) struct Conflicts {
    #[command(flatten)]
    target: Target,
    /// Only those of this table.
    #[arg(long)]
    table: Option<String>,
    /// Only those of this rule: "last writer wins", or lww as the columns' type is declared, "delete wins",
    /// "counter overflow" (or counter), check, parked, dropped or repaired.
    #[arg(long, value_parser = rule)]
    rule: Option<&'static str>,
    /// So many at most.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print them as one JSON array.
    #[arg(long)]
    json: bool,
}

const SQL: &str = "SELECT id, rule, \"table\", \"row\", \"column\", kept, kept_by, lost, lost_by,
    strftime('%Y-%m-%dT%H:%M:%fZ', lost_at / 1000.0, 'unixepoch') AS lost_at, reason,
    table_id, column_id
  FROM littoral_conflicts
  WHERE (?1 IS NULL OR \"table\" = ?1 COLLATE NOCASE) AND (?2 IS NULL OR rule = ?2)
  ORDER BY id DESC LIMIT ?3";

/// A table that is gone may have conflicts, so this counts only where there are none.
const KNOWN: &str = "SELECT count(*) FROM littoral_tables WHERE name = ?1 COLLATE NOCASE";

/// What is declared of the columns of all tables.
const COLUMNS: &str = "SELECT table_id, id, name, type FROM littoral_columns";

/// The rules, and for those of one column type what that is declared with.
const RULES: [(&str, &str); 7] = [
    ("last writer wins", "lww"),
    ("delete wins", ""),
    ("counter overflow", "counter"),
    ("check", ""),
    ("parked", ""),
    ("dropped", ""),
    ("repaired", ""),
];

/// The rule that is meant, as the list has it.
fn rule(text: &str) -> Result<&'static str, String> {
    let word = text.trim().to_lowercase().replace(['-', '_'], " ");
    let known =
        RULES.iter().find(|(rule, kind)| *rule == word || (!kind.is_empty() && *kind == word));
    known.map(|(rule, _)| *rule).ok_or_else(|| {
        let rules = RULES.map(|(rule, kind)| match kind {
            "" => rule.to_owned(),
            kind => format!("{rule} ({kind})"),
        });
        format!("there is no such rule; the rules are {}", rules.join(", "))
    })
}

impl Conflicts {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let text = |value: Option<&str>| match value {
            Some(text) => json!({ "type": "text", "value": text }),
            None => json!({ "type": "null" }),
        };
        let limit = json!({ "type": "integer", "value": self.limit.to_string() });
        let args = json!([text(self.table.as_deref()), text(self.rule), limit]);
        let body = json!({ "requests": [
            { "type": "execute", "stmt": { "sql": SQL, "args": args } },
            { "type": "execute", "stmt": { "sql": KNOWN, "args": [text(self.table.as_deref())] } },
            { "type": "execute", "stmt": { "sql": COLUMNS } },
            { "type": "close" },
        ]});
        let (status, answer) = self.target.ask(Method::POST, "/v3/pipeline", Some(&body)).await?;
        if !status.is_success() {
            return Err(refused(status, &answer));
        }
        let outcome = &answer["results"][0];
        if outcome["type"] == "error" {
            let message = outcome["error"]["message"].as_str().unwrap_or_default();
            return Err(anyhow!("the node could not tell: {message}")).or_hint(
                "a token needs the right \"engine\" for it: `littoral token issue --engine`",
            );
        }
        let declared = sql::objects(&answer["results"][2]["response"]["result"]);
        let mut result = outcome["response"]["result"].clone();
        Columns::of(&declared).hide(&mut result);
        let result = &result;
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

/// By table and column, the name of each and whether its values are personal.
struct Columns(BTreeMap<i64, BTreeMap<i64, (String, bool)>>);

impl Columns {
    /// Of rows of [`COLUMNS`].
    fn of(rows: &[Value]) -> Self {
        let mut tables: BTreeMap<i64, BTreeMap<i64, (String, bool)>> = BTreeMap::new();
        for row in rows {
            let (Some(table), Some(id)) = (row["table_id"].as_i64(), row["id"].as_i64()) else {
                continue;
            };
            let name = row["name"].as_str().unwrap_or_default().to_owned();
            // A word that a later version has is taken for the worst.
            let mut policy = TablePolicy::default();
            let word = row["type"].as_str().unwrap_or_default();
            let is_known = policy.declare_column(&name, word).is_ok();
            let is_personal = !is_known || policy.personal.contains(&name);
            tables.entry(table).or_default().insert(id, (name, is_personal));
        }
        Self(tables)
    }

    /// Takes personal values out of an answer to [`SQL`], and what only this needs.
    fn hide(&self, result: &mut Value) {
        let Some(rows) = result["rows"].as_array_mut() else { return };
        for row in rows {
            let Some(row) = row.as_array_mut() else { continue };
            let id = |value: Option<Value>| {
                value.and_then(|value| value["value"].as_str()?.parse::<i64>().ok())
            };
            let column = id(row.pop());
            let columns = id(row.pop()).and_then(|table| self.0.get(&table));
            for place in VALUES {
                if let Some(value) = row.get_mut(place) {
                    hide(value, columns, column);
                }
            }
        }
        if let Some(cols) = result["cols"].as_array_mut() {
            cols.truncate(cols.len().saturating_sub(2));
        }
    }
}

/// Where [`SQL`] gives what was kept, and what was lost.
const VALUES: [usize; 2] = [5, 7];

/// Takes out of a value what is personal: all of it, or, if it is a whole row, some of its columns.
fn hide(value: &mut Value, columns: Option<&BTreeMap<i64, (String, bool)>>, column: Option<i64>) {
    if value["type"] == "null" {
        return;
    }
    let shown = match (columns, column) {
        (Some(columns), _) if columns.values().all(|(_, is_personal)| !is_personal) => return,
        (Some(columns), Some(id)) if columns.get(&id).is_some_and(|(_, personal)| !personal) => {
            return;
        }
        (Some(columns), None) => row_without(value["value"].as_str(), columns),
        _ => None,
    };
    let shown = shown.unwrap_or_else(|| PERSONAL_VALUE.to_owned());
    *value = json!({ "type": "text", "value": shown });
}

/// A row, as JSON, without what is personal.
fn row_without(text: Option<&str>, columns: &BTreeMap<i64, (String, bool)>) -> Option<String> {
    let mut row: serde_json::Map<String, Value> = serde_json::from_str(text?).ok()?;
    for (name, value) in &mut row {
        let is_shown = columns.values().any(|(known, personal)| known == name && !personal);
        if !is_shown && !value.is_null() {
            *value = PERSONAL_VALUE.into();
        }
    }
    serde_json::to_string(&row).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        json!({ "type": "text", "value": text })
    }

    #[test]
    fn rules_are_meant_by_their_text_or_by_the_type_of_columns() {
        for text in ["last writer wins", "lww", "LWW", "last-writer-wins"] {
            assert_eq!(rule(text), Ok("last writer wins"), "{text}");
        }
        assert_eq!(rule("counter"), Ok("counter overflow"));
        assert_eq!(rule("parked"), Ok("parked"));
        for text in ["", "max", "lost", "wins"] {
            let refused = rule(text).unwrap_err();
            assert!(refused.contains("last writer wins (lww), delete wins, counter"), "{refused}");
        }
    }

    /// So that `--rule` knows each that is written.
    #[test]
    fn the_rules_are_those_that_the_documents_list() {
        let merge = include_str!("../../../docs/merge.md");
        let line = merge.lines().find(|line| line.starts_with("| `rule` |")).unwrap();
        let listed: Vec<&str> = line.split('`').skip(3).step_by(2).collect();
        assert_eq!(listed, RULES.map(|(rule, _)| rule));
    }

    #[test]
    fn personal_values_are_not_shown_and_nor_are_those_of_what_is_gone() {
        let columns = Columns::of(&[
            json!({ "table_id": 1, "id": 1, "name": "name", "type": "personal" }),
            json!({ "table_id": 1, "id": 2, "name": "n", "type": "counter" }),
            json!({ "table_id": 1, "id": 3, "name": "age", "type": "personal max" }),
            json!({ "table_id": 1, "id": 4, "name": "new", "type": "a word of tomorrow" }),
            json!({ "table_id": 2, "id": 1, "name": "name", "type": "lww" }),
        ]);
        let whole = r#"{"age":null,"gone":1,"n":2,"name":"bob"}"#;
        for (table, column, value, shown) in [
            (Some(1), Some(1), text("bob"), text("(personal)")),
            (Some(1), Some(2), text("7"), text("7")),
            (Some(1), Some(3), json!({ "type": "integer", "value": "9" }), text("(personal)")),
            (Some(1), Some(4), text("x"), text("(personal)")),
            (Some(1), Some(0), text("a spelling"), text("(personal)")),
            (Some(1), Some(1), json!({ "type": "null" }), json!({ "type": "null" })),
            (Some(1), None, text("bob"), text("(personal)")),
            (
                Some(1),
                None,
                text(whole),
                text(r#"{"age":null,"gone":"(personal)","n":2,"name":"(personal)"}"#),
            ),
            (Some(2), Some(1), text("quay"), text("quay")),
            (Some(2), None, text(whole), text(whole)),
            (Some(3), Some(1), text("bob"), text("(personal)")),
            (None, None, text("bob"), text("(personal)")),
        ] {
            let id = |id: Option<i64>| json!({ "value": id.map(|id| id.to_string()) });
            let none = || json!({ "type": "null" });
            let mut row = vec![none(), none(), none(), none(), none()];
            row.extend([value.clone(), none(), value, none(), none(), none()]);
            row.extend([id(table), id(column)]);
            let mut result = json!({ "cols": vec![json!({}); 13], "rows": [row] });
            columns.hide(&mut result);
            assert_eq!(result["cols"].as_array().unwrap().len(), 11);
            let row = result["rows"][0].as_array().unwrap();
            assert_eq!(row.len(), 11);
            assert_eq!((&row[5], &row[7]), (&shown, &shown), "{table:?} {column:?}");
        }
    }
}
