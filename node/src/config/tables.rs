//! The sections `[tables.NAME]`: what a table promises.

use std::{collections::BTreeMap, path::Path};

use littoral::{Consistency, OnStale, OnUnreachable, TablePolicy, Writers};
use serde::Deserialize;

use super::{ConfigError, quoted, read};

/// Reads a file that holds only `[tables.NAME]` sections.
///
/// # Errors
/// As [`Config::load`](super::Config::load).
pub fn load_policies(path: &Path) -> Result<BTreeMap<String, TablePolicy>, ConfigError> {
    parse_policies(&read(path)?, path)
}

/// Parses the text of a file that holds only `[tables.NAME]` sections; `path` is for errors.
///
/// # Errors
/// As [`Config::load`](super::Config::load).
pub fn parse_policies(
    text: &str,
    path: &Path,
) -> Result<BTreeMap<String, TablePolicy>, ConfigError> {
    let raw: RawPolicies = toml::from_str(text)
        .map_err(|error| ConfigError::Syntax { path: path.to_owned(), error: Box::new(error) })?;
    resolve_tables(raw.tables)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicies {
    #[serde(default)]
    tables: BTreeMap<String, RawTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTable {
    policy: Option<String>,
    writers: Option<String>,
    key: Option<String>,
    max_lag_ms: Option<u64>,
    on_stale: Option<String>,
    on_unreachable: Option<String>,
    #[serde(default)]
    columns: BTreeMap<String, String>,
}

pub(super) fn resolve_tables(
    tables: BTreeMap<String, RawTable>,
) -> Result<BTreeMap<String, TablePolicy>, ConfigError> {
    tables
        .into_iter()
        .map(|(name, table)| {
            let policy = table.resolve(&name)?;
            Ok((name, policy))
        })
        .collect()
}

impl RawTable {
    fn resolve(self, table: &str) -> Result<TablePolicy, ConfigError> {
        let consistency = word::<Consistency>(table, "policy", self.policy.as_deref())?;
        let writers = word::<Writers>(table, "writers", self.writers.as_deref())?;
        let explicit_key = match self.key.as_deref() {
            None => false,
            Some("explicit") => true,
            Some(other) => {
                let key = format!("tables.{table}.key");
                return Err(ConfigError::value(key, quoted(other), "\"explicit\", or no such key"));
            }
        };
        if consistency == Consistency::OriginStrong && writers == Writers::Any {
            return Err(ConfigError::Contradiction(format!(
                "tables.{table}: policy = \"origin-strong\" means that only the origin writes, \
                 which writers = \"any\" contradicts"
            )));
        }
        let mut policy =
            TablePolicy { consistency, writers, explicit_key, ..TablePolicy::default() };
        let on_stale = self.on_stale.as_deref().map(|word| {
            word.parse::<OnStale>().map_err(|error| unknown_word(table, "on_stale", word, &error))
        });
        policy
            .declare_max_lag(self.max_lag_ms, on_stale.transpose()?)
            .map_err(|what| ConfigError::Contradiction(format!("tables.{table}: {what}")))?;
        let on_unreachable = self.on_unreachable.as_deref().map(|word| {
            word.parse::<OnUnreachable>()
                .map_err(|error| unknown_word(table, "on_unreachable", word, &error))
        });
        policy
            .declare_on_unreachable(on_unreachable.transpose()?)
            .map_err(|what| ConfigError::Contradiction(format!("tables.{table}: {what}")))?;
        for (column, merge) in &self.columns {
            policy.declare_column(column, merge).map_err(|error| {
                unknown_word(table, &format!("columns.{column}"), merge, &error)
            })?;
        }
        let merges = !(policy.columns.is_empty() && policy.groups.is_empty());
        if writers == Writers::Origin && merges {
            return Err(ConfigError::Contradiction(format!(
                "tables.{table}: merge types of columns mean something only with writers = \"any\""
            )));
        }
        Ok(policy)
    }
}

/// A word of a table's section, or its type's default if it is left out.
fn word<T>(table: &str, key: &str, word: Option<&str>) -> Result<T, ConfigError>
where
    T: std::str::FromStr<Err = littoral::UnknownWord> + Default,
{
    let Some(word) = word else { return Ok(T::default()) };
    word.parse().map_err(|error| unknown_word(table, key, word, &error))
}

fn unknown_word(table: &str, key: &str, word: &str, error: &littoral::UnknownWord) -> ConfigError {
    let expected = format!("one of {}", error.expected());
    ConfigError::value(format!("tables.{table}.{key}"), quoted(word), expected)
}

#[cfg(test)]
mod tests {
    use littoral::ColumnType;

    use super::*;

    #[test]
    fn policies_are_read_word_by_word() {
        let raw: RawPolicies = toml::from_str(
            "[tables.stock]\npolicy = \"eventual\"\nwriters = \"any\"\nkey = \"explicit\"\n\
             columns.quantity = \"counter\"",
        )
        .unwrap();
        let policies = resolve_tables(raw.tables).unwrap();
        let stock = &policies["stock"];
        assert_eq!(stock.consistency, Consistency::Eventual);
        assert_eq!(stock.writers, Writers::Any);
        assert!(stock.explicit_key);
        assert_eq!(stock.columns["quantity"], ColumnType::Counter);
    }

    #[test]
    fn contradicting_policies_are_refused() {
        for text in [
            "[tables.t]\npolicy = \"origin-strong\"\nwriters = \"any\"",
            "[tables.t]\ncolumns.n = \"counter\"",
            "[tables.t]\nwriters = \"everybody\"",
            "[tables.t]\nkey = \"implicit\"",
            "[tables.t]\nmax_lag_ms = 5000",
            "[tables.t]\npolicy = \"eventual\"\nmax_lag_ms = 5",
            "[tables.t]\non_unreachable = \"stale\"",
            "[tables.t]\npolicy = \"origin-strong\"\non_unreachable = \"wait\"",
            "[tables.t]\npolicy = \"eventual\"\non_stale = \"fail\"",
            "[tables.t]\npolicy = \"eventual\"\nmax_lag_ms = 5000\non_stale = \"ask\"",
        ] {
            let raw: RawPolicies = toml::from_str(text).unwrap();
            assert!(resolve_tables(raw.tables).is_err(), "{text}");
        }
    }
}
