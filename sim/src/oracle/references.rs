//! Foreign keys hold after every single entry, and not only where readers happen to look: each job of a
//! group is as if alone.

use littoral::TableId;

use super::{
    Check, Promise, broken,
    keys::encode_key,
    shadow::{Shadow, ShadowTable},
};

/// Every refund has its purchase, as a log leads to them.
pub(crate) fn hold(machine: usize, shadow: &Shadow) -> Check {
    let named = |name: &str| shadow.tables.iter().find(|(_, table)| table.name == name);
    let (Some((refund, table)), Some((purchase, _))) = (named("refund"), named("purchase")) else {
        return Ok(());
    };
    match orphan(shadow, *refund, table, *purchase) {
        None => Ok(()),
        Some(key) => broken(
            Promise::Atomicity,
            format!("m{machine}: after an entry, refund {key:02x?} has no purchase"),
        ),
    }
}

fn orphan(
    shadow: &Shadow,
    refund: TableId,
    table: &ShadowTable,
    purchase: TableId,
) -> Option<Vec<u8>> {
    let (column, _) = table.columns.iter().find(|(_, (name, _))| name == "purchase")?;
    let parents: Vec<&Vec<u8>> = shadow.rows_of(purchase).map(|(key, _)| key).collect();
    let lost = shadow.rows_of(refund).find(|(_, cells)| {
        let parent = cells.get(column).map(|held| encode_key(&[held], false));
        !matches!(parent, Some(Ok(key)) if parents.binary_search(&&key).is_ok())
    });
    lost.map(|(key, _)| key.clone())
}
