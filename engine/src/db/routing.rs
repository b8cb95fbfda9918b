//! Which tables a statement touches, found by SQLite's own authorizer when it is prepared: through views,
//! triggers and foreign keys, too. What a table's policy asks for is then a matter of the driver.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rusqlite::{ErrorCode, hooks::AuthAction};

use crate::{
    db::{Db, Reader},
    policy::{Consistency, MaxLag, OnStale, OnUnreachable, TablePolicy, Writers},
    schema::{Registry, Table},
    testing::{Bug, planted},
};

/// A table that a statement touches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Touched {
    /// Its name.
    pub table: String,
    /// What it declares.
    pub policy: TablePolicy,
    /// Whether rows of it are read.
    pub reads: bool,
    /// Whether rows of it may be written.
    pub writes: bool,
}

/// Why a [`Reader`] has not run a statement, and with that who is to run it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadRefused {
    /// Nobody for this client: its grants do not allow it.
    NotGranted {
        /// What it would need, in words.
        what: String,
    },
    /// Nobody: it wants what no client gets.
    Forbidden {
        /// What that is, in words.
        what: String,
    },
    /// The origin: it reads an `origin-strong` table, and this node is not the origin.
    AtOrigin {
        /// The table.
        table: String,
    },
    /// The writer of this node: it writes, or calls what only the writer knows.
    Writes,
    /// Nobody: the statement is wrong, or the file cannot be read. SQLite's error says what is the matter.
    Failed,
}

/// What becomes of a read where rows may be too old for the tables that it reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// It is answered.
    Serve,
    /// It waits until what it finds is no older than this.
    Wait(Duration),
    /// It is read at the origin, since what it would find here may be older than this.
    Forward(Duration),
    /// It fails, since what it would find may be older than this.
    Fail(Duration),
}

impl Admission {
    /// What the policies of the tables that a read touches make of it where rows may be as old as `lag`; an
    /// age that is not known counts as too great. Of several tables the strictest word counts: `fail`, then
    /// `forward`, then `wait`, each for the least bound, then `serve`.
    pub fn of(touched: &[Touched], lag: Option<Duration>) -> Self {
        let mut admission = Self::Serve;
        for bound in touched.iter().filter_map(Touched::max_lag) {
            let most = Duration::from_millis(bound.ms);
            if lag.is_some_and(|lag| lag <= most) || planted(Bug::LagBoundIgnored) {
                continue;
            }
            let of_table = match bound.on_stale {
                OnStale::Serve => Self::Serve,
                OnStale::Wait => Self::Wait(most),
                OnStale::Forward => Self::Forward(most),
                OnStale::Fail => Self::Fail(most),
            };
            admission = admission.or_stricter(of_table);
        }
        admission
    }

    fn or_stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Fail(a), Self::Fail(b)) => Self::Fail(a.min(b)),
            (fail @ Self::Fail(_), _) | (_, fail @ Self::Fail(_)) => fail,
            (Self::Forward(a), Self::Forward(b)) => Self::Forward(a.min(b)),
            (forward @ Self::Forward(_), _) | (_, forward @ Self::Forward(_)) => forward,
            (Self::Wait(a), Self::Wait(b)) => Self::Wait(a.min(b)),
            (wait @ Self::Wait(_), _) | (_, wait @ Self::Wait(_)) => wait,
            (Self::Serve, Self::Serve) => Self::Serve,
        }
    }
}

/// By name, what the statement that is being prepared does: reads, and writes.
pub(crate) type Touches = BTreeMap<String, [bool; 2]>;

/// Takes down what an action of a statement touches. Tells whether it is a write, which a statement that is
/// never run may contain.
pub(super) fn note(touches: &mut Touches, action: &AuthAction<'_>) -> bool {
    let (table, what) = match action {
        AuthAction::Read { table_name, .. } => (table_name, 0),
        AuthAction::Insert { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::Delete { table_name } => (table_name, 1),
        _ => return false,
    };
    touches.entry((*table).to_owned()).or_default()[what] = true;
    what == 1
}

/// The tables that are read at the origin, and what reads of each get while that cannot be reached.
pub(super) type Strong = BTreeMap<String, OnUnreachable>;

/// The tables that are read at the origin, as long as this node is not the origin.
#[derive(Debug, Clone, Default)]
pub(crate) struct Elsewhere(Arc<Mutex<Arc<Strong>>>);

impl Elsewhere {
    pub(super) fn get(&self, table: &str) -> Option<OnUnreachable> {
        let tables = self.0.lock();
        if tables.is_empty() { None } else { tables.get(&table.to_ascii_lowercase()).copied() }
    }

    fn now(&self) -> Arc<Strong> {
        Arc::clone(&self.0.lock())
    }
}

/// The tables whose rows are too old to be read here, in lower case, and what each has for reads.
pub(super) type Old = BTreeMap<String, Admission>;

pub(super) fn of_old(old: &Old, table: &str) -> Option<Admission> {
    if old.is_empty() { None } else { old.get(&table.to_ascii_lowercase()).copied() }
}

impl Db {
    /// The tables and policies of now, and whether this node is the origin.
    pub(crate) fn publish_registry(&self, registry: &Arc<Registry>, is_origin: bool) {
        let mut published = self.file().registry.lock();
        let known = published.as_ref();
        if known.is_some_and(|(known, was)| Arc::ptr_eq(known, registry) && *was == is_origin) {
            return;
        }
        let is_strong =
            |table: &&Table| table.policy.consistency == Consistency::OriginStrong && !is_origin;
        let strong = registry.tables().iter().filter(is_strong);
        let strong: Strong = strong
            .map(|table| (table.name.to_ascii_lowercase(), table.policy.on_unreachable))
            .collect();
        let mut elsewhere = self.file().elsewhere.0.lock();
        if **elsewhere != strong {
            *elsewhere = Arc::new(strong);
        }
        *published = Some((Arc::clone(registry), is_origin));
    }

    fn registry(&self) -> Option<Arc<Registry>> {
        self.file().registry.lock().as_ref().map(|(registry, _)| Arc::clone(registry))
    }

    /// Whether there are tables that only the origin writes, and this node is another one.
    pub fn has_tables_of_origin(&self) -> bool {
        let published = self.file().registry.lock();
        published.as_ref().is_some_and(|(registry, is_origin)| {
            let of_origin = |policy: &TablePolicy| {
                policy.writers == Writers::Origin && policy.consistency != Consistency::Local
            };
            !is_origin && registry.tables().iter().any(|table| of_origin(&table.policy))
        })
    }

    /// Whether this node has received nothing of the cluster's schema yet.
    pub fn awaits_schema(&self) -> bool {
        let published = self.file().registry.lock();
        let is_empty =
            |(tables, is_origin): &(Arc<Registry>, bool)| !is_origin && tables.tables().is_empty();
        published.as_ref().is_none_or(is_empty)
    }

    /// Whether reads of any table may be answered here that belong to the origin, while that cannot be
    /// reached.
    pub fn serves_stale(&self) -> bool {
        self.file().elsewhere.now().values().any(|word| *word == OnUnreachable::Stale)
    }

    /// Whether any table declares how old what is read of it may be.
    pub fn bounds_lag(&self) -> bool {
        let registry = self.registry();
        let mut tables = registry.iter().flat_map(|registry| registry.tables());
        tables.any(|table| table.policy.max_lag.is_some())
    }
}

impl Reader {
    /// Has statements that were prepared before judged again, if other tables are read at the origin by now.
    pub(super) fn follow_policies(&self) {
        let now = self.file.elsewhere.now();
        if !Arc::ptr_eq(&std::mem::replace(&mut *self.followed.lock(), Arc::clone(&now)), &now) {
            self.connection.flush_prepared_statement_cache();
        }
    }

    /// Whether statements may read `origin-strong` tables that say `on_unreachable = "stale"`, as long as the
    /// driver cannot reach the origin; no more from [`Reader::restrict`] on. What they find may be old, and
    /// whoever is answered is to be told.
    pub fn serve_stale(&self, stale: bool) {
        let was = std::mem::replace(&mut self.gate.lock().stale, stale);
        if was && !stale && !planted(Bug::StaleStatementKept) {
            self.connection.flush_prepared_statement_cache();
        }
    }

    /// From here on statements may not read a table whose rows may be older here than it allows, unless it
    /// says `serve`; no more from [`Reader::restrict`] on. `lag` is how old they may be, as [`Db::lag`] tells.
    pub fn keep_bounds(&self, lag: Option<Duration>) {
        let registry = Db::new(Arc::clone(&self.file)).registry();
        let tables = registry.iter().flat_map(|registry| registry.tables());
        let bounded = tables.filter(|table| table.policy.max_lag.is_some()).map(|table| {
            let (name, policy) = (table.name.clone(), table.policy.clone());
            Touched { table: name, policy, reads: true, writes: false }
        });
        let old = bounded.filter_map(|touched| {
            let admission = Admission::of(std::slice::from_ref(&touched), lag);
            (admission != Admission::Serve).then(|| (touched.table.to_ascii_lowercase(), admission))
        });
        self.refuse_old(old.collect());
    }

    /// Ends [`Reader::keep_bounds`], if there are none, or has other tables refused by it.
    pub(super) fn refuse_old(&self, old: Old) {
        let mut gate = self.gate.lock();
        gate.refused_old = None;
        let same = gate.old == old;
        gate.old = old;
        // The judge takes the lock.
        drop(gate);
        if !same && !planted(Bug::OldStatementKept) {
            self.connection.flush_prepared_statement_cache();
        }
    }

    /// What a table has for reads that [`Reader::keep_bounds`] has refused to the statement refused last.
    pub fn refused_old(&self) -> Option<Admission> {
        self.gate.lock().refused_old.take()
    }

    /// The `origin-strong` table that the statement refused last wanted to read, on a node that is not the
    /// origin.
    pub fn refused_origin_strong(&self) -> Option<String> {
        self.gate.lock().refused.take()
    }

    /// Why the statement that has just failed with `error` was not run, and so who is to run it.
    pub fn refused(&self, error: &rusqlite::Error) -> ReadRefused {
        if let Some(what) = self.gate.lock().forbidden.take() {
            return ReadRefused::Forbidden { what };
        }
        if let Some(what) = self.missing() {
            return ReadRefused::NotGranted { what };
        }
        if let Some(table) = self.refused_origin_strong() {
            return ReadRefused::AtOrigin { table };
        }
        let refused = matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::ReadOnly | ErrorCode::AuthorizationForStatementDenied)
        );
        // Functions of the engine's own exist on the writer only.
        if refused || error.to_string().contains("no such function") {
            ReadRefused::Writes
        } else {
            ReadRefused::Failed
        }
    }

    /// Whether a statement can do nothing but read, whoever is to run it. One that cannot be prepared here
    /// is none of these.
    pub fn only_reads(&self, sql: &str) -> bool {
        self.look(sql).is_ok_and(|(reads, _)| reads)
    }

    /// Whether a statement only reads, and what it reads is the cluster's: neither `local` tables nor the engine's
    /// own, which have other rows at every node. One that cannot be prepared here is none of these.
    pub fn reads_what_all_have(&self, sql: &str) -> bool {
        let Ok((reads, touches)) = self.look(sql) else { return false };
        let registry = Db::new(Arc::clone(&self.file)).registry();
        reads
            && touches.keys().all(|name| {
                let registry = registry.as_deref();
                let known =
                    registry.and_then(|all| Some(&all.tables()[all.position(name.as_bytes())?]));
                match known {
                    Some(table) => table.policy.consistency != Consistency::Local,
                    None => !name.to_ascii_lowercase().starts_with("littoral_"),
                }
            })
    }

    /// Prepares a statement, also one that this connection may not run: whether it only reads, and what it
    /// touches.
    fn look(&self, sql: &str) -> rusqlite::Result<(bool, Touches)> {
        self.gate.lock().touches = Some(Touches::new());
        // The judge takes the lock.
        let reads = self.connection.prepare(sql).map(|prepared| prepared.readonly());
        let touches = self.gate.lock().touches.take().unwrap_or_default();
        Ok((reads?, touches))
    }

    /// The tables of the schema that a statement touches, also one that writes. Nothing is run.
    ///
    /// # Errors
    /// SQLite's, if the statement cannot be prepared.
    pub fn touches(&self, sql: &str) -> rusqlite::Result<Vec<Touched>> {
        let (_, touches) = self.look(sql)?;
        let Some(registry) = Db::new(Arc::clone(&self.file)).registry() else {
            return Ok(Vec::new());
        };
        // Others are views, whose tables are told beside them, SQLite's own and the engine's.
        let touched = touches.into_iter().filter_map(|(name, [reads, writes])| {
            let table = &registry.tables()[registry.position(name.as_bytes())?];
            let (table, policy) = (table.name.clone(), table.policy.clone());
            Some(Touched { table, policy, reads, writes })
        });
        Ok(touched.collect())
    }
}

impl Touched {
    /// Whether it is read at the origin.
    pub fn is_strong_read(&self) -> bool {
        self.reads && self.policy.consistency == Consistency::OriginStrong
    }

    /// How old what a statement that touches it reads of it may be. Of a table that the statement writes it
    /// reads the rows that it changes, as they are here.
    pub fn max_lag(&self) -> Option<MaxLag> {
        self.policy.max_lag.filter(|_| self.reads && !self.writes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ms: u64, on_stale: OnStale) -> Touched {
        let policy =
            TablePolicy { max_lag: Some(MaxLag { ms, on_stale }), ..TablePolicy::default() };
        Touched { table: format!("t{ms}"), policy, reads: true, writes: false }
    }

    #[test]
    fn the_strictest_table_that_is_too_old_counts() {
        use OnStale::{Fail, Forward, Serve, Wait};
        let ms = Duration::from_millis;
        let tables = [read(1000, Serve), read(3000, Wait), read(5000, Fail), read(4000, Wait)];
        assert_eq!(Admission::of(&tables, Some(ms(500))), Admission::Serve);
        assert_eq!(Admission::of(&tables, Some(ms(2000))), Admission::Serve);
        assert_eq!(Admission::of(&tables, Some(ms(4500))), Admission::Wait(ms(3000)));
        assert_eq!(Admission::of(&tables, Some(ms(6000))), Admission::Fail(ms(5000)));
        assert_eq!(Admission::of(&tables, None), Admission::Fail(ms(5000)));
        let tables = [read(1000, Forward), read(500, Wait), read(2000, Forward), read(100, Serve)];
        assert_eq!(Admission::of(&tables, Some(ms(900))), Admission::Wait(ms(500)));
        assert_eq!(Admission::of(&tables, Some(ms(1100))), Admission::Forward(ms(1000)));
        assert_eq!(
            Admission::of(&[tables[2].clone(), read(1, Fail)], None),
            Admission::Fail(ms(1))
        );
        for reads in [false, true] {
            let written = Touched { reads, writes: true, ..read(1000, Fail) };
            assert_eq!(Admission::of(&[written], None), Admission::Serve);
        }
    }
}
