//! [`Registry`]: which tables replicate, under which policy, and how their rows are told apart.
//!
//! The origin gives tables and columns their ids; the catalog in the file holds them, and the
//! registry is that catalog joined with what SQLite says of the tables.
//!
//! Invariants:
//! - a table's key columns are its primary key's, in the key's order, or the rowid if it has none that
//!   cannot be NULL; its cells are the other stored columns, by ascending id;
//! - where keys that are equal may differ in bytes, the first cell is the key's spelling;
//! - generated columns are neither: every node computes them.

pub(crate) mod catalog;
pub(crate) mod change;
pub(crate) mod ddl;
pub(crate) mod declaring;
mod elsewhere;
mod enroll;
pub(crate) mod functions;
pub(crate) mod outcomes;
pub(crate) mod range;
pub(crate) mod row;
pub(crate) mod shape;
pub(crate) mod spelling;
mod survey;
pub(crate) mod trigger;
pub(crate) mod words;

pub use enroll::Refusal;
pub(crate) use enroll::{check, declarations};
pub(crate) use survey::Survey;
pub(crate) use trigger::check as check_triggers;
pub use trigger::{Trigger, TriggerClass};

use std::collections::BTreeMap;

use rusqlite::Connection;

use self::{
    shape::{Affinity, ColumnShape, KeyShape, TableShape},
    spelling::KEY_SPELLING,
};
use crate::{
    entry::TableDeclaration,
    id::{ColumnId, Lsn, SchemaVersion, TableId},
    policy::{ColumnType, Consistency, MaxLag, TablePolicy},
    sqlite::{ROWID, quoted},
    time::WallTime,
    value::{Collation, ValueRef, is_canonical},
    version::Dot,
};

/// The tables of the schema; those that are `local` are among them, though their rows stay here.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) version: SchemaVersion,
    /// No table ever had this id or a greater one.
    pub(crate) next_table: TableId,
    /// What is frozen until a change of the schema.
    pub(crate) frozen: Option<Frozen>,
    /// All triggers of the schema, by name.
    pub(crate) triggers: Vec<Trigger>,
    tables: Vec<Table>,
    by_id: BTreeMap<TableId, usize>,
}

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) id: TableId,
    pub(crate) name: String,
    pub(crate) policy: TablePolicy,
    /// The columns by which rows are told apart: those of the primary key, in its order, or the rowid.
    pub(crate) key: Vec<Column>,
    /// The key's spelling, if it has one, and the other stored columns, by ascending id.
    pub(crate) cells: Vec<Column>,
    /// How many columns it has, generated ones included.
    pub(crate) width: usize,
    /// No column of it ever had this id or a greater one.
    pub(crate) next_column: ColumnId,
    /// The entry at this place in this node's log gave it its merge rules. Older operations on it have
    /// left no clocks that count.
    pub(crate) since: Lsn,
    /// SQLite hands out the rowid, and none twice.
    pub(crate) autoincrement: bool,
    /// Its key is the rowid under a name of its own.
    pub(crate) is_alias: bool,
    /// The ids of the cells that have clocks, which are those of type `lww`, ascending.
    pub(crate) assigned: Vec<ColumnId>,
    /// What derived triggers keep of its rows: tables that do not replicate.
    pub(crate) targets: Vec<String>,
    /// One of these that would not learn of a row that REPLACE deletes.
    pub(crate) kept_by_deletes: Option<String>,
    /// The places of the cells of each group.
    pub(crate) groups: Vec<Vec<usize>>,
    /// Whether there is a counter among the cells.
    pub(crate) counted: bool,
    /// Whether there is a set among the cells.
    pub(crate) has_sets: bool,
    /// Whether a transaction's rows are looked at before it commits: the author stores what a merge
    /// would store.
    pub(crate) normalized: bool,
    /// Whether the table may have CHECK constraints.
    pub(crate) may_check: bool,
    /// Nothing but a collision with another row, or a NULL, keeps a row out.
    pub(crate) is_plain: bool,
    pub(crate) sql: TableSql,
}

/// A stored column.
#[derive(Debug)]
pub(crate) struct Column {
    pub(crate) id: ColumnId,
    pub(crate) name: String,
    /// Its place in the table's declaration, generated columns counted; [`ROWID`] for the rowid.
    pub(crate) position: usize,
    pub(crate) real: bool,
    /// How the key compares it; without a meaning for other columns.
    pub(crate) collation: Collation,
    pub(crate) merge: ColumnType,
}

/// Statements that every table needs, as text.
#[derive(Debug)]
pub(crate) struct TableSql {
    /// All stored columns of the row with a key: the cells, then, if keys have spellings, the key.
    pub(crate) select: String,
    /// A full row: key, then cells. OR ABORT, whatever conflict clause the table declares: a merge
    /// decides itself what a collision means.
    pub(crate) insert: String,
    /// The row with a key.
    pub(crate) delete: String,
    /// `SELECT key, cells FROM table`.
    from: String,
    /// The key in brackets, as one row value.
    key: String,
    /// ` COLLATE NOCASE` and the like, per part of the key.
    collations: Vec<String>,
    /// The key's parts with their collations, as ORDER BY takes them.
    order: String,
    /// `"k1" = ?1 AND "k2" = ?2 COLLATE NOCASE`.
    pub(crate) where_key: String,
}

impl Table {
    fn new(
        id: TableId,
        name: String,
        policy: TablePolicy,
        key: Vec<Column>,
        cells: Vec<Column>,
    ) -> Self {
        let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (place, cell) in cells.iter().enumerate() {
            if let Some(group) = policy.groups.get(&cell.name) {
                groups.entry(group).or_default().push(place);
            }
        }
        let groups = groups.into_values().collect();
        let lww = |cell: &&Column| cell.merge == ColumnType::Lww;
        let assigned = cells.iter().filter(lww).map(|cell| cell.id).collect();
        let has = |merges: &[ColumnType]| cells.iter().any(|cell| merges.contains(&cell.merge));
        Self {
            counted: has(&[ColumnType::Counter]),
            has_sets: has(&[ColumnType::Set]),
            normalized: has(&[ColumnType::Max, ColumnType::Min, ColumnType::Set]),
            may_check: false,
            width: key.len() + cells.len(),
            next_column: ColumnId(1),
            since: Lsn(0),
            is_plain: false,
            autoincrement: false,
            is_alias: false,
            targets: Vec::new(),
            kept_by_deletes: None,
            sql: TableSql::new(&name, &key, &cells),
            id,
            name,
            policy,
            key,
            assigned,
            groups,
            cells,
        }
    }

    /// Whether a column's values are personal.
    pub(crate) fn is_personal(&self, column: &Column) -> bool {
        self.policy.personal.contains(&column.name)
    }

    /// Whether every node may write it, so that its rows have clocks.
    pub(crate) fn is_multi_writer(&self) -> bool {
        self.policy.is_multi_writer()
    }

    /// Whether its rows stay on the node that wrote them.
    pub(crate) fn is_local(&self) -> bool {
        self.policy.consistency == Consistency::Local
    }

    /// All its stored columns in the order in which the table has them.
    pub(crate) fn columns(&self) -> Vec<&Column> {
        let has_id = |column: &&Column| column.id != ColumnId(0);
        let mut columns: Vec<&Column> = self.key.iter().chain(&self.cells).filter(has_id).collect();
        columns.sort_by_key(|column| column.position);
        columns
    }

    /// What the origin would declare of it.
    pub(crate) fn declaration(&self) -> TableDeclaration {
        let mut columns: Vec<(ColumnId, String)> =
            self.columns().iter().map(|column| (column.id, column.name.clone())).collect();
        columns.sort_by_key(|(id, _)| *id);
        TableDeclaration {
            id: self.id,
            name: self.name.clone(),
            policy: self.policy.clone(),
            columns,
        }
    }

    /// Whether statements must give its key, which SQLite would hand out.
    pub(crate) fn is_given_its_key(&self) -> bool {
        self.is_alias && self.is_multi_writer() && self.policy.explicit_key
    }

    /// Whether the first of its cells is the key's spelling.
    pub(crate) fn has_spelling(&self) -> bool {
        self.cells.first().is_some_and(Column::is_spelling)
    }

    /// The cells that are columns of the table.
    pub(crate) fn stored(&self) -> &[Column] {
        &self.cells[usize::from(self.has_spelling())..]
    }

    /// Whether its rows are told apart by a rowid that no column shows, which VACUUM may change.
    pub(crate) fn is_by_rowid(&self) -> bool {
        self.key.first().is_some_and(|column| column.position == ROWID)
    }

    /// Whether its key is the rowid, under a name of its own or not.
    pub(crate) fn has_rowid_key(&self) -> bool {
        self.is_alias || self.is_by_rowid()
    }

    /// The place of a column among the cells.
    pub(crate) fn cell(&self, id: ColumnId) -> Option<usize> {
        self.cells.binary_search_by_key(&id, |column| column.id).ok()
    }
}

impl Column {
    /// The cell that holds how a key is spelled.
    fn spelling() -> Self {
        Self {
            id: KEY_SPELLING,
            name: "key spelling".to_owned(),
            position: usize::MAX - 1,
            real: false,
            collation: Collation::default(),
            merge: ColumnType::Lww,
        }
    }

    /// Whether it is the cell that holds how a key is spelled, and no column.
    pub(crate) fn is_spelling(&self) -> bool {
        self.id == KEY_SPELLING
    }

    /// What the column stores: SQLite may tell an integer where a REAL column will hold a real.
    #[expect(clippy::cast_precision_loss, reason = "REAL affinity rounds just so")]
    pub(crate) fn stored<'v>(&self, value: ValueRef<'v>) -> ValueRef<'v> {
        match value {
            ValueRef::Integer(n) if self.real => ValueRef::Real(n as f64),
            other => other,
        }
    }

    /// Whether a key's encoding leads back to the stored value itself.
    pub(crate) fn is_canonical(&self, value: ValueRef<'_>) -> bool {
        is_canonical(value, self.collation, self.real)
    }
}

impl From<&ColumnShape> for Column {
    /// Without its id, which the catalog knows.
    fn from(shape: &ColumnShape) -> Self {
        Self {
            id: ColumnId(0),
            name: shape.name.clone(),
            position: shape.position,
            real: shape.affinity == Affinity::Real,
            collation: Collation::default(),
            merge: ColumnType::default(),
        }
    }
}

impl TableShape {
    fn key_columns(&self) -> Vec<Column> {
        match &self.key {
            KeyShape::Alias(column) => vec![Column::from(&self.columns[*column])],
            KeyShape::Columns(key) => key
                .iter()
                .map(|part| Column {
                    collation: Collation::named(&part.collation).unwrap_or_default(),
                    ..Column::from(&self.columns[part.column])
                })
                .collect(),
            KeyShape::Rowid(name) => vec![Column {
                id: ColumnId(0),
                name: name.unwrap_or("rowid").to_owned(),
                position: ROWID,
                real: false,
                collation: Collation::default(),
                merge: ColumnType::default(),
            }],
        }
    }
}

/// Tables that wait for a change of theirs, and take no local writes meanwhile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Frozen {
    /// The entry that froze them.
    pub(crate) dot: Dot,
    /// When it was written.
    pub(crate) since: WallTime,
    pub(crate) tables: Vec<TableId>,
    /// What is to run.
    pub(crate) script: String,
}

impl Registry {
    /// Whether the table waits for a change of it.
    pub(crate) fn is_frozen(&self, table: TableId) -> bool {
        self.frozen.as_ref().is_some_and(|frozen| frozen.tables.contains(&table))
    }

    /// Reads the catalog.
    pub(crate) fn load(conn: &Connection) -> rusqlite::Result<Self> {
        Self::load_with(&Survey::new(conn)?)
    }

    /// Reads the catalog, where it is known already what SQLite says of the tables.
    pub(crate) fn load_with(survey: &Survey<'_>) -> rusqlite::Result<Self> {
        let conn = survey.conn();
        let version = catalog::meta::<u32>(conn, "schema_version")?.unwrap_or(0);
        let next_table = catalog::meta::<u32>(conn, "next_table")?.unwrap_or(1);
        let mut registry = Self {
            version: SchemaVersion(version),
            next_table: TableId(next_table),
            frozen: catalog::frozen(conn)?,
            triggers: Vec::new(),
            tables: Vec::new(),
            by_id: BTreeMap::new(),
        };
        let mut columns = catalog::columns(conn)?;
        let mut statement = conn.prepare(
            "SELECT id, name, policy, writers, explicit_key, next_column, since, max_lag_ms, on_stale, \
             on_unreachable \
             FROM littoral_tables JOIN littoral_ids ON table_id = id ORDER BY id",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, name): (u32, String) = (row.get(0)?, row.get(1)?);
            let mut policy = TablePolicy {
                consistency: word(&row.get::<_, String>(2)?)?,
                writers: word(&row.get::<_, String>(3)?)?,
                explicit_key: row.get(4)?,
                on_unreachable: word(&row.get::<_, String>(9)?)?,
                ..TablePolicy::default()
            };
            if let Some(ms) = row.get::<_, Option<i64>>(7)? {
                let on_stale = word(&row.get::<_, String>(8)?)?;
                policy.max_lag = Some(MaxLag { ms: ms.cast_unsigned(), on_stale });
            }
            let next_column = ColumnId(row.get(5)?);
            let since = Lsn(row.get::<_, i64>(6)?.cast_unsigned());
            let shape = survey.shape(&name)?;
            let mut key = shape.key_columns();
            let mut cells: Vec<Column> =
                shape.has_spellings().then(Column::spelling).into_iter().collect();
            for (id, column, merge) in columns.remove(&TableId(id)).unwrap_or_default() {
                policy.declare_column(&column, &merge).map_err(unreadable)?;
                let merge = policy.columns.get(&column).copied().unwrap_or_default();
                let Some(found) = shape.stored().find(|c| c.name == column) else { continue };
                match key.iter_mut().find(|part| part.position == found.position) {
                    Some(part) => part.id = id,
                    None => cells.push(Column { id, merge, ..Column::from(found) }),
                }
            }
            let is_plain = survey.is_plain(&name)?;
            let mut table = Table::new(TableId(id), name, policy, key, cells);
            table.may_check = survey.may_check(&table.name);
            table.width = shape.columns.len();
            table.next_column = next_column;
            table.since = since;
            table.is_plain = is_plain;
            table.autoincrement = shape.autoincrement;
            table.is_alias = matches!(shape.key, KeyShape::Alias(_));
            registry.push(table);
        }
        registry.triggers = trigger::triggers(survey, |name| {
            registry.by_name(name).is_some_and(|t| !t.is_local())
        })?;
        for trigger in registry.triggers.iter().filter(|t| t.class == TriggerClass::Derived) {
            let Some(place) = registry.position(trigger.table.as_bytes()) else { continue };
            let table = &mut registry.tables[place];
            table.targets.extend(trigger.targets.iter().cloned());
            if trigger.on_delete {
                table.kept_by_deletes.clone_from(&trigger.targets.first().cloned());
            }
        }
        Ok(registry)
    }

    fn push(&mut self, table: Table) {
        self.by_id.insert(table.id, self.tables.len());
        self.tables.push(table);
    }

    /// All tables by ascending id.
    pub(crate) fn tables(&self) -> &[Table] {
        &self.tables
    }

    pub(crate) fn by_id(&self, id: TableId) -> Option<&Table> {
        self.by_id.get(&id).map(|&index| &self.tables[index])
    }

    /// The table with that name.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Table> {
        self.position(name.as_bytes()).map(|place| &self.tables[place])
    }

    /// The place in [`Registry::tables`] of the table with that name, which SQLite compares without
    /// regard to ASCII case.
    pub(crate) fn position(&self, name: &[u8]) -> Option<usize> {
        self.tables.iter().position(|table| table.name.as_bytes().eq_ignore_ascii_case(name))
    }
}

impl Table {
    /// A row that gives only some of its cells, in this order; the others get their default.
    pub(crate) fn insert_of<'c>(&'c self, cells: impl Iterator<Item = &'c Column>) -> String {
        TableSql::insert(&self.name, self.key.iter().chain(cells))
    }
}

impl TableSql {
    fn insert<'c>(table: &str, columns: impl Iterator<Item = &'c Column>) -> String {
        let names: Vec<String> = columns.map(|column| quoted(&column.name)).collect();
        let places: Vec<String> = (1..=names.len()).map(|i| format!("?{i}")).collect();
        format!(
            "INSERT OR ABORT INTO {}({}) VALUES({})",
            quoted(table),
            names.join(", "),
            places.join(", ")
        )
    }

    fn new(table: &str, key: &[Column], cells: &[Column]) -> Self {
        let insert =
            Self::insert(table, key.iter().chain(cells.iter().filter(|c| !c.is_spelling())));
        let table = quoted(table);
        let name = |column: &Column| quoted(&column.name);
        let keys: Vec<String> = key.iter().map(name).collect();
        let spelled = cells.first().is_some_and(Column::is_spelling);
        let values: Vec<String> = cells.iter().filter(|c| !c.is_spelling()).map(name).collect();
        let all = [keys.clone(), values.clone()].concat();
        let places: Vec<String> = (1..=all.len()).map(|i| format!("?{i}")).collect();
        // The key may compare text in another way than the column does by itself.
        let collations: Vec<String> = key
            .iter()
            .map(|column| match column.position {
                ROWID => String::new(),
                _ => format!(" COLLATE {}", column.collation.as_str()),
            })
            .collect();
        let where_key = keys
            .iter()
            .zip(&places)
            .zip(&collations)
            .map(|((k, p), collation)| format!("{k} = {p}{collation}"))
            .collect::<Vec<_>>()
            .join(" AND ");
        let selected = match (spelled, values.is_empty()) {
            (true, _) => [values.clone(), keys.clone()].concat().join(", "),
            (false, false) => values.join(", "),
            (false, true) => "1".to_owned(),
        };
        let order: Vec<String> = keys
            .iter()
            .zip(&collations)
            .map(|(key, collation)| format!("{key}{collation}"))
            .collect();
        Self {
            select: format!("{} SELECT {selected} FROM {table} WHERE {where_key}", catalog::MARK),
            insert,
            delete: format!("DELETE FROM {table} WHERE {where_key}"),
            from: format!("SELECT {} FROM {table}", all.join(", ")),
            key: format!("({})", keys.join(", ")),
            order: order.join(", "),
            collations,
            where_key,
        }
    }

    /// All rows in key order: key, then cells.
    pub(crate) fn scan(&self) -> String {
        format!("{} ORDER BY {}", self.from, self.order)
    }

    /// The rows behind a key, up to another and with it, in key order: key, then cells. The parts of
    /// the keys that bound it are its parameters.
    pub(crate) fn range(&self, after: bool, upto: bool) -> String {
        // The collation stands at the parameters: at the columns it would keep SQLite from using the
        // key's index for a row value.
        let mut place = 0;
        let mut bound = |sign: &str| {
            let parts: Vec<String> = self
                .collations
                .iter()
                .map(|collation| {
                    place += 1;
                    format!("?{place}{collation}")
                })
                .collect();
            format!("{} {sign} ({})", self.key, parts.join(", "))
        };
        let mut bounds = Vec::new();
        if after {
            bounds.push(bound(">"));
        }
        if upto {
            bounds.push(bound("<="));
        }
        let filter = if bounds.is_empty() { "" } else { " WHERE " };
        format!("{}{filter}{} ORDER BY {}", self.from, bounds.join(" AND "), self.order)
    }
}

fn word<T: std::str::FromStr>(word: &str) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    word.parse().map_err(unreadable)
}

/// A word of the catalog that this version does not know.
fn unreadable(error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
}

#[cfg(test)]
mod tests;
