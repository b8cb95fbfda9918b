//! [`TableShape`]: what SQLite says of a table, and how its rows are told apart.

use rusqlite::Connection;

use crate::value::Collation;

/// A table as SQLite has it.
#[derive(Debug)]
pub(crate) struct TableShape {
    /// All columns in declaration order, generated ones included.
    pub(crate) columns: Vec<ColumnShape>,
    pub(crate) key: KeyShape,
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
        let (without_rowid, strict): (bool, bool) = conn
            .prepare_cached(
                "SELECT wr, strict FROM pragma_table_list WHERE schema = 'main' AND name = ?",
            )?
            .query_row([table], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let columns = columns(conn, table, strict)?;
        let key = key(conn, table, &columns, without_rowid)?;
        let autoincrement = match &key {
            KeyShape::Alias(column) => {
                let (.., counted) = conn.column_metadata(None, table, &*columns[*column].name)?;
                counted
            }
            KeyShape::Columns(_) | KeyShape::Rowid(_) => false,
        };
        Ok(Self { columns, key, autoincrement, strict })
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

fn columns(conn: &Connection, table: &str, strict: bool) -> rusqlite::Result<Vec<ColumnShape>> {
    conn.prepare_cached(
        "SELECT cid, name, type, \"notnull\", pk, hidden, dflt_value FROM pragma_table_xinfo(?)
         ORDER BY cid",
    )?
    .query_map([table], |row| {
        let declared: String = row.get(2)?;
        Ok(ColumnShape {
            position: row.get::<_, u16>(0)?.into(),
            name: row.get(1)?,
            affinity: Affinity::of(&declared, strict),
            not_null: row.get(3)?,
            key_place: row.get::<_, u16>(4)?.into(),
            generated: matches!(row.get::<_, i64>(5)?, 2 | 3),
            default: row.get(6)?,
        })
    })?
    .collect()
}

fn key(
    conn: &Connection,
    table: &str,
    columns: &[ColumnShape],
    without_rowid: bool,
) -> rusqlite::Result<KeyShape> {
    let declared: Vec<&ColumnShape> = columns.iter().filter(|c| c.key_place > 0).collect();
    // The key's own index, which the rowid's alias does not have.
    let parts: Vec<KeyColumn> = conn
        .prepare_cached(
            "SELECT x.cid, x.coll FROM pragma_index_list(?) l, pragma_index_xinfo(l.name) x \
             WHERE l.origin = 'pk' AND x.key ORDER BY x.seqno",
        )?
        .query_map([table], |row| {
            Ok(KeyColumn { column: row.get::<_, u16>(0)?.into(), collation: row.get(1)? })
        })?
        .collect::<Result<_, _>>()?;
    if let ([column], []) = (&*declared, &*parts)
        && !without_rowid
    {
        return Ok(KeyShape::Alias(column.position));
    }
    if parts.is_empty() || declared.iter().any(|column| !column.not_null) {
        let hidden = |name: &&str| columns.iter().any(|c| c.name.eq_ignore_ascii_case(name));
        let name = ["rowid", "_rowid_", "oid"].into_iter().find(|name| !hidden(name));
        return Ok(KeyShape::Rowid(name));
    }
    Ok(KeyShape::Columns(parts))
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
