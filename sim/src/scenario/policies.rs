//! Reads the policies of a deployment, unchanged: a file of `[tables.NAME]` sections as `littoral init`
//! takes it, or the configuration file of the first origin, of which only these sections count here.

use std::{collections::BTreeMap, str::FromStr};

use littoral::{Consistency, OnStale, OnUnreachable, TablePolicy, UnknownWord, Writers};
use serde::Deserialize;

use super::{
    file::syntax,
    mistake::{Mistake, suggestion},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sections {
    #[serde(default)]
    tables: BTreeMap<String, Section>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    policy: Option<String>,
    writers: Option<String>,
    key: Option<String>,
    max_lag_ms: Option<u64>,
    on_stale: Option<String>,
    on_unreachable: Option<String>,
    #[serde(default)]
    columns: BTreeMap<String, String>,
}

/// Policies by table name.
///
/// # Errors
/// What is wrong, where, and what is allowed.
pub(crate) fn read(text: &str, file: &str) -> Result<BTreeMap<String, TablePolicy>, Mistake> {
    let whole: toml::Table = toml::from_str(text).map_err(|error| syntax(file, &error))?;
    // The node itself judges the other sections of its configuration.
    let sections: Sections = if whole.contains_key("node") {
        let tables =
            whole.into_iter().filter(|(name, _)| name == "tables").collect::<toml::Table>();
        tables.try_into().map_err(|error| syntax(file, &error))?
    } else {
        toml::from_str(text).map_err(|error| syntax(file, &error))?
    };
    let policies = sections.tables.into_iter().map(|(table, section)| {
        let policy = section.resolve(&table, file)?;
        Ok((table, policy))
    });
    policies.collect()
}

impl Section {
    fn resolve(self, table: &str, file: &str) -> Result<TablePolicy, Mistake> {
        let wrong = |what: String| Mistake::new(file, format!("tables.{table}{what}"));
        let consistency = word::<Consistency>(self.policy.as_deref(), "policy", &wrong)?;
        let writers = word::<Writers>(self.writers.as_deref(), "writers", &wrong)?;
        let explicit_key = match self.key.as_deref() {
            None => false,
            Some("explicit") => true,
            Some(other) => {
                let what = format!(".key = {other:?}: expected \"explicit\", or no such key");
                return Err(wrong(what));
            }
        };
        let mut policy =
            TablePolicy { consistency, writers, explicit_key, ..TablePolicy::default() };
        for (column, merge) in &self.columns {
            policy
                .declare_column(column, merge)
                .map_err(|error| unknown(merge, &format!("columns.{column}"), &error, &wrong))?;
        }
        let on_stale = self.on_stale.as_deref().map(|word| {
            word.parse::<OnStale>().map_err(|error| unknown(word, "on_stale", &error, &wrong))
        });
        policy
            .declare_max_lag(self.max_lag_ms, on_stale.transpose()?)
            .map_err(|what| wrong(format!(": {what}")))?;
        let on_unreachable = self.on_unreachable.as_deref().map(|word| {
            word.parse::<OnUnreachable>()
                .map_err(|error| unknown(word, "on_unreachable", &error, &wrong))
        });
        policy
            .declare_on_unreachable(on_unreachable.transpose()?)
            .map_err(|what| wrong(format!(": {what}")))?;
        let merges = !(policy.columns.is_empty() && policy.groups.is_empty());
        if writers == Writers::Origin && merges {
            let what = ": merge types of columns mean something only with writers = \"any\"";
            return Err(wrong(what.to_owned()));
        }
        Ok(policy)
    }
}

fn word<T: FromStr<Err = UnknownWord> + Default>(
    word: Option<&str>,
    key: &str,
    wrong: &impl Fn(String) -> Mistake,
) -> Result<T, Mistake> {
    let Some(word) = word else { return Ok(T::default()) };
    word.parse().map_err(|error| unknown(word, key, &error, wrong))
}

fn unknown(
    word: &str,
    key: &str,
    error: &UnknownWord,
    wrong: &impl Fn(String) -> Mistake,
) -> Mistake {
    wrong(format!(".{key} = {word:?}: expected one of {}", error.expected()))
        .hint(suggestion(word, error.expected().split(", ")))
}
