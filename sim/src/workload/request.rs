//! Programs that clients have run at the origin, and what they give.

use littoral::{ProgramJob, WriteError, WriteTx};
use rusqlite::params;

use crate::chance::Draw;

/// Names a request of a run. One that is a guest, with steps, says how many: see [`guest_number`].
pub(crate) type RequestNumber = u64;

/// Requests of guests have greater numbers.
const FIRST_GUEST: RequestNumber = 1_000_000;

/// The number of a guest that takes so many steps, fewer than ten.
pub(crate) const fn guest_number(number: u64, steps: u64) -> RequestNumber {
    FIRST_GUEST + number * 10 + steps
}

/// How many rows a request adds once it is committed.
pub(crate) const fn rows_of(request: RequestNumber) -> i64 {
    if request < FIRST_GUEST { 1 } else { (request % 10).cast_signed() }
}

/// What a program does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// It adds a row of its number to `parcel`.
    Adds,
    /// The same, and it gives back more than is kept.
    AddsMuch,
    /// It changes nothing.
    Looks,
    /// It adds its row, and then fails.
    Fails,
    /// A step of a guest: it adds a row of its edition, and tells how many of the request it sees.
    Steps,
    /// The same, and the guest commits.
    Ends,
}

/// Something that a client wants done once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Program {
    /// What.
    pub(crate) kind: Kind,
    /// For which request.
    pub(crate) request: RequestNumber,
    /// Programs of one request that differ in this are different ones.
    pub(crate) edition: u64,
}

impl Program {
    /// Draws what a request is about.
    pub(crate) fn draw(draw: &mut Draw, request: RequestNumber) -> Self {
        use Kind::{Adds, AddsMuch, Fails, Looks};
        let kind = *draw.pick(&[Adds, Adds, Adds, Adds, Adds, Adds, AddsMuch, Looks, Fails]);
        Self { kind, request, edition: 0 }
    }

    /// As it is sent.
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut bytes = vec![self.kind as u8];
        bytes.extend(self.request.to_be_bytes());
        bytes.extend(self.edition.to_be_bytes());
        bytes
    }

    /// As it was sent.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let kinds = [Kind::Adds, Kind::AddsMuch, Kind::Looks, Kind::Fails, Kind::Steps, Kind::Ends];
        let (kind, rest) = bytes.split_first()?;
        let (request, edition) = rest.split_at_checked(8)?;
        Some(Self {
            kind: *kinds.get(usize::from(*kind))?,
            request: u64::from_be_bytes(request.try_into().ok()?),
            edition: u64::from_be_bytes(edition.try_into().ok()?),
        })
    }

    /// What it gives.
    pub(crate) fn result(self) -> Vec<u8> {
        let mut result = self.encode();
        if self.kind == Kind::AddsMuch {
            result.resize(70_000, 0);
        }
        result
    }

    /// Runs it as a step of a guest.
    pub(crate) fn step(self, tx: &mut WriteTx<'_>) -> Result<Vec<u8>, WriteError> {
        let insert = "INSERT INTO parcel (request, edition) VALUES (?, ?)";
        tx.execute(insert, params![self.request.cast_signed(), self.edition.cast_signed()])?;
        let count = "SELECT count(*) FROM parcel WHERE request = ?";
        let seen: i64 = tx.query_row(count, [self.request.cast_signed()], |row| row.get(0))?;
        Ok(Self { edition: seen.cast_unsigned(), ..self }.encode())
    }

    /// The job that it is.
    pub(crate) fn into_job(self) -> ProgramJob {
        Box::new(move |tx: &mut WriteTx<'_>| {
            let insert = "INSERT INTO parcel (request, edition) VALUES (?, ?)";
            let row = params![self.request.cast_signed(), self.edition.cast_signed()];
            match self.kind {
                Kind::Adds | Kind::AddsMuch => drop(tx.execute(insert, row)?),
                Kind::Looks => tx.query_row("SELECT count(*) FROM parcel", [], |_| Ok(()))?,
                Kind::Fails => {
                    tx.execute(insert, row)?;
                    tx.execute("INSERT INTO parcel (request, edition) VALUES (NULL, 0)", [])?;
                }
                // Those of guests are no jobs.
                Kind::Steps | Kind::Ends => drop(self.step(tx)?),
            }
            Ok(self.result())
        })
    }
}
