//! [`Tape`]: adding events, and what is left of them after a statement failed.

use super::*;

impl Tape {
    /// Gives the events by table and key, those of one key in the order in which they happened, and the
    /// bytes they refer to: block by block, each of which holds all events of its rows.
    pub(super) fn in_order<E>(
        &self,
        mut each: impl FnMut(&[Event], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        /// Enough for cache misses to overlap while a block is copied, few enough to stay in the cache.
        const BLOCK_EVENTS: usize = 1024;
        let Self { arena, events, .. } = self;
        if events.is_sorted_by(|a, b| (a.table, a.key_in(arena)) <= (b.table, b.key_in(arena))) {
            return each(events, arena);
        }
        let order: Vec<usize> = self.order().collect();
        let (mut block, mut bytes) = (Vec::with_capacity(BLOCK_EVENTS), Vec::new());
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let mut count = rest.len().min(BLOCK_EVENTS);
            let last = events[rest[count - 1]];
            let alike = |place: &&usize| events[**place].is_of(&last, arena);
            count += rest[count..].iter().take_while(alike).count();
            let (now, behind) = rest.split_at(count);
            rest = behind;
            block.clear();
            bytes.clear();
            block.extend(now.iter().map(|place| {
                let event = events[*place];
                let start = bytes.len();
                bytes.extend_from_slice(&arena[event.key..event.end]);
                let cells = start + (event.cells - event.key);
                Event { key: start, cells, end: bytes.len(), ..event }
            }));
            each(&block, &bytes)?;
        }
        Ok(())
    }

    /// How many events there are or were: the ordinal of the next one.
    pub(super) fn total(&self) -> u64 {
        self.spilled + self.events.len() as u64
    }

    /// What it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.arena.len() + self.events.len() * size_of::<Event>()
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { chapters: 0, events: self.total(), arena: self.arena.len() }
    }

    pub(super) fn back_to(&mut self, mark: Mark) {
        self.counted.retain(|(_, first)| *first < mark.events);
        match (mark.events.checked_sub(self.spilled), &mut self.runs) {
            (None, Some(runs)) => {
                let total = self.spilled + self.events.len() as u64;
                if !planted(Bug::SpilledRowsKept) {
                    runs.kill(mark.events..total);
                }
                // Ordinals of events that may be on disk are not used again.
                self.spilled = total;
                self.events.clear();
                self.arena.clear();
            }
            (first, _) => {
                self.events.truncate(usize::try_from(first.unwrap_or(0)).unwrap_or(usize::MAX));
                self.arena.truncate(mark.arena);
            }
        }
    }

    /// Puts all events that are in memory on disk, as a sorted run.
    pub(super) fn spill(&mut self, file: &File) -> rusqlite::Result<()> {
        let mut runs = match self.runs.take() {
            Some(runs) => runs,
            None => Runs::open(file)?,
        };
        let first = self.spilled;
        let result = self.run(&mut runs, first);
        self.runs = Some(runs);
        result?;
        self.spilled = self.total();
        self.events.clear();
        self.arena.clear();
        Ok(())
    }

    pub(super) fn run(&self, runs: &mut Runs, first: u64) -> rusqlite::Result<()> {
        for place in self.order() {
            let event = &self.events[place];
            runs.push(&RunEvent {
                table: event.table,
                change: event.change,
                key: event.key_in(&self.arena),
                ordinal: first + place as u64,
                cells: event.cells_in(&self.arena),
            })?;
        }
        runs.end_run()
    }

    /// The places of the events by table and key, those of one key in the order in which they
    /// happened.
    pub(super) fn order(&self) -> impl Iterator<Item = usize> {
        let places = self.events.iter().enumerate();
        let mut order: Vec<u128> =
            places.map(|(place, event)| rank(place, event, &self.arena)).collect();
        order.sort_unstable();
        let key_at = |rank: u128| self.events[place_in(rank)].key_in(&self.arena);
        for alike in order.chunk_by_mut(|a, b| *a >> PLACE_BITS == *b >> PLACE_BITS) {
            if alike.len() > 1 {
                alike.sort_unstable_by(|a, b| key_at(*a).cmp(key_at(*b)).then_with(|| a.cmp(b)));
            }
        }
        order.into_iter().map(place_in)
    }

    /// Once it is not small any more, has address space for a large transaction at once: memory is
    /// taken only where it is written to, and growing by doubling would copy all, some times over.
    pub(super) fn make_room(&mut self) {
        const FROM_BYTES: usize = 1 << 20;
        const ROOM_BYTES: usize = 48 << 20;
        if self.arena.len() >= FROM_BYTES && self.arena.capacity() < ROOM_BYTES {
            self.arena.reserve_exact(ROOM_BYTES - self.arena.len());
            self.events.reserve(ROOM_BYTES / size_of::<Event>() / 2);
        }
    }

    pub(super) fn push(
        &mut self,
        table: &Table,
        index: u32,
        change: Change,
        key: usize,
        cells: usize,
    ) {
        if table.autoincrement
            && change == Change::Insert
            && self.counted.iter().all(|(counted, _)| *counted != index)
        {
            self.counted.push((index, self.total()));
        }
        self.events.push(Event { key, cells, end: self.arena.len(), table: index, change });
    }

    /// An incremental blob write arrives as the deletion of the row; whoever writes so has the recorder
    /// read the row again.
    pub(super) fn record(
        &mut self,
        table: &Table,
        scope: Scope,
        event: &RowEvent<'_>,
    ) -> Result<(), Untellable> {
        match event.change {
            Change::Insert => {
                self.whole_row(scope.index, table, Change::Insert, event, Moment::After)
            }
            // If the row comes back, what it held is read where this transaction is not seen yet. A row
            // whose blob is written in place stays.
            Change::Delete if scope.alone && scope.changeable.is_nothing() && !event.blob_write => {
                let key = self.key(table, event, Moment::Before)?;
                self.push(table, scope.index, Change::Delete, key, self.arena.len());
                Ok(())
            }
            Change::Delete => {
                self.whole_row(scope.index, table, Change::Delete, event, Moment::Before)
            }
            Change::Update => self.update(scope, table, event),
        }
    }

    pub(super) fn whole_row(
        &mut self,
        index: u32,
        table: &Table,
        change: Change,
        event: &RowEvent<'_>,
        moment: Moment,
    ) -> Result<(), Untellable> {
        let key = self.key(table, event, moment)?;
        let start = self.arena.len();
        if table.has_spelling() {
            self.spelling(table, event, moment)?;
        }
        for column in table.stored() {
            let value = event
                .at(moment, column.position)
                .map_err(|e| Untellable::sqlite(&column.name, e))?;
            put_cell(&mut self.arena, column.stored(value));
        }
        self.push(table, index, change, key, start);
        Ok(())
    }

    pub(super) fn update(
        &mut self,
        scope: Scope,
        table: &Table,
        event: &RowEvent<'_>,
    ) -> Result<(), Untellable> {
        let key = self.key(table, event, Moment::Before)?;
        let start = self.arena.len();
        if (scope.changeable.contains_key() || scope.verify) && respells(table, event)? {
            assert!(scope.changeable.contains_key(), "a statement changed a key unannounced");
            let after = self.key(table, event, Moment::After)?;
            let another = self.arena[key..start] != self.arena[after..];
            self.arena.truncate(start);
            if another {
                // Another key is another row.
                self.arena.truncate(key);
                self.whole_row(scope.index, table, Change::Delete, event, Moment::Before)?;
                return self.whole_row(scope.index, table, Change::Insert, event, Moment::After);
            }
            if table.has_spelling() && !planted(Bug::RespellingIgnored) {
                put_varint(&mut self.arena, 0);
                self.spelling(table, event, Moment::Before)?;
                self.spelling(table, event, Moment::After)?;
            }
        }
        // Cells of a group are captured together, so that what is folded of them is whole.
        let differs = |place: usize| {
            scope.changeable.contains(place)
                && values(&table.cells[place], event).is_ok_and(|(old, new)| !same(old, new))
        };
        let assigned = assigned_with(&table.groups, &differs);
        for (place, column) in (usize::from(table.has_spelling())..).zip(table.stored()) {
            let can_change = scope.changeable.contains(place);
            let with_group = !table.groups.is_empty() && assigned(place);
            if !can_change && !scope.verify && !with_group {
                continue;
            }
            let (old, new) =
                values(column, event).map_err(|e| Untellable::sqlite(&column.name, e))?;
            if with_group || !same(old, new) {
                assert!(
                    can_change || same(old, new),
                    "a statement changed {}.{} unannounced",
                    table.name,
                    column.name
                );
                put_varint(&mut self.arena, place as u64);
                put_cell(&mut self.arena, old);
                put_cell(&mut self.arena, new);
            }
        }
        if self.arena.len() == start {
            self.arena.truncate(key);
        } else {
            self.push(table, scope.index, Change::Update, key, start);
        }
        Ok(())
    }

    pub(super) fn key(
        &mut self,
        table: &Table,
        event: &RowEvent<'_>,
        moment: Moment,
    ) -> Result<usize, Untellable> {
        let start = self.arena.len();
        for column in &table.key {
            let position = key_position(table, column);
            let value =
                event.at(moment, position).map_err(|e| Untellable::sqlite(&column.name, e))?;
            if !table.has_spelling() && !column.is_canonical(value) {
                // Its canonical key is that of the integer, and another node would store that.
                return Err(Untellable {
                    column: Some(column.name.clone()),
                    what: "its column's type does not turn this REAL into the INTEGER it equals; \
                           store the INTEGER"
                        .to_owned(),
                });
            }
            put_key_part(&mut self.arena, value, column.collation).map_err(|_| Untellable {
                column: Some(column.name.clone()),
                what: "a key cannot be NULL".to_owned(),
            })?;
        }
        Ok(start)
    }

    pub(super) fn spelling(
        &mut self,
        table: &Table,
        event: &RowEvent<'_>,
        moment: Moment,
    ) -> Result<(), Untellable> {
        put_spelling(&mut self.arena, table, |_, column| {
            let value = event.at(moment, column.position);
            value.map_err(|e| Untellable::sqlite(&column.name, e))
        })
    }
}

/// Where the hook tells a column of the key: a rowid without looking into the row.
fn key_position(table: &Table, column: &Column) -> usize {
    if table.is_alias { ROWID } else { column.position }
}

/// Whether an update writes a column of the key in other bytes.
fn respells(table: &Table, event: &RowEvent<'_>) -> Result<bool, Untellable> {
    for column in &table.key {
        let position = key_position(table, column);
        let untellable = |e| Untellable::sqlite(&column.name, e);
        let before = event.before(position).map_err(untellable)?;
        if !same(event.after(position).map_err(untellable)?, before) {
            return Ok(true);
        }
    }
    Ok(false)
}
