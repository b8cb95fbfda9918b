//! What one local transaction changed: rows as the preupdate hook tells them, folded at commit to one
//! operation per key.
//!
//! Taking them down is [`recorder`]'s, the net effect [`fold`]'s, what the author must still change
//! [`normalize`]'s, the bytes of the entry [`encode`](mod@encode)'s; events that are too many for memory
//! are in [`runs`].
//!
//! Invariants:
//! - at commit the recorder holds exactly what the transaction changed in replicated tables: after a
//!   statement that failed or was rolled back it reads the rows again and guesses nothing;
//! - nothing is captured of tables that are not replicated.

mod encode;
mod fold;
mod normalize;
mod recorder;
mod runs;

pub(crate) use encode::{Encoded, encode};
pub(crate) use normalize::{Repair, repairs};
pub(crate) use recorder::{Captured, Mark, Recorder};
