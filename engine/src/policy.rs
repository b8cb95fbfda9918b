//! What each table promises and how each of its columns merges.

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

use crate::{limits::MAX_LAG_MS, value::ValueRef};

/// What a read of the table may rely on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Consistency {
    /// A consistent local snapshot.
    Eventual,
    /// A session on one node sees its own writes and never goes back in time.
    #[default]
    ReadAfterWrite,
    /// Linearizable reads and writes, both executed at the origin: no other node reads it.
    OriginStrong,
    /// Not replicated: every node has rows of its own. The table itself is the schema's, as all are.
    Local,
}

impl Consistency {
    /// The name in configuration, output and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::ReadAfterWrite => "read-after-write",
            Self::OriginStrong => "origin-strong",
            Self::Local => "local",
        }
    }
}

/// Who may write the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Writers {
    /// Every node commits locally; concurrent changes merge column by column.
    Any,
    /// Only the origin writes, so that one node decides constraints.
    #[default]
    Origin,
}

impl Writers {
    /// The name in configuration, output and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Origin => "origin",
        }
    }
}

/// What a read gets that finds rows older than their table allows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum OnStale {
    /// What there is; the answer says how old it may be.
    Serve,
    /// What there is as soon as it is new enough, or an error after some seconds.
    #[default]
    Wait,
    /// What there is at the origin: it is read there.
    Forward,
    /// An error.
    Fail,
}

impl OnStale {
    /// The name in configuration, output and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Wait => "wait",
            Self::Forward => "forward",
            Self::Fail => "fail",
        }
    }
}

/// How old what is read of a table may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MaxLag {
    /// At most, in milliseconds.
    pub ms: u64,
    /// What to do with a read that finds older rows.
    pub on_stale: OnStale,
}

/// What a read of an `origin-strong` table gets while the origin cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum OnUnreachable {
    /// An error.
    #[default]
    Fail,
    /// What this node has, which may be old, and the answer says so.
    Stale,
}

impl OnUnreachable {
    /// The name in configuration, output and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Stale => "stale",
        }
    }
}

/// How concurrent writes to one column of a multi-writer table merge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum ColumnType {
    /// The greatest stamp wins.
    #[default]
    Lww,
    /// The sum of all increments; INTEGER NOT NULL columns only.
    Counter,
    /// The greatest value; NULL is no value.
    Max,
    /// The least value; NULL is no value.
    Min,
    /// A JSON array of numbers, strings, `true` and `false`; an element stays as long as an add of it is not
    /// removed by somebody who knew that add.
    Set,
}

impl ColumnType {
    /// Whether a `max` or `min` column in which `held` stands takes `value` instead. For other types it
    /// never does.
    ///
    /// NULL is no value: it gives way to any. The others compare in the total order of
    /// [`ValueRef::total_cmp`], so that taking the further one of two is commutative, associative and
    /// idempotent.
    pub fn takes(self, held: ValueRef<'_>, value: ValueRef<'_>) -> bool {
        let beyond = match self {
            Self::Max => Ordering::Greater,
            Self::Min => Ordering::Less,
            Self::Lww | Self::Counter | Self::Set => return false,
        };
        match (held, value) {
            (_, ValueRef::Null) => false,
            (ValueRef::Null, _) => true,
            _ => value.total_cmp(held) == beyond,
        }
    }

    /// Whether it is `max` or `min`.
    pub const fn is_extreme(self) -> bool {
        matches!(self, Self::Max | Self::Min)
    }

    /// The name in configuration, output and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lww => "lww",
            Self::Counter => "counter",
            Self::Max => "max",
            Self::Min => "min",
            Self::Set => "set",
        }
    }
}

/// What the owner of a table declares of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TablePolicy {
    /// What reads may rely on.
    pub consistency: Consistency,
    /// Who may write.
    pub writers: Writers,
    /// The application always gives the INTEGER PRIMARY KEY itself (`key = "explicit"`), so that no
    /// two nodes let SQLite hand out the same one.
    pub explicit_key: bool,
    /// How old what is read of it may be; of `eventual` tables only.
    pub max_lag: Option<MaxLag>,
    /// What its reads get while the origin cannot be reached; of `origin-strong` tables only.
    pub on_unreachable: OnUnreachable,
    /// Merge types of columns by name; columns left out are `lww`.
    pub columns: BTreeMap<String, ColumnType>,
    /// Groups of `lww` columns, by column name. Whoever assigns one column of a group assigns all of
    /// them, so that they are one register.
    pub groups: BTreeMap<String, String>,
    /// Columns whose values are somebody's own: what the engine writes for people shows them as
    /// [`PERSONAL_VALUE`], such as errors and the keys of conflicts. Reads of the table give them as ever.
    pub personal: BTreeSet<String>,
}

impl TablePolicy {
    /// Whether every node may write it, so that its rows have clocks.
    pub fn is_multi_writer(&self) -> bool {
        self.writers == Writers::Any && self.consistency != Consistency::Local
    }

    /// Declares how old what is read of the table may be, and what to do with reads that find older rows.
    ///
    /// # Errors
    /// Why that cannot be, in words.
    pub fn declare_max_lag(
        &mut self,
        ms: Option<u64>,
        on_stale: Option<OnStale>,
    ) -> Result<(), String> {
        self.max_lag = match (ms, on_stale) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err("on_stale means something only with max_lag_ms".to_owned());
            }
            (Some(_), _) if self.consistency != Consistency::Eventual => {
                let what = format!(
                    "max_lag_ms bounds reads of an eventual table, and this is {}",
                    self.consistency
                );
                return Err(what);
            }
            (Some(ms), on_stale) if MAX_LAG_MS.contains(&ms) => {
                Some(MaxLag { ms, on_stale: on_stale.unwrap_or_default() })
            }
            (Some(ms), _) => {
                let (least, most) = (MAX_LAG_MS.start(), MAX_LAG_MS.end());
                return Err(format!("max_lag_ms = {ms}: expected {least} to {most}"));
            }
        };
        Ok(())
    }

    /// Declares what reads of the table get while the origin cannot be reached.
    ///
    /// # Errors
    /// Why that cannot be, in words.
    pub fn declare_on_unreachable(&mut self, word: Option<OnUnreachable>) -> Result<(), String> {
        if word.is_some() && self.consistency != Consistency::OriginStrong {
            return Err(format!(
                "on_unreachable says what reads of an origin-strong table get, and this is {}",
                self.consistency
            ));
        }
        self.on_unreachable = word.unwrap_or_default();
        Ok(())
    }

    /// Declares how a column merges, in the words of configuration: a column type, or `group=NAME`; and, by
    /// `personal` before it or in its place, that its values are. What was declared of the column before is
    /// forgotten.
    ///
    /// # Errors
    /// If there is no such word.
    pub fn declare_column(&mut self, column: &str, word: &str) -> Result<(), UnknownWord> {
        let (is_personal, word) = match word.strip_prefix(PERSONAL) {
            Some("") => (true, ColumnType::Lww.as_str()),
            Some(rest) if rest.starts_with(' ') => (true, rest.trim_start()),
            _ => (false, word),
        };
        let group = word.strip_prefix(GROUP).filter(|name| !name.is_empty());
        let merge = match group {
            Some(_) => ColumnType::Lww,
            None => word.parse::<ColumnType>()?,
        };
        self.columns.remove(column);
        self.groups.remove(column);
        self.personal.remove(column);
        if is_personal {
            self.personal.insert(column.to_owned());
        }
        if let Some(group) = group {
            self.groups.insert(column.to_owned(), group.to_owned());
        } else if merge != ColumnType::Lww {
            self.columns.insert(column.to_owned(), merge);
        }
        Ok(())
    }

    /// What is declared of a column, in the words of configuration.
    pub fn column_word(&self, column: &str) -> Cow<'static, str> {
        let merge = self.merge_word(column);
        if !self.personal.contains(column) {
            merge
        } else if merge == ColumnType::Lww.as_str() {
            Cow::Borrowed(PERSONAL)
        } else {
            Cow::Owned(format!("{PERSONAL} {merge}"))
        }
    }

    /// The columns of which something is declared.
    pub fn declared_columns(&self) -> BTreeSet<&String> {
        self.columns.keys().chain(self.groups.keys()).chain(&self.personal).collect()
    }

    /// How a column merges, in the words of configuration.
    pub(crate) fn merge_word(&self, column: &str) -> Cow<'static, str> {
        match self.groups.get(column) {
            Some(group) => Cow::Owned(format!("{GROUP}{group}")),
            None => Cow::Borrowed(self.columns.get(column).copied().unwrap_or_default().as_str()),
        }
    }
}

/// The word for a column whose values are personal, and what it begins with if the column has a type, too.
const PERSONAL: &str = "personal";

/// What stands for a value of a personal column where people read.
pub const PERSONAL_VALUE: &str = "(personal)";

/// What the word for a column of a group begins with.
const GROUP: &str = "group=";

/// A word that names no policy, writer or column type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} {word:?}, expected one of {expected}")]
pub struct UnknownWord {
    kind: &'static str,
    word: String,
    expected: &'static str,
}

impl UnknownWord {
    /// The words there are, separated by commas.
    pub const fn expected(&self) -> &'static str {
        self.expected
    }
}

macro_rules! words {
    ($type:ident, $kind:literal, $expected:literal, [$($variant:ident),+]) => {
        impl FromStr for $type {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                [$(Self::$variant),+].into_iter().find(|v| v.as_str() == word).ok_or_else(|| {
                    UnknownWord { kind: $kind, word: word.to_owned(), expected: $expected }
                })
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(
    Consistency,
    "policy",
    "eventual, read-after-write, origin-strong, local",
    [Eventual, ReadAfterWrite, OriginStrong, Local]
);
words!(Writers, "writers", "any, origin", [Any, Origin]);
words!(OnStale, "on_stale", "serve, wait, forward, fail", [Serve, Wait, Forward, Fail]);
words!(OnUnreachable, "on_unreachable", "fail, stale", [Fail, Stale]);
words!(
    ColumnType,
    "column type",
    "lww, counter, max, min, set, group=NAME, personal",
    [Lww, Counter, Max, Min, Set]
);
