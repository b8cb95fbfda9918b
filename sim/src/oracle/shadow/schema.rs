//! What changes of the schema make of the tables and rows of a [`Shadow`], and what a freeze forbids.
//!
//! - A row has the default in a column that was added after it; so has a row whose author had not heard
//!   of the column.
//! - A table that is made anew and renamed to one dropped in the same transaction is that one: it has
//!   the other's id, and its rows and columns by their names.
//! - What is declared under the id of a table that is gone in the same segment is that table with other
//!   rules, unless a statement has dropped it: its rows stay, and nothing is known of who wrote them.
//! - Who has applied a freeze writes to its tables only after its end; when the change that it waited
//!   for has happened, nothing arrives any more of anybody who does not know of it.

use std::{collections::BTreeMap, slice};

use littoral::{
    ColumnId, Consistency, Dot, Entry, Freeze, Segment, TableChange, TableDeclaration, TableId,
    VersionVector,
};
use rusqlite::Connection;

use super::{Held, Shadow, ShadowTable, row::Row};

/// A freeze that was applied.
#[derive(Clone, Debug)]
pub(super) struct ShadowFreeze {
    freeze: Dot,
    tables: Vec<(TableId, String)>,
    ended: Option<Dot>,
    /// It ended with the change that it waited for.
    happened: bool,
}

/// What a dropped table leaves to the one that takes its place.
struct Estate {
    id: TableId,
    table: ShadowTable,
    rows: Vec<(Vec<u8>, Row)>,
    sequence: Option<i64>,
}

impl ShadowTable {
    /// A table as declared, with nothing known of defaults.
    fn declared(declaration: TableDeclaration) -> Self {
        let policy = declaration.policy;
        let mut groups: BTreeMap<&str, Vec<ColumnId>> = BTreeMap::new();
        for (id, name) in &declaration.columns {
            if let Some(group) = policy.groups.get(name) {
                groups.entry(group).or_default().push(*id);
            }
        }
        let groups = groups.into_values().collect();
        let is_personal = |(_, name): &&(ColumnId, String)| policy.personal.contains(name);
        let personal = declaration.columns.iter().filter(is_personal).map(|(id, _)| *id).collect();
        let column = |(id, name): (ColumnId, String)| {
            let merge = policy.columns.get(&name).copied().unwrap_or_default();
            (id, (name, merge))
        };
        Self {
            name: declaration.name,
            any: policy.is_multi_writer(),
            local: policy.consistency == Consistency::Local,
            columns: declaration.columns.into_iter().map(column).collect(),
            personal,
            groups,
            defaults: BTreeMap::new(),
        }
    }

    /// Whether operations may name the column; 0 is the spelling of the key.
    pub(super) fn has(&self, column: ColumnId) -> bool {
        column == ColumnId(0) || self.columns.contains_key(&column)
    }
}

impl Shadow {
    /// Takes changes of tables, which follow these statements.
    pub(super) fn change_tables(
        &mut self,
        statements: &[String],
        changes: Vec<TableChange>,
    ) -> Result<(), String> {
        self.changes += u64::from(!self.tables.is_empty());
        let mut left: Option<Estate> = None;
        for change in changes {
            match change {
                TableChange::Dropped(id) => left = Some(self.drop_table(id)?),
                TableChange::Declared(table) => {
                    let id = table.id;
                    let is_new = !self.tables.contains_key(&id);
                    let passes_on = |left: &Estate| match left.id == id {
                        true => !is_dropped(&left.table.name, statements),
                        false => is_new && is_renamed(&left.table.name, statements),
                    };
                    let estate = left.take().filter(passes_on);
                    self.declare(table, statements)?;
                    if let Some(estate) = estate {
                        self.inherit(id, estate);
                    }
                }
            }
        }
        Ok(())
    }

    fn drop_table(&mut self, id: TableId) -> Result<Estate, String> {
        let Some(table) = self.tables.remove(&id) else {
            return Err(format!("table {} is dropped, and was never declared", id.0));
        };
        let mut behind = self.rows.split_off(&(id, Vec::new()));
        let mut others = behind.split_off(&(TableId(id.0 + 1), Vec::new()));
        self.rows.append(&mut others);
        let rows = behind.into_iter().map(|((_, key), row)| (key, row)).collect();
        Ok(Estate { id, table, rows, sequence: self.sequences.remove(&id) })
    }

    fn inherit(&mut self, id: TableId, estate: Estate) {
        let Some(table) = self.tables.get(&id) else { return };
        let mut ids = BTreeMap::from([(ColumnId(0), ColumnId(0))]);
        for (column, (name, _)) in &table.columns {
            let before = estate.table.columns.iter().find(|(_, (old, _))| old == name);
            ids.extend(before.map(|(before, _)| (*before, *column)));
        }
        for (key, row) in estate.rows {
            let Some(cells) = row.cells else { continue };
            let known = |(id, held)| Some((*ids.get(&id)?, held));
            let cells = Some(cells.into_iter().filter_map(known).collect());
            self.rows.insert((id, key), Row { cells, ..Row::default() });
        }
        self.sequences.extend(estate.sequence.map(|last| (id, last)));
    }

    fn declare(&mut self, table: TableDeclaration, statements: &[String]) -> Result<(), String> {
        let id = table.id;
        let mut new = ShadowTable::declared(table);
        if let Some(old) = self.tables.get(&id) {
            let mut added = BTreeMap::new();
            for (column, (name, _)) in &new.columns {
                if !old.columns.contains_key(column) {
                    added.insert(*column, default_of(statements, old, name)?);
                }
            }
            let kept = old.defaults.iter().filter(|(column, _)| new.has(**column));
            new.defaults = kept.map(|(id, held)| (*id, held.clone())).collect();
            new.defaults.extend(added.clone());
            for (_, row) in of_table(&mut self.rows, id) {
                if let Some(cells) = &mut row.cells {
                    cells.retain(|column, _| new.has(*column));
                    cells.extend(added.clone());
                }
                row.clocks.retain(|column, _| new.has(*column));
                row.sets.retain(|column, _| new.has(*column));
            }
        }
        self.tables.insert(id, new);
        Ok(())
    }

    // --- Freezes

    pub(super) fn freeze(&mut self, entry: &Entry, freeze: Freeze) -> Result<(), String> {
        if let Some(open) = self.freezes.iter().find(|freeze| freeze.ended.is_none()) {
            return Err(format!("it freezes tables while those of {} are frozen", open.freeze));
        }
        let mut tables = Vec::new();
        for id in freeze.tables {
            let Some(table) = self.tables.get(&id) else {
                return Err(format!("it freezes table {}, which there is not", id.0));
            };
            tables.push((id, table.name.clone()));
        }
        self.freezes.push(ShadowFreeze {
            freeze: entry.header.dot,
            tables,
            ended: None,
            happened: false,
        });
        Ok(())
    }

    /// What a freeze waited for happens after a frontier that covers it.
    pub(super) fn check_end(&self, entry: &Entry) -> Result<(), String> {
        for segment in entry.segments() {
            let Ok(Segment::Unfreeze { freeze, failure: None }) = segment else { continue };
            let (number, covered) = &self.frontier;
            if !covered.covers(freeze) {
                return Err(format!(
                    "a change waits for {freeze} and happens after frontier {number} over {covered}"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn unfreeze(
        &mut self,
        entry: &Entry,
        freeze: Dot,
        happened: bool,
    ) -> Result<(), String> {
        let mut freezes = self.freezes.iter_mut();
        let Some(known) = freezes.find(|known| known.freeze == freeze && known.ended.is_none())
        else {
            return Err(format!("it ends {freeze}, which freezes nothing"));
        };
        known.ended = Some(entry.header.dot);
        known.happened = happened;
        Ok(())
    }

    /// Nobody writes to a table who knows that it is frozen; and behind the change there is nothing of
    /// anybody who does not know of it.
    pub(super) fn check_frozen(
        &self,
        table: TableId,
        entry: &Entry,
        seen: &VersionVector,
    ) -> Result<(), String> {
        for freeze in &self.freezes {
            let concerns = freeze.tables.iter().any(|(id, _)| *id == table);
            let knows_end = freeze.ended.is_some_and(|end| seen.covers(end));
            if !concerns || knows_end {
                continue;
            }
            let knows = seen.covers(freeze.freeze);
            if (knows || freeze.happened) && !ends(entry, freeze.freeze) {
                let what = if knows { "had applied" } else { "did not know" };
                return Err(format!("its author {what} {}, which froze the table", freeze.freeze));
            }
        }
        Ok(())
    }

    /// Whether a table of that name is frozen.
    pub(crate) fn is_frozen(&self, table: &str) -> bool {
        let mut open = self.freezes.iter().filter(|freeze| freeze.ended.is_none());
        open.any(|freeze| freeze.tables.iter().any(|(_, name)| name == table))
    }

    /// Whether a table of that name is frozen, or was after so many freezes.
    pub(crate) fn was_frozen_since(&self, table: &str, freezes: u64) -> bool {
        let since = self.freezes.iter().skip(usize::try_from(freezes).unwrap_or(usize::MAX));
        let concerns = |freeze: &ShadowFreeze| freeze.tables.iter().any(|(_, name)| name == table);
        self.is_frozen(table) || since.into_iter().any(concerns)
    }

    /// How many freezes there were, and how many ended with the change that they waited for.
    pub(crate) fn freezes(&self) -> [u64; 2] {
        let happened = self.freezes.iter().filter(|freeze| freeze.happened).count();
        [self.freezes.len() as u64, happened as u64]
    }

    /// The ids of the tables that are frozen, ascending.
    pub(crate) fn frozen(&self) -> Vec<TableId> {
        let open = self.freezes.iter().filter(|freeze| freeze.ended.is_none());
        open.flat_map(|freeze| freeze.tables.iter().map(|(id, _)| *id)).collect()
    }
}

fn of_table(
    rows: &mut BTreeMap<(TableId, Vec<u8>), Row>,
    table: TableId,
) -> impl Iterator<Item = (&(TableId, Vec<u8>), &mut Row)> {
    rows.range_mut((table, Vec::new())..).take_while(move |((id, _), _)| *id == table)
}

fn ends(entry: &Entry, dot: Dot) -> bool {
    entry
        .segments()
        .any(|segment| matches!(segment, Ok(Segment::Unfreeze { freeze, .. }) if freeze == dot))
}

/// Whether one of these statements gives the table another name.
fn is_renamed(table: &str, statements: &[String]) -> bool {
    statements.iter().any(|statement| {
        let rest = behind(statement, "alter table");
        rest.is_some_and(|rest| {
            rest.split_once(" rename to ").is_some_and(|(name, _)| is_name(name, table))
        })
    })
}

/// Whether these statements drop the table, and rename none to its name after that.
fn is_dropped(table: &str, statements: &[String]) -> bool {
    let drops = |statement| {
        let rest = behind(statement, "drop table");
        rest.is_some_and(|rest| {
            is_name(rest.trim().strip_prefix("if exists").unwrap_or(&rest), table)
        })
    };
    let takes_its_name = |statement| {
        let rest = behind(statement, "alter table");
        let names = rest.as_ref().and_then(|rest| rest.split_once(" rename to "));
        names.is_some_and(|(_, to)| is_name(to, table))
    };
    statements.iter().fold(false, |dropped, next| drops(next) || dropped && !takes_its_name(next))
}

/// What follows in a statement that begins with these words, in small letters.
fn behind(statement: &str, words: &str) -> Option<String> {
    statement.trim().to_ascii_lowercase().strip_prefix(words).map(str::to_owned)
}

fn is_name(text: &str, table: &str) -> bool {
    text.trim().trim_matches(['"', '`', '[', ']', '\'']).eq_ignore_ascii_case(table)
}

/// What rows have in a column that one of the statements adds to a table: SQLite is asked about a table
/// of that name with columns of these names.
fn default_of(statements: &[String], table: &ShadowTable, column: &str) -> Result<Held, String> {
    let unknown = |error| format!("what column {column:?} begins with is not known: {error}");
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let scratch = Connection::open_in_memory().map_err(unknown)?;
    let names: Vec<String> = table.columns.values().map(|(name, _)| quoted(name)).collect();
    let name = quoted(&table.name);
    let create = format!("CREATE TABLE {name} ({})", names.join(", "));
    scratch.execute_batch(&create).map_err(unknown)?;
    // Qualified, since a name in quotes that is not found is text to SQLite.
    let select = format!("SELECT {name}.{} FROM {name}", quoted(column));
    // A table that takes this one's place was made by an earlier segment; what is added to it is the same.
    let stays = |statement: &&String| !is_dropped(&table.name, slice::from_ref(*statement));
    for statement in statements.iter().filter(stays) {
        // Those that are about other tables fail.
        let _ = scratch.execute_batch(statement);
        // What follows may give the table another name.
        if scratch.prepare(&select).is_ok() {
            break;
        }
    }
    scratch.execute_batch(&format!("INSERT INTO {name} DEFAULT VALUES")).map_err(unknown)?;
    scratch.query_row(&select, [], |row| Ok(Held::from(row.get_ref(0)?))).map_err(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_statement_that_adds_the_column() {
        let columns = [(ColumnId(1), ("id".to_owned(), littoral::ColumnType::Lww))].into();
        let table = ShadowTable {
            name: "ware".to_owned(),
            any: false,
            local: false,
            columns,
            personal: [].into(),
            groups: Vec::new(),
            defaults: BTreeMap::new(),
        };
        let statements = [
            "CREATE INDEX other_by ON other (a)",
            "ALTER TABLE ware ADD COLUMN c1 TEXT DEFAULT 12",
            "ALTER TABLE ware RENAME TO goods",
        ];
        let due = Ok(Held::Text(b"12".to_vec()));
        assert_eq!(default_of(&statements.map(str::to_owned), &table, "c1"), due);
        assert!(default_of(&[], &table, "c1").is_err());
        let rebuilt = [
            "DROP TABLE ware",
            "ALTER TABLE new_ware RENAME TO ware",
            "ALTER TABLE ware ADD COLUMN c1 TEXT DEFAULT 12",
        ];
        let due = Ok(Held::Text(b"12".to_vec()));
        assert_eq!(default_of(&rebuilt.map(str::to_owned), &table, "c1"), due);
    }

    #[test]
    fn a_table_that_takes_the_name_of_a_dropped_one_is_not_dropped() {
        let rebuilt = ["DROP TABLE stall", "ALTER TABLE new_stall RENAME TO stall"];
        let rebuilt = rebuilt.map(str::to_owned);
        assert!(is_dropped("stall", &rebuilt[..1]));
        assert!(!is_dropped("stall", &rebuilt));
        assert!(!is_dropped("new_stall", &rebuilt));
        let again = [rebuilt.as_slice(), &rebuilt[..1]].concat();
        assert!(is_dropped("stall", &again));
    }
}
