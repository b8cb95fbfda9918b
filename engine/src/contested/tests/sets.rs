//! What the set of a row must hold: said by the shadow's clocks, which are never dropped, and by the
//! `Orswot` of the `crdts` crate.

use super::*;

impl Replica {
    /// What an operation of this replica does to the set of its row.
    pub(super) fn set_ops(&self, op: &Op, dot: Dot) -> Vec<((Vec<u8>, u32), SetOp)> {
        let place = (op.key.clone(), op.absolute);
        let none = Orswot::new();
        let set = self.sets.get(&place).unwrap_or(&none);
        let mut ops = Vec::new();
        for (_, write) in &op.writes {
            if let Write::Set { added, removed, .. } = write {
                for element in bits(*removed) {
                    ops.push(set.rm(element, set.contains(&element).derive_rm_ctx()));
                }
                let dot = crdts::Dot::new(dot.author, dot.seq);
                ops.push(SetOp::Add { dot, members: bits(*added).collect() });
            }
        }
        ops.into_iter().map(|op| (place.clone(), op)).collect()
    }

    pub(super) fn apply_to_sets(&mut self, entry: &Written) {
        for (place, op) in &entry.set_ops {
            self.sets.entry(place.clone()).or_default().apply(op.clone());
        }
    }

    /// A living row that an entry names holds what the shadow has clocks of, and what the oracle says.
    pub(super) fn check_sets(&self, entry: &Written) {
        let mut cursor = self.shadow.cursor(&self.disk);
        for key in entry.ops.iter().map(|op| &op.key) {
            let Some(row) = self.rows.get(key) else { continue };
            let clock = cursor.row(TABLE, key).unwrap().expect("the shadow forgets nothing");
            let column = |(column, element): (ColumnId, Vec<u8>)| {
                assert_eq!(column, TAGS);
                bit(&crate::set::read_element(&mut ByteReader::new(&element)).unwrap())
            };
            assert_eq!(row[&TAGS], clock.sets.all().into_keys().map(column).sum::<i64>());
            let set = self.sets.get(&(key.clone(), clock.epoch));
            let held = bits(i64::MAX).filter(|bit| set.is_some_and(|s| s.contains(bit).val));
            assert_eq!(row[&TAGS], held.map(|bit| 1 << bit).sum::<i64>(), "{key:?}");
        }
    }
}

pub(super) fn elements(mask: i64) -> impl Iterator<Item = Element<'static>> {
    bits(mask).map(Element::Integer)
}

/// The numbers of the bits that are set.
pub(super) fn bits(mask: i64) -> impl Iterator<Item = i64> {
    (0..TAGS_MAX).filter(move |bit| mask & 1 << bit != 0)
}

pub(super) fn bit(element: &Element<'_>) -> i64 {
    let Element::Integer(bit) = element else { panic!("{element:?}") };
    1 << bit
}

pub(super) fn set_write(added: i64, removals: &[Removal<'_>]) -> Write {
    let mut change = Vec::new();
    put_change(&mut change, &elements(added).collect::<Vec<_>>(), removals);
    let removed = removals.iter().map(|removal| bit(&removal.element)).sum();
    Write::Set { added, removed, every: change.clone(), change }
}

/// Which elements that an operation adds nobody removes who knew of it.
pub(super) fn added_to_stay(history: &[Rc<Written>], op: &Op, stamp: Stamp, added: i64) -> i64 {
    let mut stay = added;
    for entry in history.iter().filter(|entry| entry.context.covers(stamp.dot())) {
        for later in entry.ops.iter().filter(|o| o.key == op.key && o.absolute == op.absolute) {
            for (_, write) in &later.writes {
                if let Write::Set { removed, .. } = write {
                    stay &= !removed;
                }
            }
        }
    }
    stay
}
