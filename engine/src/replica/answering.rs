//! What a peer is told that compares its rows with this replica's: see `verifying.rs`.

use std::{collections::BTreeSet, ops::ControlFlow};

use crate::{
    error::ProtocolError,
    id::{PeerId, TableId},
    limits::{COMPARE_BYTES, COMPARE_IMAGE_BYTES, COMPARE_IMAGES, COMPARE_KEY_BYTES, COMPARE_ROWS},
    protocol::message::{Answer, Image, Question, Wanted, wire_vector},
    replica::{Replica, is_storage_failure},
    schema::{
        Table,
        range::{self, KeyRange, sum_of},
    },
    value::Sum,
};

impl Replica {
    /// A peer asks what this replica holds.
    pub(super) fn asked(
        &mut self,
        peer: PeerId,
        token: u64,
        question: &Question,
    ) -> Result<(), ProtocolError> {
        let answer = match self.answer_to(question) {
            Ok(answer) => answer,
            Err(error @ rusqlite::Error::ToSqlConversionFailure(_)) => {
                return Err(ProtocolError::Malformed(format!("a question about no key: {error}")));
            }
            Err(error) if is_storage_failure(&error) => return Err(ProtocolError::Storage(error)),
            // A damaged page, say: it must not end links that work.
            Err(error) => {
                let node = &self.identity.node;
                tracing::error!(%node, %error, "rows that a peer compares cannot be read");
                Answer::NotNow
            }
        };
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.answer(self.now.mono, token, answer);
        }
        Ok(())
    }

    fn answer_to(&self, question: &Question) -> rusqlite::Result<Answer> {
        let conn = self.writer.apply();
        let table = self.registry.by_id(TableId(question.table));
        let Some(table) = table.filter(|table| !table.is_local()) else {
            return Ok(Answer::NotNow);
        };
        if question.schema != self.registry.version.0 {
            return Ok(Answer::NotNow);
        }
        let after = question.after.clone();
        let too_long =
            |key: &Option<Vec<u8>>| key.as_ref().is_some_and(|key| key.len() > COMPARE_KEY_BYTES);
        match &question.what {
            Wanted::Sum => {
                let bounds = (COMPARE_ROWS, COMPARE_BYTES);
                let (range, sum) = range::sum(conn, table, after, bounds)?;
                if too_long(&range.upto) {
                    return Ok(Answer::NotNow);
                }
                Ok(Answer::Sum { upto: range.upto, sum })
            }
            Wanted::Rows { upto } => {
                let range = KeyRange { after, upto: upto.clone() };
                let (sums, last) = range::sums(conn, table, &range, 2 * COMPARE_ROWS)?;
                let upto = last.or(range.upto);
                if too_long(&upto) {
                    return Ok(Answer::NotNow);
                }
                let rows = sums.into_iter().map(|sum| (sum.key, sum.row)).collect();
                Ok(Answer::Rows { upto, rows })
            }
            Wanted::Images { upto, keys } => {
                let range = KeyRange { after, upto: upto.clone() };
                Ok(Answer::Images {
                    vector: wire_vector(&self.log.vector()),
                    images: self.images(table, &range, keys)?,
                })
            }
        }
    }

    /// The rows of a range whose keys have these sums, as many as fit an answer.
    fn images(
        &self,
        table: &Table,
        range: &KeyRange,
        keys: &[Sum],
    ) -> rusqlite::Result<Vec<(Sum, Image)>> {
        let mut missing: BTreeSet<Sum> = keys.iter().take(COMPARE_IMAGES).copied().collect();
        let mut images = Vec::new();
        let (mut bytes, mut visited, mut full) = (0, 0, false);
        range::visit(self.writer.apply(), table, range, |row| {
            let key = sum_of(row.key);
            if missing.remove(&key) {
                let image = if row.key.len() + row.cells.len() > COMPARE_IMAGE_BYTES {
                    Image::TooLarge
                } else {
                    bytes += row.key.len() + row.cells.len();
                    Image::Row(row.key.to_vec(), row.cells.to_vec())
                };
                images.push((key, image));
            }
            visited += 1;
            full = bytes > COMPARE_IMAGE_BYTES || visited == 4 * COMPARE_ROWS;
            if full || missing.is_empty() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        if !full {
            let parked = self.aside.parked.sums(table.id);
            images.extend(missing.into_iter().map(|key| {
                let image = if parked.contains(&key) { Image::Parked } else { Image::Absent };
                (key, image)
            }));
        }
        Ok(images)
    }
}
