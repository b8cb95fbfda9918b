//! Bugs that can be planted at run time, to prove that the simulator finds them.
//!
//! Nothing outside tests and the simulator ever plants one. Without the feature `testing`,
//! `planted` is a constant and the compiler removes the checks.
//!
//! One bug is planted per process, for all replicas in it.

#[cfg(feature = "testing")]
pub mod fuzz;

/// A mistake the engine makes on purpose while it is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Bug {
    /// No bug.
    None = 0,
    /// Entries are sent before they are on stable storage.
    SendUnsynced,
    /// A counter's new value is captured instead of its increment.
    CounterAbsolute,
    /// The write that arrives last wins, whatever its stamp.
    TiesByArrival,
    /// An update brings a deleted row's clocks back to life.
    UpdateRevives,
    /// An insert over a tombstone stays in the deleted epoch.
    EpochKept,
    /// After a reconnect a sender leaves out the first entry the receiver lacks.
    SkipOnReconnect,
    /// Of two links that two nodes made at once, both stay.
    BothLinksKept,
    /// Of two links that two nodes made at once, each node closes the one that it has had for longer.
    BothLinksClosed,
    /// A receiver applies increments again that it has applied before.
    CounterReapplied,
    /// A write is answered although its transaction was rolled back.
    AnswerBeforeCommit,
    /// Rows of a failed statement stay in the entry.
    FailedStatementKept,
    /// After a restart stamps follow the wall clock alone.
    HlcForgotten,
    /// A causal overwrite is told from a concurrent one by its stamp alone.
    PrevIgnored,
    /// A delete is taken to have seen everything in the row.
    SawIgnored,
    /// A link keeps its place in the log by position, and not by what the receiver has.
    RelayForgotten,
    /// Clocks of entries applied before the restart are lost.
    ClocksNotReplayed,
    /// A snapshot is taken for a joiner before its `Join` was applied.
    EarlySnapshot,
    /// The origin counts an acknowledgement before it has applied what its member had written.
    EarlyAck,
    /// A frontier makes nodes forget clocks that it does not cover.
    DropAny,
    /// A frontier that covers a delete does not shift the row's epochs.
    NoShift,
    /// Of several deletes of one epoch only the last one is remembered.
    LateShift,
    /// Shifts of epochs are lost when the file is opened.
    ShiftsNotSaved,
    /// The log is trimmed, and its clocks are in no checkpoint.
    TrimPastCheckpoint,
    /// The log is trimmed of what a linked member is still to be sent.
    TrimUnsent,
    /// Chunks that a crash kept from being removed are never removed.
    ChunksOfNobody,
    /// Chunks are removed that another entry has by now.
    ChunksOfAnother,
    /// What is not on stable storage yet is acknowledged.
    AckUnsynced,
    /// The author's row keeps what a statement wrote to a `max` or `min` column.
    NotNormalized,
    /// Of a group, only the columns that changed are assigned.
    GroupSplit,
    /// The value of a `max` or `min` column that arrives last is stored.
    ExtremeByArrival,
    /// A counter that overflows in a merge is not reported.
    OverflowUnreported,
    /// A merge that breaks a CHECK is not reported.
    CheckUnreported,
    /// A DELETE without WHERE that was prepared before the hook was installed truncates the table, and
    /// no row is captured.
    TruncationUnseen,
    /// A job of a group is kept although a deferred foreign key of it is violated.
    DeferredViolationKept,
    /// What AUTOINCREMENT has handed out does not stand in the entry.
    SequenceForgotten,
    /// A key that is written in another way, and equal, counts as unchanged.
    RespellingIgnored,
    /// Derived triggers are not mirrored again after a restart.
    MirrorsForgotten,
    /// A row counts as different although entries that the peer lacked have written it.
    ComparedTooEarly,
    /// A sender passes over an entry that the receiver holds.
    HoldSkipped,
    /// What was received of a large entry is taken for the beginning of another one.
    SpoolOfAnother,
    /// A large entry is applied in several transactions.
    LargeInPieces,
    /// Rows of a failed statement stay in the entry if they were on disk already.
    SpilledRowsKept,
    /// An entry from the future is applied.
    FutureApplied,
    /// An entry from the future is passed over instead of held.
    FuturePassedOver,
    /// A node whose stamps are far ahead goes on writing.
    WritesAhead,
    /// Nobody looks whether another program writes the file.
    ForeignUnseen,
    /// Who has applied a freeze goes on writing to its tables.
    NoTableFreeze,
    /// A change that needs a freeze happens as soon as the tables are frozen.
    ThawedEarly,
    /// A freeze is forgotten when the file is opened.
    FreezeForgotten,
    /// A removal from a set leaves adds that a frontier covers.
    StableFlagIgnored,
    /// A removal from a set does not name the adds that its author had clocks of.
    RemovalWithoutDots,
    /// Remote entries are applied in the middle of an interactive transaction.
    AppliedInside,
    /// An interactive transaction that was given up leaves its rows in the next entry.
    AbandonedKept,
    /// The bookmark of a write is taken before its entry is published.
    BookmarkBehind,
    /// A read does not wait for what its bookmark names.
    BookmarkUnwaited,
    /// A watermark counts before all its entries are applied.
    WatermarkUncovered,
    /// A watermark counts as new when it arrives, whatever it took to come.
    WatermarkAgeless,
    /// The outcome of a request is not kept with what it did.
    OutcomeLost,
    /// Outcomes are forgotten when the file is opened.
    OutcomesForgotten,
    /// A request is answered before the entry with its outcome is applied.
    AnsweredUnapplied,
    /// The origin says what became of a request before that is on stable storage.
    RepliedUnsynced,
    /// Nobody looks whether a retry is of the same program.
    OtherProgramTaken,
    /// The origin runs a request before it has what its sender had.
    RequirementIgnored,
    /// A request that was refused is not remembered, and runs when it comes.
    RefusalForgotten,
    /// A node that is not the origin shows its own rows of an `origin-strong` table.
    StrongReadHere,
    /// It does so where a view reads them.
    StrongViewHere,
    /// It does so where a job reads them that writes something else.
    StrongJobHere,
    /// What a program gave that only read is given again to who sends the same program later.
    AnswerKept,
    /// A read does not wait, or fail, for rows that are older than its table allows.
    LagBoundIgnored,
    /// What was read at the origin is not in the bookmark of the answer.
    ReadThereUnseen,
    /// A node that meets the origin is told only of what a frontier covers.
    MeetingBehind,
    /// What may be stale while the origin cannot be reached is so while it can.
    StaleUnasked,
    /// A statement that was prepared while the origin could not be reached goes on showing this node's rows.
    StaleStatementKept,
    /// A statement that was prepared while rows were new enough goes on showing them when they are too old.
    OldStatementKept,
    /// A node does not keep which columns are personal.
    PersonalForgotten,
    /// A replica whose disk was full goes on refusing writes when there is room.
    FullForGood,
    /// The WAL is not begun anew while there is always something to copy.
    WalNeverAnew,
    /// A step of a guest that comes again runs again.
    StepTwice,
    /// What a guest has committed leaves no outcome.
    GuestOutcomeLost,
    /// A read that goes to the origin does not bring the bookmark that this node does not reach.
    BookmarkLeftBehind,
    /// What a program that failed has seen at the origin is not waited for.
    FailureUnseen,
}

impl Bug {
    /// Every bug, in the order in which `selftest` plants them.
    pub const ALL: [Self; 81] = [
        Self::SendUnsynced,
        Self::CounterAbsolute,
        Self::TiesByArrival,
        Self::UpdateRevives,
        Self::EpochKept,
        Self::SkipOnReconnect,
        Self::BothLinksKept,
        Self::BothLinksClosed,
        Self::CounterReapplied,
        Self::AnswerBeforeCommit,
        Self::FailedStatementKept,
        Self::HlcForgotten,
        Self::PrevIgnored,
        Self::SawIgnored,
        Self::RelayForgotten,
        Self::ClocksNotReplayed,
        Self::EarlySnapshot,
        Self::EarlyAck,
        Self::DropAny,
        Self::NoShift,
        Self::LateShift,
        Self::ShiftsNotSaved,
        Self::TrimPastCheckpoint,
        Self::TrimUnsent,
        Self::ChunksOfNobody,
        Self::ChunksOfAnother,
        Self::AckUnsynced,
        Self::NotNormalized,
        Self::GroupSplit,
        Self::ExtremeByArrival,
        Self::OverflowUnreported,
        Self::CheckUnreported,
        Self::TruncationUnseen,
        Self::DeferredViolationKept,
        Self::SequenceForgotten,
        Self::RespellingIgnored,
        Self::MirrorsForgotten,
        Self::ComparedTooEarly,
        Self::HoldSkipped,
        Self::SpoolOfAnother,
        Self::LargeInPieces,
        Self::SpilledRowsKept,
        Self::FutureApplied,
        Self::FuturePassedOver,
        Self::WritesAhead,
        Self::ForeignUnseen,
        Self::NoTableFreeze,
        Self::ThawedEarly,
        Self::FreezeForgotten,
        Self::StableFlagIgnored,
        Self::RemovalWithoutDots,
        Self::AppliedInside,
        Self::AbandonedKept,
        Self::BookmarkBehind,
        Self::BookmarkUnwaited,
        Self::WatermarkUncovered,
        Self::WatermarkAgeless,
        Self::OutcomeLost,
        Self::OutcomesForgotten,
        Self::AnsweredUnapplied,
        Self::RepliedUnsynced,
        Self::OtherProgramTaken,
        Self::RequirementIgnored,
        Self::RefusalForgotten,
        Self::StrongReadHere,
        Self::StrongViewHere,
        Self::StrongJobHere,
        Self::AnswerKept,
        Self::LagBoundIgnored,
        Self::ReadThereUnseen,
        Self::MeetingBehind,
        Self::StaleUnasked,
        Self::StaleStatementKept,
        Self::OldStatementKept,
        Self::PersonalForgotten,
        Self::FullForGood,
        Self::WalNeverAnew,
        Self::StepTwice,
        Self::GuestOutcomeLost,
        Self::BookmarkLeftBehind,
        Self::FailureUnseen,
    ];
}

#[cfg(feature = "testing")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Makes every replica of this process make the mistake `bug`, until another is planted.
#[cfg(feature = "testing")]
pub fn plant(bug: Bug) {
    PLANTED.store(bug as u8, std::sync::atomic::Ordering::Relaxed);
}

/// Whether `bug` is planted.
#[cfg(feature = "testing")]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8
}

/// Whether `bug` is planted.
#[cfg(not(feature = "testing"))]
pub(crate) const fn planted(bug: Bug) -> bool {
    let _ = bug;
    false
}
