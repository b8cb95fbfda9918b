//! What each table promises and how each of its columns merges.

use std::{collections::BTreeMap, fmt, str::FromStr};

/// What a read of the table may rely on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Consistency {
    /// A consistent local snapshot.
    Eventual,
    /// A session on one node sees its own writes and never goes back in time.
    #[default]
    ReadAfterWrite,
    /// Linearizable reads and writes, both executed at the origin.
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

/// How concurrent writes to one column of a multi-writer table merge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum ColumnType {
    /// The greatest stamp wins.
    #[default]
    Lww,
    /// The sum of all increments; INTEGER NOT NULL columns only.
    Counter,
}

impl ColumnType {
    /// The name in configuration, output and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lww => "lww",
            Self::Counter => "counter",
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
    /// Merge types of columns by name; columns left out are `lww`.
    pub columns: BTreeMap<String, ColumnType>,
}

impl TablePolicy {
    /// Whether every node may write it, so that its rows have clocks.
    pub fn is_multi_writer(&self) -> bool {
        self.writers == Writers::Any && self.consistency != Consistency::Local
    }
}

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
words!(ColumnType, "column type", "lww, counter", [Lww, Counter]);
