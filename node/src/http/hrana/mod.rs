//! The libSQL remote protocol (Hrana over HTTP), as far as it needs no streams that outlive a request.
//!
//! `wire` is its JSON, `sql` reads the words of statements, `program` plans a pipeline, `execute` runs
//! it: a `region` of its steps at a time, on a `session`, or at the origin by way of `forward`. `outcome` makes answers of what became of the
//! steps, `error` names what went wrong. Every answer's baton is null: the stream ends with its request.
//! So a transaction must begin and end in one request; one that is left open is an error that says so.

mod error;
mod execute;
mod forward;
mod outcome;
mod program;
mod region;
mod session;
mod sql;
mod wire;

use std::sync::Arc;

use axum::{
    Extension,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use self::{
    forward::Key,
    outcome::Outcome,
    program::{BadRequest, Program},
    wire::{
        Batch, CursorEntry, CursorRequest, HranaError, PipelineRequest, PipelineResponse, Stmt,
        StreamRequest, StreamResponse, StreamResult,
    },
};
pub(crate) use self::{forward::prepare, sql::statements};
use super::{ServerState, access::Principal};
use crate::runtime::NodeHandle;
pub(super) use forward::outcome;

/// `GET /v2` and `GET /v3`: clients only look at the status.
pub(super) async fn probe() -> &'static str {
    "Hello, this is a littoral node that speaks Hrana over HTTP"
}

/// `POST /v2/pipeline` and `POST /v3/pipeline`.
pub(super) async fn pipeline(
    State(state): State<ServerState>,
    Extension(who): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answer = async {
        let key = Key::of(&headers, &who)?;
        let request: PipelineRequest = parse(&body)?;
        refuse_baton(request.baton.as_deref())?;
        let program = Arc::new(Program::plan(request.requests)?);
        let outcomes =
            execute::execute(&state.node, who.grants.as_ref(), &program, key.as_ref()).await;
        let results = outcome::answer(&program, outcomes);
        Ok(PipelineResponse { baton: None, base_url: None, results })
    };
    match answer.await {
        Ok(response) => json(StatusCode::OK, &response),
        Err(error) => bad_request(error),
    }
}

/// `POST /v3/cursor`: one batch, answered as a line for each row.
pub(super) async fn cursor(
    State(state): State<ServerState>,
    Extension(who): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match run_cursor(&state.node, &who, &headers, &body).await {
        Ok(lines) => ([(header::CONTENT_TYPE, "text/plain")], lines).into_response(),
        Err(error) => bad_request(error),
    }
}

/// `POST /v1/execute`: one statement, whose failure is the request's.
pub(super) async fn execute_once(
    State(state): State<ServerState>,
    Extension(who): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    #[derive(Deserialize)]
    struct Request {
        stmt: Stmt,
    }
    let plan = parse(&body)
        .map(|Request { stmt }| vec![StreamRequest::Execute { stmt }, StreamRequest::Close]);
    answer_once(&state.node, &who, &headers, plan).await
}

/// `POST /v1/batch`: one batch, whose steps fail for themselves.
pub(super) async fn batch_once(
    State(state): State<ServerState>,
    Extension(who): Extension<Principal>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    #[derive(Deserialize)]
    struct Request {
        batch: Batch,
    }
    let plan = parse(&body)
        .map(|Request { batch }| vec![StreamRequest::Batch { batch }, StreamRequest::Close]);
    answer_once(&state.node, &who, &headers, plan).await
}

async fn answer_once(
    node: &NodeHandle,
    who: &Principal,
    headers: &HeaderMap,
    requests: Result<Vec<StreamRequest>, BadRequest>,
) -> Response {
    #[derive(Serialize)]
    struct Body<T> {
        result: T,
    }
    let planned = requests.and_then(Program::plan);
    let (program, key) = match planned.and_then(|program| Ok((program, Key::of(headers, who)?))) {
        Ok((program, key)) => (Arc::new(program), key),
        Err(error) => return bad_request(error),
    };
    let outcomes = execute::execute(node, who.grants.as_ref(), &program, key.as_ref()).await;
    match outcome::answer(&program, outcomes).into_iter().next() {
        Some(StreamResult::Ok { response: StreamResponse::Execute { result } }) => {
            json(StatusCode::OK, &Body { result })
        }
        Some(StreamResult::Ok { response: StreamResponse::Batch { result } }) => {
            json(StatusCode::OK, &Body { result })
        }
        Some(StreamResult::Error { error }) => bad_request(BadRequest(error)),
        _ => bad_request(BadRequest::new("LITTORAL_UNAVAILABLE", "there is no answer")),
    }
}

async fn run_cursor(
    node: &NodeHandle,
    who: &Principal,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<String, BadRequest> {
    let key = Key::of(headers, who)?;
    let request: CursorRequest = parse(body)?;
    refuse_baton(request.baton.as_deref())?;
    let program = Arc::new(Program::plan_batch(request.batch)?);
    let outcomes = execute::execute(node, who.grants.as_ref(), &program, key.as_ref()).await;
    let mut lines = String::from("{\"baton\":null,\"base_url\":null}\n");
    for (step, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Outcome::Rows(result) => {
                push_line(&mut lines, &CursorEntry::StepBegin { step, cols: &result.cols });
                for row in &result.rows {
                    push_line(&mut lines, &CursorEntry::Row { row });
                }
                let end = CursorEntry::StepEnd {
                    affected_row_count: result.affected_row_count,
                    last_insert_rowid: result.last_insert_rowid.as_deref(),
                };
                push_line(&mut lines, &end);
            }
            Outcome::Error(error) => {
                push_line(&mut lines, &CursorEntry::StepError { step, error });
            }
            Outcome::Skipped | Outcome::Described(_) | Outcome::Autocommit(_) => {}
        }
    }
    Ok(lines)
}

fn push_line(lines: &mut String, entry: &CursorEntry<'_>) {
    lines.push_str(&to_json(entry));
    lines.push('\n');
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadRequest> {
    serde_json::from_slice(body).map_err(|error| {
        BadRequest::new("BAD_JSON", format!("the request body is not as it should be: {error}"))
    })
}

fn refuse_baton(baton: Option<&str>) -> Result<(), BadRequest> {
    if baton.is_none() {
        return Ok(());
    }
    Err(BadRequest::new(
        "STREAM_EXPIRED",
        "the baton is not known: in this version a stream ends with its request, and every answer's \
         baton is null",
    ))
}

fn bad_request(error: BadRequest) -> Response {
    failure(StatusCode::BAD_REQUEST, &error.0.code, &error.0.message)
}

/// An HTTP error with the body that every client can show.
pub(super) fn failure(status: StatusCode, code: &str, message: &str) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        message: &'a str,
        code: &'a str,
        /// Some clients read nothing else.
        error: &'a str,
    }
    json(status, &Body { message, code, error: message })
}

/// A JSON answer. The type has no charset, since a client compares the whole string.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], to_json(body)).into_response()
}

/// Our answers are maps with text keys, which always have a JSON form.
fn to_json(body: &impl Serialize) -> String {
    serde_json::to_string(body).unwrap_or_else(|error| {
        let error = HranaError::new("LITTORAL_UNAVAILABLE", error.to_string());
        format!("{{\"message\":{:?},\"code\":{:?}}}", error.message, error.code)
    })
}
