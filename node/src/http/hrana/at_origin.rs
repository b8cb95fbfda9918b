//! What of a program goes to the origin: jobs that write its tables, reads of rows that are its own, or too old
//! here, or older than a bookmark; and what is read here all the same while nobody there answers.

use std::{sync::Arc, time::Instant};

use littoral::{Bookmark, Reader, Touched};

use super::{
    execute::Run,
    forward::{ORIGIN_UNREACHABLE, PATIENCE, Parcel, Settled, read_at_origin, run_at_origin},
    region::{Ran, Region, run_region},
    session::ReadSession,
    sql::Verb,
    wire::HranaError,
};
use crate::{http::session::NOT_REACHED, runtime::Place};

/// Where reads go on of a request that brings a bookmark that its node does not reach: to the origin.
#[derive(Clone, Debug)]
pub(super) struct After {
    /// What they must not be older than.
    pub(super) bookmark: Bookmark,
    /// How long there is time for it.
    pub(super) until: Instant,
}

/// What was read at the origin, this node shows:
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    /// Before the client is answered.
    First,
    /// Whenever it comes: the client's bookmark says what to wait for.
    Later,
}

impl Run<'_> {
    pub(super) async fn at_origin(&mut self, region: &Region) -> Settled {
        if !self.only_reads(region).await {
            self.spent.at("the origin");
            let parcel = self.parcel(region);
            return run_at_origin(self.node, parcel, region.begin, self.key, self.budget).await;
        }
        let may_be_stale = self.node.serves_stale();
        if may_be_stale
            && !self.node.reaches_origin().await
            && let Some(ran) = self.read_stale(region).await
        {
            return (Some(ran), Ok(()));
        }
        let settled = self.read_at_origin(region, Shown::First).await;
        if may_be_stale
            && settled.1.as_ref().is_err_and(|error| error.code == ORIGIN_UNREACHABLE)
            && let Some(ran) = self.read_stale(region).await
        {
            return (Some(ran), Ok(()));
        }
        settled
    }

    /// Reads here what the origin, which cannot be reached, is to be asked for, if all of its tables allow
    /// that.
    async fn read_stale(&mut self, region: &Region) -> Option<Ran> {
        // Other tables that it reads may bound how old they are.
        if !matches!(self.admit(region.steps.clone()).await, Ok(Place::Here)) {
            return None;
        }
        self.spent.at("a reader");
        let (program, region) = (Arc::clone(self.program), region.clone());
        let (prior, budget) = (self.fates.clone(), self.budget);
        let statements = self.statements(region.steps.clone());
        let read = self.node.read_as(self.grants.cloned(), move |reader| {
            let strong = strong_reads(reader, &statements);
            let transaction = reader.connection().unchecked_transaction()?;
            reader.serve_stale(true);
            let session = &mut ReadSession(reader);
            let ran = run_region(session, &program, &region, prior, budget, true);
            reader.serve_stale(false);
            transaction.finish()?;
            Ok::<_, rusqlite::Error>((ran, strong))
        });
        // Who is not served here hears that the origin cannot be reached.
        let Ok(Ok((Ok(ran), strong))) = read.await else { return None };
        self.stream.notes.stale.extend(strong);
        Some(ran)
    }

    /// Has the origin read what a region reads, which may fail without any doubt.
    pub(super) async fn read_at_origin(&mut self, region: &Region, shown: Shown) -> Settled {
        self.spent.at("the origin");
        let began = Instant::now();
        let parcel = self.parcel(region);
        let (after, patience) = match &self.after {
            None => (None, PATIENCE),
            Some(After { bookmark, until }) => {
                (Some(bookmark.clone()), until.saturating_duration_since(began))
            }
        };
        let behind = after.is_some();
        let (mut settled, seen) =
            read_at_origin(self.node, parcel, after, patience, self.budget).await;
        if behind
            && let Err(error) = &mut settled.1
            && error.code == ORIGIN_UNREACHABLE
        {
            *error = self.unreached();
        }
        if let Some(seen) = seen {
            let left = PATIENCE.saturating_sub(began.elapsed());
            if shown == Shown::First
                && let Err(error) = self.node.reach(&seen, left).await
            {
                // The origin was there: nothing old takes the place of what it has shown.
                let message = format!("what the origin has shown does not come here: {error}");
                return (None, Err(HranaError::new(NOT_REACHED, message)));
            }
            self.stream.notes.read_at_origin(&seen);
        }
        settled
    }

    /// Neither this node nor the origin has in time what the request must not be older than.
    fn unreached(&mut self) -> HranaError {
        let message = "neither this node nor the origin had in time what the bookmark names; nothing was \
                       written";
        self.stream.notes.unreached = Some(message.to_owned());
        HranaError::new(NOT_REACHED, message)
    }

    /// Waits, for what is left of the time, until this node has what the request must not be older than.
    pub(super) async fn caught_up(&mut self) -> Result<(), HranaError> {
        let Some(After { bookmark, until }) = self.after.take() else { return Ok(()) };
        let left = until.saturating_duration_since(Instant::now());
        if self.node.reach(&bookmark, left).await.is_ok() {
            return Ok(());
        }
        Err(self.unreached())
    }

    fn parcel(&self, region: &Region) -> Parcel {
        Parcel::of(self.program, region, &self.fates, self.grants.map(AsRef::as_ref))
    }

    pub(super) async fn only_reads(&self, region: &Region) -> bool {
        let verbs = region.steps.clone().filter_map(|step| self.program.verb(step));
        if verbs.clone().any(|verb| matches!(verb, Verb::Insert | Verb::Write)) {
            return false;
        }
        self.node.only_read(self.statements(region.steps.clone())).await
    }
}

/// The tables that statements read and that are read at the origin.
pub(super) fn strong_reads(reader: &Reader, statements: &[String]) -> Vec<String> {
    let touched = statements.iter().filter_map(|sql| reader.touches(sql).ok()).flatten();
    touched.filter(Touched::is_strong_read).map(|touched| touched.table).collect()
}
