//! [`Emitter`]: the entries of a cursor, one JSON text a line, sent while they are made.
//!
//! Little waits: whoever reads rows stops as long as the client does not take them.

use std::time::{Duration, Instant};

use tokio::{runtime::Handle, sync::mpsc, time::timeout};

use super::{
    outcome::Outcome,
    session::Fault,
    to_json,
    wire::{Column, CursorEntry, HranaError, StmtResult, Value},
};
use crate::runtime::READ_TIMEOUT;

/// Bytes that are sent together.
const CHUNK_BYTES: usize = 32 << 10;

/// Chunks that may wait.
const CHUNKS_WAITING: usize = 4;

/// Who sends rows gives up before the read is interrupted, so that it can say so.
const GRACE: Duration = Duration::from_secs(1);

/// Where entries go.
#[derive(Debug)]
pub(super) struct Emitter {
    lines: String,
    chunks: mpsc::Sender<String>,
    /// Until when the rows of the read under way must be taken.
    until: Instant,
    gone: bool,
}

impl Emitter {
    pub(super) fn new() -> (Self, mpsc::Receiver<String>) {
        let (chunks, taken) = mpsc::channel(CHUNKS_WAITING);
        let emitter = Self { lines: String::new(), chunks, until: Instant::now(), gone: false };
        (emitter, taken)
    }

    /// Whether nobody takes anything any more.
    pub(super) fn is_gone(&self) -> bool {
        self.gone || self.chunks.is_closed()
    }

    /// Another one to the same client.
    pub(super) fn again(&self) -> Self {
        let chunks = self.chunks.clone();
        Self { lines: String::new(), chunks, until: self.until, gone: self.gone }
    }

    /// What a statement comes to whose rows were not taken.
    pub(super) fn refused() -> HranaError {
        let message = format!(
            "the client has not taken the rows within {} s, or has gone away",
            READ_TIMEOUT.as_secs()
        );
        HranaError::new("SQLITE_INTERRUPT", message)
    }

    fn line(&mut self, entry: &CursorEntry<'_>) {
        self.lines.push_str(&to_json(entry));
        self.lines.push('\n');
    }

    // --- On a thread that may block

    /// A read begins.
    pub(super) fn start(&mut self) {
        self.until = Instant::now() + READ_TIMEOUT.saturating_sub(GRACE);
    }

    pub(super) fn begin(&mut self, step: usize, cols: &[Column]) -> Result<(), Fault> {
        self.line(&CursorEntry::StepBegin { step, cols });
        if self.hand_over() { Ok(()) } else { Err(Fault::Step(Self::refused())) }
    }

    /// Sends a row; false if it is not taken.
    pub(super) fn row(&mut self, row: &[Value]) -> bool {
        self.line(&CursorEntry::Row { row });
        self.hand_over()
    }

    pub(super) fn end(&mut self, _step: usize, result: &StmtResult) -> Result<(), Fault> {
        self.line(&step_end(result));
        if self.hand_over() { Ok(()) } else { Err(Fault::Step(Self::refused())) }
    }

    fn hand_over(&mut self) -> bool {
        if self.lines.len() < CHUNK_BYTES || self.gone {
            return !self.gone;
        }
        let chunk = std::mem::take(&mut self.lines);
        let left = self.until.saturating_duration_since(Instant::now());
        let sent = match self.chunks.try_send(chunk) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(chunk)) => {
                let sending = async { timeout(left, self.chunks.send(chunk)).await };
                matches!(Handle::current().block_on(sending), Ok(Ok(())))
            }
        };
        self.gone |= !sent;
        sent
    }

    // --- Between reads

    /// Sends what became of a step, unless it is sent already.
    pub(super) async fn outcome(&mut self, step: usize, outcome: &Outcome) {
        match outcome {
            Outcome::Rows(result) => {
                self.line(&CursorEntry::StepBegin { step, cols: &result.cols });
                for row in &result.rows {
                    self.line(&CursorEntry::Row { row });
                    if self.lines.len() >= CHUNK_BYTES {
                        self.flush().await;
                    }
                }
                self.line(&step_end(result));
            }
            Outcome::Error(error) => self.line(&CursorEntry::StepError { step, error }),
            Outcome::Sent | Outcome::Skipped | Outcome::Described(_) | Outcome::Autocommit(_) => {}
        }
    }

    /// Says at the end that the whole has failed.
    pub(super) async fn fail(&mut self, error: &HranaError) {
        self.line(&CursorEntry::Error { error });
        self.flush().await;
    }

    /// Sends all there is.
    pub(super) async fn flush(&mut self) {
        let chunk = std::mem::take(&mut self.lines);
        if !chunk.is_empty() && !self.gone {
            let sent = timeout(READ_TIMEOUT, self.chunks.send(chunk)).await;
            self.gone = !matches!(sent, Ok(Ok(())));
        }
    }
}

const fn step_end(result: &StmtResult) -> CursorEntry<'_> {
    CursorEntry::StepEnd {
        affected_row_count: result.affected_row_count,
        last_insert_rowid: match &result.last_insert_rowid {
            Some(rowid) => Some(rowid.as_str()),
            None => None,
        },
    }
}
