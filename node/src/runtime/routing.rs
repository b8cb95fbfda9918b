//! Where a statement runs, as the policies of the tables that it touches say.
//!
//! | it | then |
//! | --- | --- |
//! | reads a table with `max_lag_ms` that it does not write, and this node may be older | `serve`, `wait` for some seconds, `forward` to the origin, or `fail`; of several tables the strictest word counts |
//! | writes an origin-written table, or reads an origin-strong one | at the origin, all of its transaction; if that cannot be reached, it fails, or what only reads is answered here where all its tables say `on_unreachable = "stale"` |
//! | anything else | here |

use std::time::{Duration, Instant};

use littoral::{Admission, Bookmark, Consistency, OnUnreachable, Reader, Touched, Writers};

use super::{NodeHandle, ReadError, TooStale};

/// How long a read waits until this node is new enough for its tables.
const STALE_WAIT: Duration = Duration::from_secs(5);

/// Where a read is to be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At this node.
    Here,
    /// At the origin, since this node is so old.
    Origin(TooStale),
}

/// What policies make of a statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation {
    /// The tables that it touches, also through views, triggers and foreign keys.
    pub tables: Vec<Touched>,
    /// The strictest policy among them; `None` if it touches none.
    pub policy: Option<Consistency>,
    /// Whether it would run here now.
    pub runs_here: bool,
    /// Why, or why not.
    pub why: String,
    /// How old what this node shows may be at most, if that is known.
    pub lag: Option<Duration>,
}

impl NodeHandle {
    /// Runs `work` with a read-only connection on a blocking thread. Dropping the future interrupts a query
    /// that is still running.
    ///
    /// What policies say of the tables that it reads holds: of one that is too old here for its `max_lag_ms`,
    /// statements are refused as they are prepared, whatever `work` makes of that. Where the table says `wait`,
    /// `work` is called once more when this node is new enough; so it must do the same whenever it is called.
    /// Nothing is sent to the origin: what belongs there fails.
    ///
    /// # Errors
    /// [`ReadError::TooStale`] and [`ReadError::AtOrigin`], as policies say; also if there is no connection to
    /// be had, or the query ran for too long.
    pub async fn read<T: Send + 'static>(
        &self,
        mut work: impl FnMut(&Reader) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let until = Instant::now() + STALE_WAIT;
        loop {
            let node = self.clone();
            let bounded = move |reader: &Reader| {
                let lag = node.lag();
                if node.bounds_lag() {
                    reader.keep_bounds(lag);
                }
                let value = work(reader);
                let refused = (reader.refused_origin_strong(), reader.refused_old());
                (value, work, lag, refused)
            };
            let (value, again, lag, refused) = self.read_as(None, bounded).await?;
            match refused {
                (Some(table), _) => return Err(ReadError::AtOrigin { table }),
                (None, None | Some(Admission::Serve)) => return Ok(value),
                (None, Some(Admission::Wait(most))) => {
                    self.freshen(most, until.saturating_duration_since(Instant::now())).await?;
                    work = again;
                }
                (None, Some(Admission::Forward(most) | Admission::Fail(most))) => {
                    return Err(TooStale { lag, most }.into());
                }
            }
        }
    }

    /// As [`NodeHandle::read`], once this node has all that the bookmark names: the read shows nothing
    /// older than the session it is from has seen, at whatever node.
    ///
    /// # Errors
    /// Also [`ReadError::BookmarkNotReached`], if that takes longer than `limit`.
    pub async fn read_at<T: Send + 'static>(
        &self,
        bookmark: &Bookmark,
        limit: Duration,
        work: impl FnMut(&Reader) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        self.reach(bookmark, limit).await?;
        self.read(work).await
    }

    /// Whether any table bounds how old what is read of it may be; if none does, there is nothing to admit.
    pub fn bounds_lag(&self) -> bool {
        self.readers.db().bounds_lag()
    }

    /// Whether this node has received nothing of the cluster's schema yet.
    pub fn awaits_schema(&self) -> bool {
        self.readers.db().awaits_schema()
    }

    /// Waits until this node may serve what statements read, as the bounds of their tables say, or tells
    /// that it is to be read at the origin; for programs that can have it read there, or that write what they
    /// have read: [`NodeHandle::read`] asks for itself. A statement that cannot be prepared, or does not read, is admitted
    /// here: whoever runs it says what is wrong.
    ///
    /// # Errors
    /// [`ReadError::TooStale`] if it may not, or not within five seconds.
    pub async fn admit(&self, statements: Vec<String>) -> Result<Place, ReadError> {
        let (admission, lag) = self.admission(statements).await?;
        match admission {
            Admission::Serve => Ok(Place::Here),
            Admission::Wait(most) => {
                self.freshen(most, STALE_WAIT).await?;
                Ok(Place::Here)
            }
            Admission::Forward(most) => Ok(Place::Origin(TooStale { lag, most })),
            Admission::Fail(most) => Err(TooStale { lag, most }.into()),
        }
    }

    /// What the policies of the tables that statements read make of them now, at this node's lag.
    pub(crate) async fn admission(
        &self,
        statements: Vec<String>,
    ) -> Result<(Admission, Option<Duration>), ReadError> {
        let lag = self.lag();
        if !self.bounds_lag() || lag == Some(Duration::ZERO) {
            return Ok((Admission::Serve, lag));
        }
        let touched = self.touched(statements).await?;
        let lag = self.lag();
        Ok((Admission::of(&touched, lag), lag))
    }

    async fn touched(&self, statements: Vec<String>) -> Result<Vec<Touched>, ReadError> {
        let looked = self.read_as(None, move |reader: &Reader| {
            statements.iter().filter_map(|sql| reader.touches(sql).ok()).flatten().collect()
        });
        looked.await
    }

    /// Whether statements touch a table of which every node has rows of its own.
    pub(crate) async fn touch_local(&self, statements: Vec<String>) -> bool {
        let is_local = |touched: &Touched| touched.policy.consistency == Consistency::Local;
        self.touched(statements).await.is_ok_and(|touched| touched.iter().any(is_local))
    }

    /// Whether statements can do nothing but read, whoever is to run them.
    pub(crate) async fn only_read(&self, statements: Vec<String>) -> bool {
        let looked =
            self.read_as(None, move |reader| statements.iter().all(|sql| reader.only_reads(sql)));
        looked.await.unwrap_or(false)
    }

    /// Whether statements only read, and would find at the origin what they look for here.
    pub(crate) async fn may_read_there(&self, statements: Vec<String>) -> bool {
        let alike =
            move |reader: &Reader| statements.iter().all(|sql| reader.reads_what_all_have(sql));
        self.read_as(None, alike).await.unwrap_or(false)
    }

    /// Says what policies make of a statement, which is not run.
    ///
    /// # Errors
    /// [`ReadError::Sqlite`] if it cannot be prepared.
    pub async fn explain(&self, sql: String) -> Result<Explanation, ReadError> {
        let status = self.status().await;
        let is_away = status.as_ref().is_none_or(|status| status.distance.is_none());
        let read_only = status.as_ref().is_some_and(|status| status.read_only);
        let (origin, freeze) = status.map_or((None, None), |status| (status.origin, status.freeze));
        let tables = self
            .read_as(None, move |reader| reader.touches(&sql))
            .await?
            .map_err(ReadError::Sqlite)?;
        let is_origin = origin.as_ref() == Some(&self.identity.node);
        let lag = self.lag();
        let policy = tables.iter().map(|touched| touched.policy.consistency).max_by_key(strictness);
        let elsewhere = tables.iter().find(|touched| {
            let policy = &touched.policy;
            let local = policy.consistency == Consistency::Local;
            let writes = touched.writes && policy.writers == Writers::Origin && !local;
            let reads = touched.reads && policy.consistency == Consistency::OriginStrong;
            (writes || reads) && !is_origin
        });
        let name = origin.map_or_else(|| "not known yet".to_owned(), |node| node.to_string());
        let serves = |touched: &Touched| {
            !touched.writes
                && (!touched.is_strong_read()
                    || touched.policy.on_unreachable == OnUnreachable::Stale)
        };
        let stale = tables.iter().any(Touched::is_strong_read) && tables.iter().all(serves);
        let there = match (is_away, stale) {
            (true, true) => "no way there is known now, so it is answered from what this node has",
            (true, false) => "no way there is known now, so it fails until there is one",
            (false, true) => {
                "it is sent there, and answered from what this node has if the origin does not answer"
            }
            (false, false) => "it is sent there, and fails if the origin does not answer",
        };
        let there = format!("which is {name}: {there}");
        let frozen = freeze.and_then(|freeze| {
            let waits =
                |touched: &&Touched| touched.writes && freeze.tables.contains(&touched.table);
            tables.iter().find(waits).map(|touched| touched.table.clone())
        });
        let (runs_here, why) = match (frozen, elsewhere, Admission::of(&tables, lag)) {
            (Some(table), ..) => {
                let why = format!(
                    "{table} is about to change its schema and takes no writes until every node knows"
                );
                (false, why)
            }
            _ if read_only && tables.iter().any(|touched| touched.writes) => {
                let why = format!(
                    "it writes, and this node is read-only: it is refused, unless it has an \
                     Idempotency-Key and all that it writes is written at the origin, {name}"
                );
                (false, why)
            }
            (None, Some(touched), _) => {
                let table = &touched.table;
                let verb = if touched.writes { "written" } else { "read" };
                (is_away && stale, format!("{table} is {verb} at the origin only, {there}"))
            }
            _ if tables.is_empty() => (true, "it touches no table of the schema".to_owned()),
            _ if tables.iter().any(|touched| touched.writes) => {
                (true, "it writes, and all tables that it writes may be written here".to_owned())
            }
            (None, None, Admission::Serve) => {
                (true, "what this node has is new enough for the tables that it reads".to_owned())
            }
            (None, None, Admission::Wait(most)) => {
                let most = most.as_millis();
                (true, format!("once this node is no more than {most} ms behind the origin"))
            }
            (None, None, Admission::Forward(most)) => {
                let most = most.as_millis();
                let why = format!(
                    "this node may be more than {most} ms behind the origin, so it is read there, {there}"
                );
                (false, why)
            }
            (None, None, Admission::Fail(most)) => {
                let most = most.as_millis();
                (false, format!("this node may be more than {most} ms behind the origin"))
            }
        };
        Ok(Explanation { tables, policy, runs_here, why, lag })
    }
}

const fn strictness(consistency: &Consistency) -> u8 {
    match consistency {
        Consistency::Local => 0,
        Consistency::Eventual => 1,
        Consistency::ReadAfterWrite => 2,
        Consistency::OriginStrong => 3,
    }
}
