//! What a table must be like to replicate under its policy, and every reason it is not.
//!
//! All reasons are told at once, each with the constraint that gives it and what to do.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use crate::{
    entry::TableDeclaration,
    id::{ColumnId, TableId},
    policy::{ColumnType, Consistency, PERSONAL_VALUE, TablePolicy, Writers},
    schema::{
        Column, Table,
        catalog::{self, MARK},
        shape::{Affinity, ColumnShape, KeyColumn, KeyShape, TableShape},
        survey::Survey,
    },
    set,
    sqlite::{self, quoted},
    value::{Collation, ValueRef},
};

/// Why a table cannot replicate as declared: one constraint and its remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("table {table:?}: {reason}; {remedy}")]
pub struct Refusal {
    /// The table.
    pub table: String,
    /// What stands in the way.
    pub reason: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Gives every table of the schema its id and its policy, and every stored column its id.
pub(crate) fn declarations(
    conn: &Connection,
    policies: &BTreeMap<String, TablePolicy>,
) -> rusqlite::Result<Vec<TableDeclaration>> {
    let mut tables = Vec::new();
    let survey = Survey::new(conn)?;
    for (id, name) in (1u32..).zip(survey.user_tables()) {
        let policy = policies
            .iter()
            .find(|(table, _)| table.eq_ignore_ascii_case(name))
            .map(|(_, policy)| policy.clone())
            .unwrap_or_default();
        tables.push(declaration(&survey, TableId(id), name, policy)?);
    }
    Ok(tables)
}

/// Gives a new table its policy, and every stored column its id.
pub(crate) fn declaration(
    survey: &Survey<'_>,
    id: TableId,
    name: &str,
    policy: TablePolicy,
) -> rusqlite::Result<TableDeclaration> {
    let columns: Vec<(ColumnId, String)> = (1u32..)
        .zip(survey.shape(name)?.stored())
        .map(|(id, column)| (ColumnId(id), column.name.clone()))
        .collect();
    let policy = with_names_of(policy, &columns);
    Ok(TableDeclaration { id, name: name.to_owned(), policy, columns })
}

/// The policy with columns named as the table names them; SQLite does not mind the case.
pub(crate) fn with_names_of(
    mut policy: TablePolicy,
    columns: &[(ColumnId, String)],
) -> TablePolicy {
    let spelled = |named: String| {
        let column = columns.iter().find(|(_, name)| name.eq_ignore_ascii_case(&named));
        column.map_or(named, |(_, name)| name.clone())
    };
    let is_there = |name: &String| columns.iter().any(|(_, known)| known == name);
    let TablePolicy { columns: merges, groups, personal, .. } = &mut policy;
    *merges = std::mem::take(merges).into_iter().map(|(c, m)| (spelled(c), m)).collect();
    // What is said anyway by saying nothing; of a column that there is not, it is a mistake to be told.
    merges.retain(|name, merge| *merge != ColumnType::default() || !is_there(name));
    *groups = std::mem::take(groups).into_iter().map(|(c, g)| (spelled(c), g)).collect();
    *personal = std::mem::take(personal).into_iter().map(spelled).collect();
    policy
}

/// Every reason why the tables cannot replicate under these policies.
pub(crate) fn check(
    conn: &Connection,
    tables: &[TableDeclaration],
) -> rusqlite::Result<Vec<Refusal>> {
    check_some(&Survey::new(conn)?, tables, &tables.iter().map(|table| table.id).collect())
}

/// Every reason why those of the tables that have changed cannot replicate, or keep others from it.
pub(crate) fn check_some(
    survey: &Survey<'_>,
    tables: &[TableDeclaration],
    changed: &BTreeSet<TableId>,
) -> rusqlite::Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    if changed.is_empty() {
        return Ok(refusals);
    }
    let mut parents = BTreeSet::new();
    for table in tables.iter().filter(|table| changed.contains(&table.id)) {
        parents.extend(survey.parents(&table.name)?.iter().map(|p| p.to_ascii_lowercase()));
    }
    let concerned = tables.iter().filter(|table| {
        changed.contains(&table.id) || parents.contains(&table.name.to_ascii_lowercase())
    });
    for table in concerned {
        let mut reasons = Reasons { table: &table.name, refusals: &mut refusals };
        local_or_not(survey, table, tables, &mut reasons)?;
        if table.policy.consistency == Consistency::Local {
            continue;
        }
        any_table(survey, table, &mut reasons)?;
        if table.policy.is_multi_writer() {
            multi_writer_table(survey, table, tables, &mut reasons)?;
        }
    }
    Ok(refusals)
}

struct Reasons<'r> {
    table: &'r str,
    refusals: &'r mut Vec<Refusal>,
}

impl Reasons<'_> {
    fn refuse(&mut self, reason: String, remedy: &'static str) {
        self.refusals.push(Refusal { table: self.table.to_owned(), reason, remedy });
    }
}

/// Rows that replicate and rows that do not cannot hold each other with foreign keys.
fn local_or_not(
    survey: &Survey<'_>,
    table: &TableDeclaration,
    tables: &[TableDeclaration],
    reasons: &mut Reasons<'_>,
) -> rusqlite::Result<()> {
    const REMEDY: &str = "drop the foreign key, or declare both or none of the tables as \"local\"";
    let is_local = |table: &TableDeclaration| table.policy.consistency == Consistency::Local;
    let parents = survey.parents(&table.name)?;
    for other in tables.iter().filter(|other| is_local(other) != is_local(table)) {
        if parents.iter().any(|parent| parent.eq_ignore_ascii_case(&other.name)) {
            let reason = format!(
                "it has a foreign key to {:?}, and only one of the two is \"local\"",
                other.name
            );
            reasons.refuse(reason, REMEDY);
        }
        let referring = survey.parents(&other.name)?;
        if referring.iter().any(|parent| parent.eq_ignore_ascii_case(&table.name)) {
            let reason = format!(
                "table {:?} has a foreign key to it, and only one of the two is \"local\"",
                other.name
            );
            reasons.refuse(reason, REMEDY);
        }
    }
    if is_local(table) && table.policy.writers == Writers::Any {
        reasons.refuse(
            "it is \"local\", and nobody writes to it from elsewhere".to_owned(),
            "leave writers out",
        );
    }
    if is_local(table) && !(table.policy.columns.is_empty() && table.policy.groups.is_empty()) {
        reasons.refuse(
            "it is \"local\", and its columns never merge".to_owned(),
            "leave the column types out",
        );
    }
    Ok(())
}

fn any_table(
    survey: &Survey<'_>,
    table: &TableDeclaration,
    reasons: &mut Reasons<'_>,
) -> rusqlite::Result<()> {
    if table.policy.consistency == Consistency::OriginStrong && table.policy.writers == Writers::Any
    {
        reasons.refuse(
            "policy = \"origin-strong\" means that only the origin writes it, and writers = \"any\" says \
             otherwise"
                .to_owned(),
            "leave writers out, or declare another policy",
        );
    }
    let shape = survey.shape(&table.name)?;
    match &shape.key {
        KeyShape::Rowid(None) => reasons.refuse(
            "it has no primary key that cannot be NULL, and its columns hide the rowid".to_owned(),
            "declare a PRIMARY KEY whose columns are NOT NULL, or rename the column \"oid\"",
        ),
        KeyShape::Alias(_) | KeyShape::Rowid(Some(_)) => {}
        KeyShape::Columns(key) => {
            for KeyColumn { column, collation } in key {
                if Collation::named(collation).is_none() {
                    let column = &shape.columns[*column].name;
                    reasons.refuse(
                        format!("its key column {column:?} is compared with COLLATE {collation}"),
                        "use BINARY, NOCASE or RTRIM in the key",
                    );
                }
            }
        }
    }
    let policy = &table.policy;
    for name in policy.declared_columns() {
        match shape.columns.iter().find(|c| c.name.eq_ignore_ascii_case(name)) {
            None => reasons.refuse(
                format!("its policy names the column {name:?}, which it does not have"),
                "correct the name in the policy",
            ),
            Some(column) => typed_column(&shape, column, policy, reasons),
        }
    }
    Ok(())
}

/// A column with a type of its own, or in a group.
fn typed_column(
    shape: &TableShape,
    column: &ColumnShape,
    policy: &TablePolicy,
    reasons: &mut Reasons<'_>,
) {
    let name = &column.name;
    let merge = policy.columns.get(name).copied().unwrap_or_default();
    let word = policy.merge_word(name);
    if merge != ColumnType::Lww && policy.groups.contains_key(name) {
        reasons.refuse(
            format!("its column {name:?} is of type {merge} and in a group"),
            "a group is one register of lww columns; leave out the type or the group",
        );
    }
    if policy.personal.contains(name) && column.generated {
        reasons.refuse(
            format!("its column {name:?} is declared personal and generated"),
            "declare those personal that it is computed from",
        );
    }
    if word == ColumnType::Lww.as_str() {
        return;
    }
    if policy.writers == Writers::Origin {
        reasons.refuse(
            format!("its column {name:?} is declared {word}, but only the origin writes the table"),
            "declare writers = \"any\", or leave the column type out",
        );
    }
    if shape.is_key(column.position) || column.generated {
        reasons.refuse(
            format!("its column {name:?} is declared {word} and part of the key or generated"),
            "give the type to an ordinary column",
        );
    } else if merge == ColumnType::Counter
        && (column.affinity != Affinity::Integer || !column.not_null)
    {
        reasons.refuse(
            format!("its column {name:?} is a counter but not INTEGER NOT NULL"),
            "declare the column INTEGER NOT NULL DEFAULT 0",
        );
    } else if merge == ColumnType::Set && !matches!(column.affinity, Affinity::Text | Affinity::Any)
    {
        reasons.refuse(
            format!("its column {name:?} is a set but not TEXT, so it may not keep JSON as it is"),
            "declare the column TEXT NOT NULL DEFAULT '[]'",
        );
    }
}

/// Looks at what the columns of a table hold that become sets, those that `was_set` says of excepted: a
/// value that is no set is refused. Gives the statements that spell the others as sets are spelled. NULL,
/// which counts as empty, may stay.
pub(super) fn check_sets(
    conn: &Connection,
    table: &Table,
    was_set: impl Fn(&Column) -> bool,
    refusals: &mut Vec<Refusal>,
) -> rusqlite::Result<Vec<String>> {
    let mut respelling = Vec::new();
    let shown = |column: &Column| match table.is_personal(column) {
        true => format!("'{PERSONAL_VALUE}'"),
        false => format!("quote({})", quoted(&column.name)),
    };
    let key: Vec<String> = table.key.iter().map(shown).collect();
    let (key, name) = (key.join(" || ', ' || "), quoted(&table.name));
    let becomes_set = |column: &&Column| column.merge == ColumnType::Set && !was_set(column);
    for column in table.cells.iter().filter(becomes_set) {
        let set = quoted(&column.name);
        let mut statement = conn
            .prepare(&format!("{MARK} SELECT {set}, {key} FROM {name} WHERE {set} IS NOT NULL"))?;
        let mut rows = statement.raw_query();
        let mut respelled = false;
        while let Some(row) = rows.next()? {
            let value = sqlite::column(row, 0)?;
            match set::spelled(value) {
                Ok(spelling) => respelled |= value != ValueRef::Text(spelling.as_bytes()),
                Err(no_set) => {
                    let row: String = row.get(1)?;
                    refusals.push(Refusal {
                        table: table.name.clone(),
                        reason: format!(
                            "its column {:?} is declared set, and the row {row} holds none: {no_set}",
                            column.name
                        ),
                        remedy: "correct the value first",
                    });
                    break;
                }
            }
        }
        if respelled {
            respelling.push(format!(
                "UPDATE {name} SET {set} = littoral_set({set})
                 WHERE {set} IS NOT NULL AND {set} IS NOT littoral_set({set})"
            ));
        }
    }
    Ok(respelling)
}

fn multi_writer_table(
    survey: &Survey<'_>,
    table: &TableDeclaration,
    tables: &[TableDeclaration],
    reasons: &mut Reasons<'_>,
) -> rusqlite::Result<()> {
    let shape = survey.shape(&table.name)?;
    for index in &shape.indexes {
        let name = &index.name;
        let listed: Vec<&str> = index.columns().map(|c| c.unwrap_or("expression")).collect();
        if index.unique && !index.is_key {
            reasons.refuse(
                format!("UNIQUE ({}) cannot hold while several nodes write at once", listed.join(", ")),
                "make it the PRIMARY KEY, make the index not unique, or declare writers = \"origin\"",
            );
        }
        if index.partial || index.columns().any(|column| column.is_none()) {
            reasons.refuse(
                format!(
                    "index {name:?} has a condition or an expression, which a merge could break"
                ),
                "index plain columns, or declare writers = \"origin\"",
            );
        }
    }
    if !survey.parents(&table.name)?.is_empty() {
        reasons.refuse(
            "it has foreign keys, which cannot hold while several nodes write at once".to_owned(),
            "drop the foreign keys, or declare writers = \"origin\"",
        );
    }
    for other in tables {
        let parents = survey.parents(&other.name)?;
        if other.id != table.id && parents.iter().any(|p| p.eq_ignore_ascii_case(&table.name)) {
            reasons.refuse(
                format!("table {:?} has a foreign key to it", other.name),
                "drop that foreign key, or declare writers = \"origin\"",
            );
        }
    }
    for column in shape.columns.iter().filter(|c| c.generated) {
        reasons.refuse(
            format!("its column {:?} is generated", column.name),
            "compute it in a view or in queries, or declare writers = \"origin\"",
        );
    }
    multi_writer_key(table, &shape, reasons);
    Ok(())
}

fn multi_writer_key(table: &TableDeclaration, shape: &TableShape, reasons: &mut Reasons<'_>) {
    for column in shape.nullable_key() {
        reasons.refuse(
            format!("its key column {:?} may be NULL", column.name),
            "declare every column of the PRIMARY KEY as NOT NULL, or writers = \"origin\"",
        );
    }
    if matches!(shape.key, KeyShape::Rowid(_)) && shape.nullable_key().next().is_none() {
        reasons.refuse(
            "it has no primary key to tell its rows apart".to_owned(),
            "declare a PRIMARY KEY whose columns are NOT NULL, or writers = \"origin\"",
        );
    }
    if shape.autoincrement {
        reasons.refuse(
            "it uses AUTOINCREMENT, and two nodes would hand out the same key".to_owned(),
            "leave AUTOINCREMENT out, use a TEXT key, or declare writers = \"origin\"",
        );
    }
    if matches!(shape.key, KeyShape::Alias(_)) && !table.policy.explicit_key {
        reasons.refuse(
            "SQLite hands out its INTEGER PRIMARY KEY, and two nodes would hand out the same"
                .to_owned(),
            "declare key = \"explicit\" if the application always gives the key, or use a TEXT key",
        );
    }
}

/// Whether a name is one that only the engine may use.
pub(crate) fn is_reserved(name: &str) -> bool {
    let prefix = catalog::PREFIX;
    name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}
