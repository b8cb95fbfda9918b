//! [`Sessions`]: clients that move between machines read nothing older than they wrote or read.
//!
//! A session carries a bookmark, as text, and the oracle carries what the session has truly seen: the
//! entries of its writes, and all that machines held where it has read. It reads where its bookmark is
//! reached, and only there; what it finds must hold all that it has seen before. Where the rows are too old
//! it reads at the origin, and goes on with the bookmark that it is given of what it saw there.

use std::collections::BTreeMap;

use littoral::{Bookmark, Dot, RequestId, VersionVector};

use super::{Check, Promise, broken};

/// How many sessions there are.
pub(crate) const SESSIONS: usize = 8;

/// What one session carries, and what it has seen.
#[derive(Debug, Default)]
struct Session {
    /// `None` before its first write or read.
    bookmark: Option<String>,
    seen: VersionVector,
}

/// A read of a session's that is on its way to the origin, or back.
#[derive(Debug)]
struct Sent {
    session: usize,
    /// What the session had seen.
    seen: VersionVector,
    /// What the origin held when it was first read there.
    held: Option<VersionVector>,
}

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    each: [Session; SESSIONS],
    sent: BTreeMap<RequestId, Sent>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { each: std::array::from_fn(|_| Session::default()), sent: BTreeMap::new() }
    }
}

impl Sessions {
    /// The bookmark that a session carries.
    pub(crate) fn bookmark(&self, session: usize) -> Check<Option<Bookmark>> {
        self.each[session].bookmark()
    }

    /// A write of the session's was answered with this bookmark.
    pub(crate) fn wrote(&mut self, session: usize, dot: Dot, given: &Bookmark) -> Check {
        let session = &mut self.each[session];
        session.seen.advance(dot);
        session.take(given)
    }

    /// The session has read on a machine that holds these entries, and was given this bookmark.
    pub(crate) fn read(
        &mut self,
        session: usize,
        machine: usize,
        held: &VersionVector,
        given: &Bookmark,
    ) -> Check {
        let number = session;
        let session = &mut self.each[session];
        if let Some(dot) = session.seen.iter().find(|dot| !held.covers(*dot)) {
            return broken(
                Promise::Sessions,
                format!(
                    "session {number} reads on m{machine}, which holds {held}, and has seen {dot} before; its \
                     bookmark is {:?}",
                    session.bookmark()?
                ),
            );
        }
        session.seen.advance_all(held);
        session.take(given)
    }

    /// A session sends a read to the origin.
    pub(crate) fn sends(&mut self, request: RequestId, session: usize) {
        let seen = self.each[session].seen.clone();
        self.sent.insert(request, Sent { session, seen, held: None });
    }

    /// A request is read at the origin, which holds these entries.
    pub(crate) fn reads_there(&mut self, request: RequestId, held: &VersionVector) {
        if let Some(sent) = self.sent.get_mut(&request) {
            sent.held.get_or_insert_with(|| held.clone());
        }
    }

    /// The session is not told what was read there.
    pub(crate) fn unanswered(&mut self, request: RequestId) {
        self.sent.remove(&request);
    }

    /// The session is told what was read there, and given this bookmark. Gives which session, if it is followed.
    pub(crate) fn answered(
        &mut self,
        request: RequestId,
        given: &Bookmark,
    ) -> Check<Option<usize>> {
        let Some(sent) = self.sent.remove(&request) else { return Ok(None) };
        let number = sent.session;
        let Some(held) = sent.held else {
            let what = format!("session {number} is told what was never read at the origin");
            return broken(Promise::Sessions, what);
        };
        if let Some(dot) = sent.seen.iter().find(|dot| !held.covers(*dot)) {
            let what = format!(
                "session {number} reads at the origin, which holds {held}, and has seen {dot} before"
            );
            return broken(Promise::Sessions, what);
        }
        let session = &mut self.each[number];
        session.seen.advance_all(&held);
        session.take(given)?;
        Ok(Some(number))
    }

    /// A power cut took an entry from its author: who has seen it begins anew.
    pub(crate) fn lost(&mut self, dot: Dot) -> Check {
        // A read that may have seen it is not followed.
        self.sent.retain(|_, sent| {
            !sent.seen.covers(dot) && !sent.held.as_ref().is_some_and(|held| held.covers(dot))
        });
        for session in &mut self.each {
            let named = session.bookmark()?.map(|bookmark| bookmark.entries().seq(dot.author));
            if session.seen.covers(dot) || named >= Some(dot.seq) {
                *session = Session::default();
            }
        }
        Ok(())
    }
}

impl Session {
    fn bookmark(&self) -> Check<Option<Bookmark>> {
        match self.bookmark.as_ref().map(|text| text.parse()) {
            None => Ok(None),
            Some(Ok(bookmark)) => Ok(Some(bookmark)),
            Some(Err(error)) => {
                broken(Promise::Sessions, format!("a bookmark does not decode: {error}"))
            }
        }
    }

    fn take(&mut self, given: &Bookmark) -> Check {
        let mut bookmark = self.bookmark()?.unwrap_or_default();
        bookmark.include_all(given);
        self.bookmark = Some(bookmark.to_string());
        Ok(())
    }
}
