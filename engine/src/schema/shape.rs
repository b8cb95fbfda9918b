//! [`TableShape`]: what SQLite says of a table, and how its rows are told apart.

use rusqlite::Connection;

use crate::{schema::survey::Kind, sqlite::quoted, value::Collation};

/// A table as SQLite has it.
#[derive(Debug)]
pub(crate) struct TableShape {
    /// All columns in declaration order, generated ones included.
    pub(crate) columns: Vec<ColumnShape>,
    pub(crate) key: KeyShape,
    /// Those of its constraints included; the newest first.
    pub(crate) indexes: Vec<IndexShape>,
    /// SQLite hands out the rowid, and none twice.
    pub(crate) autoincrement: bool,
    /// Every column checks the types of its values.
    pub(crate) strict: bool,
}

/// A column of a table.
#[derive(Debug)]
pub(crate) struct ColumnShape {
    pub(crate) name: String,
    /// Its place in the declaration.
    pub(crate) position: usize,
    pub(crate) affinity: Affinity,
    pub(crate) not_null: bool,
    pub(crate) generated: bool,
    /// The text of its default.
    pub(crate) default: Option<String>,
    /// From 1, for a column of the primary key.
    key_place: usize,
}

/// An index of a table.
#[derive(Debug)]
pub(crate) struct IndexShape {
    pub(crate) name: String,
    pub(crate) unique: bool,
    /// It is that of the primary key.
    pub(crate) is_key: bool,
    /// It has a condition.
    pub(crate) partial: bool,
    /// What it holds of a row; behind what it orders by, what tells rows apart.
    parts: Vec<IndexPart>,
}

#[derive(Debug)]
struct IndexPart {
    /// The place of the column; of the rowid and of an expression it is negative.
    column: i64,
    /// `None` of an expression.
    name: Option<String>,
    collation: String,
    /// The index orders by it.
    orders: bool,
}

/// How the rows of a table are told apart.
#[derive(Debug)]
pub(crate) enum KeyShape {
    /// By an INTEGER PRIMARY KEY, which is the rowid: its place among the columns.
    Alias(usize),
    /// By the other columns of a primary key, in its order.
    Columns(Vec<KeyColumn>),
    /// By the rowid under this name, because there is no primary key, or one that may be NULL; `None`
    /// if columns hide all its names.
    Rowid(Option<&'static str>),
}

/// A column of a primary key.
#[derive(Debug)]
pub(crate) struct KeyColumn {
    /// Its place among the columns.
    pub(crate) column: usize,
    /// The name of the collation by which the key compares it.
    pub(crate) collation: String,
}

/// What a column prefers to store, after <https://sqlite.org/datatype3.html>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Affinity {
    Integer,
    Real,
    Text,
    Numeric,
    /// Every value as it comes.
    Any,
    /// Of a STRICT table: nothing but blobs.
    OnlyBlob,
}

impl TableShape {
    pub(crate) fn read(conn: &Connection, table: &str) -> rusqlite::Result<Self> {
        let kind = conn
            .prepare(&format!("PRAGMA main.table_list({})", quoted(table)))?
            .query_row([], Kind::read)?;
        Self::read_as(conn, table, &kind)
    }

    pub(super) fn read_as(conn: &Connection, table: &str, kind: &Kind) -> rusqlite::Result<Self> {
        let Kind { without_rowid, strict, .. } = *kind;
        let columns = columns(conn, table, strict)?;
        let indexes = indexes(conn, table)?;
        let key = key(&columns, &indexes, without_rowid);
        let autoincrement = match &key {
            KeyShape::Alias(column) => {
                let (.., counted) = conn.column_metadata(None, table, &*columns[*column].name)?;
                counted
            }
            KeyShape::Columns(_) | KeyShape::Rowid(_) => false,
        };
        Ok(Self { columns, key, indexes, autoincrement, strict })
    }

    /// The columns that are stored, in declaration order.
    pub(crate) fn stored(&self) -> impl Iterator<Item = &ColumnShape> {
        self.columns.iter().filter(|column| !column.generated)
    }

    /// Whether two keys that are equal may differ in bytes.
    pub(crate) fn has_spellings(&self) -> bool {
        let KeyShape::Columns(key) = &self.key else { return false };
        key.iter().any(|KeyColumn { column, collation }| {
            let by_text = Collation::named(collation) != Some(Collation::Binary);
            by_text || self.columns[*column].affinity == Affinity::Any
        })
    }

    /// The columns of the key that may be NULL, if that is why rows are told apart by rowid.
    pub(crate) fn nullable_key(&self) -> impl Iterator<Item = &ColumnShape> {
        let by_rowid = matches!(self.key, KeyShape::Rowid(_));
        self.columns.iter().filter(move |c| by_rowid && c.key_place > 0 && !c.not_null)
    }

    /// Whether the column at that place in the declaration belongs to the key by which rows are told
    /// apart.
    pub(crate) fn is_key(&self, position: usize) -> bool {
        match &self.key {
            KeyShape::Alias(column) => *column == position,
            KeyShape::Columns(key) => key.iter().any(|part| part.column == position),
            KeyShape::Rowid(_) => false,
        }
    }
}

impl IndexShape {
    /// The columns it orders by; `None` stands for an expression.
    pub(crate) fn columns(&self) -> impl Iterator<Item = Option<&str>> {
        self.parts.iter().filter(|part| part.orders).map(|part| part.name.as_deref())
    }

    pub(crate) fn has_expressions(&self) -> bool {
        /// Instead of a column's place.
        const EXPRESSION: i64 = -2;
        self.parts.iter().any(|part| part.column == EXPRESSION)
    }
}

fn columns(conn: &Connection, table: &str, strict: bool) -> rusqlite::Result<Vec<ColumnShape>> {
    conn.prepare(&format!("PRAGMA main.table_xinfo({})", quoted(table)))?
        .query_map([], |row| {
            let declared: String = row.get(2)?;
            Ok(ColumnShape {
                position: row.get::<_, u16>(0)?.into(),
                name: row.get(1)?,
                affinity: Affinity::of(&declared, strict),
                not_null: row.get(3)?,
                default: row.get(4)?,
                key_place: row.get::<_, u16>(5)?.into(),
                generated: matches!(row.get::<_, i64>(6)?, 2 | 3),
            })
        })?
        .collect()
}

fn indexes(conn: &Connection, table: &str) -> rusqlite::Result<Vec<IndexShape>> {
    let mut indexes = conn
        .prepare(&format!("PRAGMA main.index_list({})", quoted(table)))?
        .query_map([], |row| {
            Ok(IndexShape {
                name: row.get(1)?,
                unique: row.get(2)?,
                is_key: row.get_ref(3)?.as_str()? == "pk",
                partial: row.get(4)?,
                parts: Vec::new(),
            })
        })?
        .collect::<Result<Vec<_>, _>>()?;
    for index in &mut indexes {
        index.parts = conn
            .prepare(&format!("PRAGMA main.index_xinfo({})", quoted(&index.name)))?
            .query_map([], |row| {
                Ok(IndexPart {
                    column: row.get(1)?,
                    name: row.get(2)?,
                    collation: row.get(4)?,
                    orders: row.get(5)?,
                })
            })?
            .collect::<Result<_, _>>()?;
    }
    Ok(indexes)
}

fn key(columns: &[ColumnShape], indexes: &[IndexShape], without_rowid: bool) -> KeyShape {
    let declared: Vec<&ColumnShape> = columns.iter().filter(|c| c.key_place > 0).collect();
    // The key's own index, which the rowid's alias does not have.
    let parts = indexes.iter().filter(|index| index.is_key).flat_map(|index| &index.parts);
    let parts: Vec<KeyColumn> = parts
        .filter(|part| part.orders)
        .filter_map(|part| {
            let column = usize::try_from(part.column).ok()?;
            Some(KeyColumn { column, collation: part.collation.clone() })
        })
        .collect();
    if let ([column], []) = (&*declared, &*parts)
        && !without_rowid
    {
        return KeyShape::Alias(column.position);
    }
    if parts.is_empty() || declared.iter().any(|column| !column.not_null) {
        let hidden = |name: &&str| columns.iter().any(|c| c.name.eq_ignore_ascii_case(name));
        let name = ["rowid", "_rowid_", "oid"].into_iter().find(|name| !hidden(name));
        return KeyShape::Rowid(name);
    }
    KeyShape::Columns(parts)
}

impl ColumnShape {
    /// What computes its default, if it has one, as the column stores it but for numbers in text.
    pub(crate) fn default_sql(&self) -> Option<String> {
        let default = self.default.as_deref()?;
        // A bare word is a string to SQLite where a default is declared, and a column elsewhere.
        let word = default.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && default.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let constant =
            ["NULL", "TRUE", "FALSE", "CURRENT_TIME", "CURRENT_DATE", "CURRENT_TIMESTAMP"];
        let sql = if word && !constant.iter().any(|word| word.eq_ignore_ascii_case(default)) {
            format!("'{default}'")
        } else {
            format!("({default})")
        };
        Some(match self.affinity {
            Affinity::Text => format!("iif(typeof({sql}) = 'blob', {sql}, CAST({sql} AS TEXT))"),
            _ => sql,
        })
    }

    /// Whether a STRICT table takes its default, which SQLite looks at only where there are rows.
    pub(crate) fn takes_default(&self, conn: &Connection) -> rusqlite::Result<bool> {
        let Some(default) = self.default_sql() else { return Ok(true) };
        let fits = match self.affinity {
            Affinity::Integer => {
                "CASE typeof(d) WHEN 'real' THEN d = CAST(d AS INTEGER)
                                WHEN 'text' THEN d = CAST(CAST(d AS INTEGER) AS TEXT)
                                ELSE typeof(d) = 'integer' END"
            }
            Affinity::Real | Affinity::Numeric => "typeof(d) IN ('integer', 'real')",
            // Anything but a blob was made text above.
            Affinity::Text => "typeof(d) = 'text'",
            Affinity::OnlyBlob => "typeof(d) = 'blob'",
            Affinity::Any => "TRUE",
        };
        let sql = format!("SELECT d IS NULL OR {fits} FROM (SELECT {default} AS d)");
        conn.query_row(&sql, [], |row| row.get(0))
    }
}

impl Affinity {
    fn of(declared: &str, strict: bool) -> Self {
        let declared = declared.to_ascii_uppercase();
        let has = |part: &str| declared.contains(part);
        if strict && declared == "ANY" {
            Self::Any
        } else if strict && declared == "BLOB" {
            Self::OnlyBlob
        } else if has("INT") {
            Self::Integer
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Self::Text
        } else if has("BLOB") || declared.is_empty() {
            Self::Any
        } else if has("REAL") || has("FLOA") || has("DOUB") {
            Self::Real
        } else {
            Self::Numeric
        }
    }
}
