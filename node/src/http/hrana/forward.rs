//! Writes that run at the origin: a region of a program on its way there and its answer on the way back,
//! and the header by which a client names its request.
//!
//! Both are JSON, whose values are those of the protocol. Parcels come from members of the cluster; what
//! does not fit together is an error all the same.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use littoral::{
    Bookmark, ForwardError, Grants, Outcome as Became, RequestId, TableSet, WallTime,
    limits::RESULT_BYTES_MAX,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    failure, json as answer_json,
    outcome::Outcome,
    program::{Action, BadRequest, Fate, Program, Statement, Step, check_condition},
    region::{End, Kind, Ran, Region, RegionJob},
    session::RESPONSE_BYTES_MAX,
    sql::Verb,
    wire::{Condition, HranaError, Value},
};
use crate::{
    http::{ServerState, access::Principal},
    runtime::{Next, NodeHandle, Prepared, Programs, StepJob, TransactionError},
};

/// How long the origin may take to begin with a write.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What a client is told who would have been sent there.
pub(super) const ORIGIN_UNREACHABLE: &str = "LITTORAL_ORIGIN_UNREACHABLE";

/// The longest `Idempotency-Key`.
const KEY_BYTES_MAX: usize = 255;

/// The name that a client gives its request, for itself to use again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    text: String,
    /// Another client may use the same key for something else.
    subject: Option<Arc<str>>,
}

impl Key {
    /// The header `Idempotency-Key`.
    pub(super) fn of(headers: &HeaderMap, who: &Principal) -> Result<Option<Self>, BadRequest> {
        match headers.get("idempotency-key") {
            None => Ok(None),
            Some(value) => Self::new(value.as_bytes(), who).map(Some),
        }
    }

    fn new(bytes: &[u8], who: &Principal) -> Result<Self, BadRequest> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| {
            (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
        });
        let subject = who.subject.clone();
        text.map(|text| Self { text: text.to_owned(), subject }).ok_or_else(|| {
            let message = format!(
                "Idempotency-Key is 1 to {KEY_BYTES_MAX} printable ASCII characters without spaces"
            );
            BadRequest::new("BAD_IDEMPOTENCY_KEY", message)
        })
    }

    /// What the write that begins at a step of the request is called everywhere.
    fn request(&self, step: usize) -> RequestId {
        let mut hasher = blake3::Hasher::new_derive_key("littoral 2026 idempotency keys");
        let named = [u8::from(self.subject.is_some())];
        let subject = self.subject.as_deref().unwrap_or_default().as_bytes();
        for part in [&named, subject, self.text.as_bytes()] {
            hasher.update(&(part.len() as u64).to_be_bytes()).update(part);
        }
        hasher.update(&(step as u64).to_be_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        RequestId(u128::from_be_bytes(id))
    }
}

// --- There

/// A region of a program, with what its conditions need to know of what ran before, and what its client
/// may do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Parcel {
    grants: Option<ParcelGrants>,
    explicit: bool,
    /// It is a step of a transaction that is open.
    #[serde(default)]
    continues: bool,
    /// It may only read.
    #[serde(default)]
    read_only: bool,
    fates: Vec<Fate>,
    steps: Vec<ParcelStep>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ParcelStep {
    action: ParcelAction,
    base: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    condition: Option<Condition>,
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    continues: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ParcelAction {
    Run { sql: String, arguments: Vec<Option<Value>>, want_rows: bool },
    Describe(String),
    Autocommit,
    Fail(HranaError),
}

/// Names of tables; all without a list.
type Names = Option<Vec<String>>;

#[derive(Debug, Serialize, Deserialize)]
struct ParcelGrants {
    read: Names,
    insert: Names,
    update: Names,
    delete: Names,
    schema: bool,
    engine: bool,
}

impl ParcelGrants {
    fn of(grants: &Grants) -> Self {
        let names = |tables: &TableSet| match tables {
            TableSet::All => None,
            TableSet::None => Some(Vec::new()),
            TableSet::Named(names) => Some(names.iter().cloned().collect()),
        };
        Self {
            read: names(&grants.read),
            insert: names(&grants.insert),
            update: names(&grants.update),
            delete: names(&grants.delete),
            schema: grants.schema,
            engine: grants.engine,
        }
    }

    fn unpack(self) -> Grants {
        let tables = |names: Names| names.map_or(TableSet::All, TableSet::named);
        Grants {
            read: tables(self.read),
            insert: tables(self.insert),
            update: tables(self.update),
            delete: tables(self.delete),
            schema: self.schema,
            engine: self.engine,
        }
    }
}

impl Parcel {
    pub(super) fn of(
        program: &Program,
        region: &Region,
        fates: &[Fate],
        grants: Option<&Grants>,
    ) -> Self {
        let step = |step: &Step| ParcelStep {
            action: match &step.action {
                Action::Run(statement) => ParcelAction::Run {
                    sql: statement.sql.clone(),
                    arguments: statement.arguments.clone(),
                    want_rows: statement.want_rows,
                },
                Action::Describe(text) => ParcelAction::Describe(text.clone()),
                Action::Autocommit => ParcelAction::Autocommit,
                Action::Fail(error) => ParcelAction::Fail(error.clone()),
            },
            base: step.base,
            condition: step.condition.clone(),
            continues: step.continues_script,
        };
        let steps = &program.steps[region.begin..region.steps.end];
        Self {
            grants: grants.map(ParcelGrants::of),
            explicit: region.kind == Kind::Begun,
            continues: region.kind == Kind::Continued,
            read_only: false,
            fates: fates.to_vec(),
            steps: steps.iter().map(step).collect(),
        }
    }

    /// The same, of what may only read.
    pub(super) fn reading_only(self, read_only: bool) -> Self {
        Self { read_only, ..self }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, HranaError> {
        serde_json::to_vec(self)
            .map_err(|error| HranaError::new("LITTORAL_UNAVAILABLE", error.to_string()))
    }

    /// What it is of a program, or why it is none.
    fn unpack(self, budget: usize) -> Result<RegionJob, String> {
        let begin = self.fates.len();
        // Nothing of what ran before is here, but steps are told by their number.
        let before = || Step {
            action: Action::Autocommit,
            base: 0,
            condition: None,
            continues_script: false,
        };
        let mut program = Program::default();
        program.steps.resize_with(begin, before);
        for step in self.steps {
            let number = program.steps.len();
            if step.base > number || (step.continues && number == 0) {
                return Err(format!("step {number} counts from {}", step.base));
            }
            if let Some(condition) = &step.condition {
                check_condition(condition, number - step.base).map_err(|error| error.0.message)?;
            }
            program.steps.push(Step {
                action: match step.action {
                    ParcelAction::Run { sql, arguments, want_rows } => {
                        let verb = Verb::of(&sql);
                        Action::Run(Statement { sql, verb, arguments, want_rows })
                    }
                    ParcelAction::Describe(text) => Action::Describe(text),
                    ParcelAction::Autocommit => Action::Autocommit,
                    ParcelAction::Fail(error) => Action::Fail(error),
                },
                base: step.base,
                condition: step.condition,
                continues_script: step.continues,
            });
        }
        let end = program.steps.len();
        if end == begin {
            return Err("there is nothing to run".to_owned());
        }
        let steps = begin + usize::from(self.explicit)..end;
        let kind = match (self.continues, self.explicit) {
            (true, _) => Kind::Continued,
            (false, true) => Kind::Begun,
            (false, false) => Kind::Script,
        };
        Ok(RegionJob {
            program: Arc::new(program),
            region: Region { begin, steps, kind },
            prior: self.fates,
            budget,
            grants: self.grants.map(|grants| Arc::new(grants.unpack())),
            read_only: self.read_only,
        })
    }
}

/// How parcels are read at the origin, and what their senders are told.
pub(crate) const PROGRAMS: Programs = Programs { prepare, step, ended };

/// At the origin: makes a step of a guest of a parcel.
fn step(program: &[u8]) -> StepJob {
    let unpacked = serde_json::from_slice::<Parcel>(program).map_err(|error| error.to_string());
    let job = unpacked.and_then(|parcel| parcel.unpack(RESPONSE_BYTES_MAX));
    Box::new(move |tx| {
        let ran = job
            .map_err(unreadable)
            .and_then(|job| job.step(tx).map_err(|error| HranaError::from(&error)));
        match ran {
            Ok(ran) => {
                let next = if ran.end == End::Commit { Next::Commit } else { Next::Open };
                (next, pack(Some(ran), None))
            }
            Err(error) => (Next::Open, pack(None, Some(error))),
        }
    })
}

fn unreadable(why: String) -> HranaError {
    let message = format!("the origin cannot read the request: {why}");
    HranaError::new("LITTORAL_UNAVAILABLE", message)
}

/// What a guest is told whose transaction has ended.
fn ended(why: &TransactionError) -> Vec<u8> {
    pack(None, Some(HranaError::from(why)))
}

/// At the origin: makes a job of a parcel; or says what its sender is told.
pub(super) fn prepare(program: &[u8]) -> Result<Prepared, Vec<u8>> {
    let unpacked = serde_json::from_slice::<Parcel>(program)
        .map_err(|error| error.to_string())
        .and_then(|parcel| parcel.unpack(RESPONSE_BYTES_MAX));
    let job = unpacked.map_err(|why| pack(None, Some(unreadable(why))))?;
    let ran: Arc<Mutex<Option<Ran>>> = Arc::default();
    let last_run = Arc::clone(&ran);
    Ok(Prepared {
        run: Box::new(move |tx| {
            job.run(tx, &last_run)?;
            Ok(pack(last_run.lock().take(), None))
        }),
        failed: Box::new(move |error| {
            let error = HranaError::from(error);
            let packed = pack(ran.lock().take(), Some(error.clone()));
            // The rows of what was taken back are worth less than the reason.
            if packed.len() > RESULT_BYTES_MAX { pack(None, Some(error)) } else { packed }
        }),
    })
}

// --- And back

/// What became of a region at the origin.
#[derive(Debug, Serialize, Deserialize)]
struct Returned {
    outcomes: Option<Vec<Outcome>>,
    end: Option<End>,
    error: Option<HranaError>,
}

fn pack(ran: Option<Ran>, error: Option<HranaError>) -> Vec<u8> {
    let (outcomes, end) = ran.map(|ran| (ran.outcomes, ran.end)).unzip();
    // Our answers are maps with text keys, which always have a JSON form.
    serde_json::to_vec(&Returned { outcomes, end, error }).unwrap_or_default()
}

/// What the region came to: what ran, and whether it stands.
pub(super) type Settled = (Option<Ran>, Result<(), HranaError>);

pub(super) fn unpack(bytes: &[u8], budget: usize) -> Settled {
    match serde_json::from_slice::<Returned>(bytes) {
        Ok(Returned { outcomes, end, error }) => {
            let budget = budget.saturating_sub(bytes.len());
            let ran = outcomes.zip(end).map(|(outcomes, end)| Ran { outcomes, end, budget });
            (ran, error.map_or(Ok(()), Err))
        }
        Err(error) => {
            let message = format!("the origin's answer cannot be read: {error}");
            (None, Err(HranaError::new("LITTORAL_UNAVAILABLE", message)))
        }
    }
}

/// Has the origin run a region. With a key, every retry with it gets the outcome of the first run.
pub(super) async fn run_at_origin(
    node: &NodeHandle,
    parcel: Parcel,
    begin: usize,
    key: Option<&Key>,
    budget: usize,
) -> Settled {
    let parcel = match parcel.encode() {
        Ok(parcel) => parcel,
        Err(error) => return (None, Err(error)),
    };
    let id = key.map(|key| key.request(begin));
    match node.forward(id, parcel, PATIENCE).await {
        Ok(
            Became::Committed { result: Some(bytes), .. }
            | Became::Unchanged { result: bytes }
            | Became::Failed { answer: bytes },
        ) => unpack(&bytes, budget),
        Ok(Became::Committed { result: None, dot }) => {
            let message = format!(
                "the request was committed before, as entry {dot}; what it gave was too much to keep"
            );
            (None, Err(HranaError::new("LITTORAL_RESULT_NOT_KEPT", message)))
        }
        // Nothing was begun, so the others are no answers.
        Ok(Became::Refused | Became::Begun(_) | Became::Stepped { .. } | Became::Read { .. }) => {
            (None, Err(refused()))
        }
        Err(error) => (None, Err(HranaError::from(&error))),
    }
}

/// Has the origin run a region that only reads, after what a bookmark names. Gives also what it can have seen,
/// if it ran.
pub(super) async fn read_at_origin(
    node: &NodeHandle,
    parcel: Parcel,
    after: Option<Bookmark>,
    patience: Duration,
    budget: usize,
) -> (Settled, Option<Bookmark>) {
    let parcel = match parcel.reading_only(true).encode() {
        Ok(parcel) => parcel,
        Err(error) => return ((None, Err(error)), None),
    };
    match node.read_at_origin(parcel, after, patience).await {
        Ok(Became::Read { result, seen }) => (unpack(&result, budget), Some(seen)),
        Ok(Became::Failed { answer }) => (unpack(&answer, budget), None),
        // It commits nothing, and nobody else knows its name.
        Ok(_) => ((None, Err(refused())), None),
        Err(error) => ((None, Err(HranaError::from(&error))), None),
    }
}

pub(super) fn refused() -> HranaError {
    let message = "the request was not committed and never will be: somebody has asked for its outcome \
                   before it came to the origin";
    HranaError::new("LITTORAL_OUTCOME_REFUSED", message)
}

impl From<&ForwardError> for HranaError {
    fn from(error: &ForwardError) -> Self {
        let code = match error {
            ForwardError::OriginUnreachable { .. } => ORIGIN_UNREACHABLE,
            ForwardError::OtherProgram { .. } => "LITTORAL_KEY_REUSED",
            ForwardError::Expired { .. } => "LITTORAL_OUTCOME_EXPIRED",
            ForwardError::TooLarge { .. } => "LITTORAL_REQUEST_TOO_LARGE",
            ForwardError::TooMany => "LITTORAL_BUSY",
            ForwardError::Gone { .. } => "LITTORAL_TRANSACTION_LOST",
            _ => "LITTORAL_OUTCOME_UNKNOWN",
        };
        Self::new(code, error.to_string())
    }
}

// --- The outcome of a request

/// Which request: by the id that an error has named, or by the client's own key.
#[derive(Debug, Deserialize)]
pub(crate) struct Which {
    id: Option<String>,
    key: Option<String>,
    /// Where in a request of several statements the write begins.
    #[serde(default)]
    step: usize,
}

impl Which {
    /// Its id, and when it was issued, as far as the id says so.
    fn request(&self, who: &Principal) -> Result<(RequestId, Option<WallTime>), BadRequest> {
        match (&self.id, &self.key) {
            (Some(id), None) => {
                let id = u128::from_str_radix(id, 16).map_err(|_| {
                    BadRequest::new("BAD_REQUEST_ID", "id is 32 hexadecimal digits")
                })?;
                Ok((RequestId(id), Some(NodeHandle::issued(RequestId(id)))))
            }
            (None, Some(key)) => Ok((Key::new(key.as_bytes(), who)?.request(self.step), None)),
            _ => Err(BadRequest::new("BAD_REQUEST_ID", "exactly one of id and key must be given")),
        }
    }
}

/// `POST /v1/outcome`: it may decide the outcome, so it is no GET.
pub(crate) async fn outcome(
    State(state): State<Arc<ServerState>>,
    Extension(who): Extension<Principal>,
    Query(which): Query<Which>,
) -> Response {
    let (id, issued) = match which.request(&who) {
        Ok(request) => request,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &error.0.code, &error.0.message),
    };
    match state.node.outcome(id, issued, PATIENCE).await {
        Ok(Became::Committed { dot, result }) => {
            let outcomes = result.and_then(|bytes| {
                serde_json::from_slice::<Returned>(&bytes)
                    .ok()
                    .and_then(|returned| returned.outcomes)
            });
            let body =
                json!({ "outcome": "committed", "entry": dot.to_string(), "steps": outcomes });
            answer_json(StatusCode::OK, &body)
        }
        // A question has no other answers.
        Ok(_) => answer_json(StatusCode::OK, &json!({ "outcome": "not committed" })),
        Err(error) => {
            let status = match error {
                ForwardError::Expired { .. } => StatusCode::GONE,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            };
            let error = HranaError::from(&error);
            failure(status, &error.code, &error.message)
        }
    }
}
