//! Becoming a member: asking, passing requests on to the origin, and the origin's `Join`.
//!
//! A node that is no member says so on every link. Whoever is not the origin passes the request on to
//! all others that have not heard it; the origin writes the `Join`, once per incarnation, and the log
//! carries it to everybody.

use std::collections::BTreeMap;

use crate::{
    driver::{Event, Output},
    entry::{Member, codec::Body},
    error::ProtocolError,
    id::{AuthorId, Incarnation, Lsn, NodeId, PeerId},
    limits::JOIN_REQUESTS_MAX,
    protocol::message::Message,
    replica::Replica,
};

/// Who asks to become a member, and since when who is one.
#[derive(Debug, Default)]
pub(super) struct Joining {
    asking: BTreeMap<Incarnation, NodeId>,
    /// Where in the log a `Join` stands at the latest, of those applied since the file was opened.
    applied_at: BTreeMap<Incarnation, Lsn>,
}

impl Replica {
    /// The handshake with a peer is complete: asks it what there is to ask.
    pub(super) fn ask_to_join(&mut self, peer: PeerId) {
        if self.author.is_none() && !self.read_only {
            let me = (self.identity.incarnation, self.identity.node.clone());
            self.tell_request(peer, me);
        }
        for (incarnation, node) in self.joining.asking.clone() {
            self.tell_request(peer, (incarnation, node));
        }
    }

    fn tell_request(&mut self, peer: PeerId, (incarnation, node): (Incarnation, NodeId)) {
        if let Some(session) = self.sessions.get_mut(&peer)
            && session.is_streaming()
            && session.asked.insert(incarnation)
        {
            session.say(&Message::AskJoin(node.as_str().to_owned(), incarnation.0));
        }
    }

    /// A peer asks that somebody become a member.
    pub(super) fn asked_to_join(
        &mut self,
        peer: PeerId,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<(), ProtocolError> {
        let Some(session) = self.sessions.get_mut(&peer) else { return Ok(()) };
        session.asked.insert(incarnation);
        // For itself a peer speaks under the name of its certificate; of others, a member is believed.
        if session.incarnation == Some(incarnation) && session.node != node {
            return Err(ProtocolError::Malformed(
                "a request to join under another name".to_owned(),
            ));
        }
        let known = self.members.iter().any(|member| member.incarnation == incarnation);
        let full = self.joining.asking.len() >= JOIN_REQUESTS_MAX;
        if known || full || incarnation == self.identity.incarnation {
            return Ok(());
        }
        self.joining.asking.insert(incarnation, node.clone());
        if !self.is_origin() {
            for other in self.sessions.keys().copied().collect::<Vec<_>>() {
                self.tell_request(other, (incarnation, node.clone()));
            }
        }
        Ok(())
    }

    /// At the origin: writes the `Join`s that were asked for.
    pub(super) fn serve_joins(&mut self) -> bool {
        let ready = self.is_origin() && self.halted.is_none() && self.storage.error.is_none();
        let (true, Some(author)) = (ready, self.author) else { return false };
        let Some((incarnation, node)) = self.joining.asking.pop_first() else { return false };
        let term = self.register.as_ref().map_or(AuthorId::FIRST.term, |register| register.term);
        let issued = self.members.iter().filter(|member| member.author.term == term);
        let counter = issued.map(|member| member.author.counter).max().unwrap_or(0) + 1;
        let member = Member { author: AuthorId { term, counter }, node: node.clone(), incarnation };
        let mut join = Body::default();
        join.push_join(&member);
        if self.author_decree(author, join).is_none() {
            self.joining.asking.insert(incarnation, node);
        }
        true
    }

    /// Entries were committed, and there were `before` members until then.
    pub(super) fn note_joins(&mut self, before: usize) {
        for member in &self.members[before.min(self.members.len())..] {
            self.joining.asking.remove(&member.incarnation);
            self.joining.applied_at.insert(member.incarnation, self.log.last());
            let (node, author) = (member.node.clone(), member.author);
            self.outputs.push_back(Output::Event(Event::Member { node, author }));
        }
    }

    /// The member with this incarnation, and a position of the log behind its `Join`.
    pub(super) fn member_since(&self, incarnation: Incarnation) -> Option<(&Member, Lsn)> {
        let member = self.members.iter().find(|member| member.incarnation == incarnation)?;
        // One that was there when the file was opened is in every snapshot taken since.
        let at = self.joining.applied_at.get(&incarnation).copied().unwrap_or_default();
        Some((member, at))
    }
}
