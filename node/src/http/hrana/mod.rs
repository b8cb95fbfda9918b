//! The libSQL remote protocol: Hrana over HTTP and over WebSockets.
//!
//! `wire` is its JSON, `sql` reads the words of statements, `program` plans a pipeline, `execute` runs it: a
//! `region` of its steps at a time, on a `session`, or at the origin, as `at_origin` has it, by way of `forward`; those of a
//! transaction that stays open in `interactive`, or at the origin in `visiting`, with what a `journal` keeps.
//! `outcome` makes answers of what became of the steps, `emitter` sends them as they come, `error` names
//! what went wrong. A `stream` is what stays from request to request: `batons` keeps those of HTTP, `socket`
//! has its own.

mod at_origin;
mod batons;
mod emitter;
mod error;
mod execute;
mod forward;
#[cfg(test)]
mod fuzz;
mod interactive;
mod journal;
mod outcome;
mod program;
mod redact;
mod region;
mod session;
mod slow;
mod socket;
mod sql;
mod stream;
mod visiting;
mod wire;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::body::Frame;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use self::{
    at_origin::After,
    emitter::Emitter,
    forward::Key,
    program::{BadRequest, Program, Stored},
    stream::Stream,
    wire::{
        Batch, CursorRequest, HranaError, PipelineRequest, PipelineResponse, Stmt, StreamRequest,
        StreamResponse, StreamResult,
    },
};
pub(crate) use self::{
    batons::Streams, forward::PROGRAMS, sql::changes_schema, sql::sets_foreign_keys,
    sql::statements, stream::Notes,
};
pub(super) use self::{forward::outcome, socket::upgrade};
use super::{
    ServerState,
    access::Principal,
    session::{NOT_REACHED, Session, is_of_session},
};
use crate::{otlp, runtime::NodeHandle};

/// `GET /v2` and `GET /v3`: clients only look at the status.
pub(super) async fn probe() -> &'static str {
    "Hello, this is a littoral node that speaks Hrana over HTTP"
}

/// What a client is told of a body that is not as it should be.
const ERROR_CHARS_MAX: usize = 300;

/// `POST /v2/pipeline` and `POST /v3/pipeline`.
pub(super) async fn pipeline(
    State(state): State<Arc<ServerState>>,
    Extension(who): Extension<Principal>,
    session: Option<Extension<Session>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match run_pipeline(&state, &who, session, &headers, &body).await {
        Ok((response, notes)) => {
            (Extension(notes), json(StatusCode::OK, &response)).into_response()
        }
        Err(error) => bad_request(error),
    }
}

async fn run_pipeline(
    state: &ServerState,
    who: &Principal,
    session: OfRequest,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(PipelineResponse, Notes), BadRequest> {
    let key = Key::of(headers, who)?;
    let request: PipelineRequest = parse(body)?;
    let session = resumed(session, request.baton.as_deref()).await?;
    let mut lease = state.streams.take(request.baton.as_deref()).await?;
    let program = Arc::new(Program::plan(request.requests, &mut lease.stream().stored)?);
    let keeps = lease.stream().keeps_something() || program.begins_transaction();
    if keeps && !program.closes {
        lease.reserve()?;
    }
    let after = session_begins(&session, &state.node, lease.stream(), &program).await?;
    let (node, grants, key) = (&state.node, who.grants.as_ref(), key.as_ref());
    let outcomes = execute::execute(node, grants, lease.stream(), &program, key, after, None).await;
    session_ends(&session, lease.stream()).await?;
    let results = outcome::answer(&program, outcomes);
    let notes = std::mem::take(&mut lease.stream().notes);
    let baton = lease.finish(program.closes)?;
    Ok((PipelineResponse { baton, base_url: None, results }, notes))
}

/// What is there of a cursor's answer before it begins, so that its header can tell of it: as much as this,
/// unless more takes longer than [`HELD_BACK`].
const HELD_BYTES: usize = 256 << 10;
const HELD_BACK: Duration = Duration::from_secs(1);

/// `POST /v3/cursor`: one batch, answered as a line for each row, sent as it is read. Of an answer that is over
/// before it begins, there are notes.
pub(super) async fn cursor(
    State(state): State<Arc<ServerState>>,
    Extension(who): Extension<Principal>,
    session: Option<Extension<Session>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    match open_cursor(&state, who, session, &headers, &body).await {
        Ok((body, notes)) => {
            let mut answer = ([(header::CONTENT_TYPE, "text/plain")], body).into_response();
            if let Some(notes) = notes {
                answer.extensions_mut().insert(notes);
            }
            answer
        }
        Err(error) => bad_request(error),
    }
}

async fn open_cursor(
    state: &ServerState,
    who: Principal,
    session: OfRequest,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(Body, Option<Notes>), BadRequest> {
    let key = Key::of(headers, &who)?;
    let request: CursorRequest = parse(body)?;
    let session = resumed(session, request.baton.as_deref()).await?;
    let mut lease = state.streams.take(request.baton.as_deref()).await?;
    let requests = vec![StreamRequest::Batch { batch: request.batch }];
    let program = Arc::new(Program::plan(requests, &mut lease.stream().stored)?);
    let after = session_begins(&session, &state.node, lease.stream(), &program).await?;
    // It is told before anything runs, so it is kept if the stream may keep something.
    let kept = lease.stream().keeps_something() || program.begins_transaction();
    let baton = if kept { Some(lease.next_baton()?) } else { None };
    let mut first = format!("{}\n", to_json(&CursorHead { baton, base_url: None }));
    let (emitter, mut chunks) = Emitter::new();
    let (ended, mut noted) = oneshot::channel();
    let node = state.node.clone();
    tokio::spawn(otlp::passed_on(async move {
        let grants = who.grants.as_ref();
        let key = key.as_ref();
        let mut end = emitter.again();
        let stream = lease.stream();
        execute::execute(&node, grants, stream, &program, key, after, Some(emitter)).await;
        // All of its rows are there by now, and the answer ends only after this.
        if let Err(error) = session_ends(&session, lease.stream()).await {
            end.fail(&error.0).await;
        }
        // Nobody wants to know of an answer that has begun.
        let _ = ended.send(std::mem::take(&mut lease.stream().notes));
    }));
    let hold = async {
        while first.len() < HELD_BYTES {
            match chunks.recv().await {
                Some(chunk) => first.push_str(&chunk),
                // The notes came before that.
                None => return noted.try_recv().ok(),
            }
        }
        None
    };
    let notes = timeout(HELD_BACK, hold).await.ok().flatten();
    Ok((Body::new(Lines { first: Some(first), chunks }), notes))
}

/// The first line of a cursor's answer.
#[derive(Serialize)]
struct CursorHead {
    baton: Option<String>,
    base_url: Option<String>,
}

/// The body of a cursor's answer.
struct Lines {
    first: Option<String>,
    chunks: mpsc::Receiver<String>,
}

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = |lines: String| Ok(Frame::data(Bytes::from(lines)));
        match self.first.take() {
            Some(first) => Poll::Ready(Some(frame(first))),
            None => self.chunks.poll_recv(context).map(|chunk| chunk.map(frame)),
        }
    }
}

/// `POST /v1/execute`: one statement, whose failure is the request's.
pub(super) async fn execute_once(
    State(state): State<Arc<ServerState>>,
    Extension(who): Extension<Principal>,
    session: Option<Extension<Session>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    #[derive(Deserialize)]
    struct Request {
        stmt: Stmt,
    }
    let plan = parse(&body)
        .map(|Request { stmt }| vec![StreamRequest::Execute { stmt }, StreamRequest::Close]);
    answer_once(&state.node, &who, session, &headers, plan).await
}

/// `POST /v1/batch`: one batch, whose steps fail for themselves.
pub(super) async fn batch_once(
    State(state): State<Arc<ServerState>>,
    Extension(who): Extension<Principal>,
    session: Option<Extension<Session>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    #[derive(Deserialize)]
    struct Request {
        batch: Batch,
    }
    let plan = parse(&body)
        .map(|Request { batch }| vec![StreamRequest::Batch { batch }, StreamRequest::Close]);
    answer_once(&state.node, &who, session, &headers, plan).await
}

async fn answer_once(
    node: &NodeHandle,
    who: &Principal,
    session: OfRequest,
    headers: &HeaderMap,
    requests: Result<Vec<StreamRequest>, BadRequest>,
) -> Response {
    #[derive(Serialize)]
    struct Body<T> {
        result: T,
    }
    let plan = |requests| Program::plan(requests, &mut Stored::default());
    let planned = requests.and_then(plan);
    let (program, key) = match planned.and_then(|program| Ok((program, Key::of(headers, who)?))) {
        Ok((program, key)) => (Arc::new(program), key),
        Err(error) => return bad_request(error),
    };
    let grants = who.grants.as_ref();
    let (mut stream, key) = (Stream::default(), key.as_ref());
    let after = match session_begins(&session, node, &stream, &program).await {
        Ok(after) => after,
        Err(error) => return bad_request(error),
    };
    let outcomes = execute::execute(node, grants, &mut stream, &program, key, after, None).await;
    if let Err(error) = session_ends(&session, &stream).await {
        return bad_request(error);
    }
    let response = match outcome::answer(&program, outcomes).into_iter().next() {
        Some(StreamResult::Ok { response: StreamResponse::Execute { result } }) => {
            json(StatusCode::OK, &Body { result })
        }
        Some(StreamResult::Ok { response: StreamResponse::Batch { result } }) => {
            json(StatusCode::OK, &Body { result })
        }
        Some(StreamResult::Error { error }) => bad_request(BadRequest(error)),
        _ => bad_request(BadRequest::new("LITTORAL_UNAVAILABLE", "there is no answer")),
    };
    (Extension(stream.notes), response).into_response()
}

/// The session of a request, if the node keeps one.
type OfRequest = Option<Extension<Session>>;

/// A request that goes on with a stream waits here for its bookmark, before its baton is used: if that is in
/// vain, it can come again.
async fn resumed(session: OfRequest, baton: Option<&str>) -> Result<OfRequest, BadRequest> {
    match (session, baton) {
        (Some(Extension(Session::Behind(behind))), Some(_)) => {
            let reached = behind.catches_up().await;
            reached.map(|()| None).map_err(|(code, message)| BadRequest::new(code, message))
        }
        (session, _) => Ok(session),
    }
}

/// Before a request runs, unless it goes on with a transaction, which sees what it saw when it began. Tells if
/// it is to read at the origin, and after what.
async fn session_begins(
    session: &OfRequest,
    node: &NodeHandle,
    stream: &Stream,
    program: &Program,
) -> Result<Option<After>, BadRequest> {
    let begun = match session {
        Some(Extension(Session::BySubject(session))) if !stream.is_in_transaction() => {
            session.begins().await
        }
        Some(Extension(Session::Behind(behind))) => {
            if let Some(statements) = program.only_reads()
                && node.reaches_origin().await
                && node.may_read_there(statements).await
            {
                let (bookmark, until) = (behind.bookmark.clone(), behind.until);
                return Ok(Some(After { bookmark, until }));
            }
            behind.catches_up().await
        }
        _ => Ok(()),
    };
    begun.map(|()| None).map_err(|(code, message)| BadRequest::new(code, message))
}

/// Before a request is answered, unless a transaction is open: it keeps others from applying anything.
async fn session_ends(session: &OfRequest, stream: &Stream) -> Result<(), BadRequest> {
    let ended = match session {
        Some(Extension(Session::BySubject(session))) if !stream.is_in_transaction() => {
            session.ends().await
        }
        Some(Extension(Session::Behind(_))) => {
            stream.notes.unreached.clone().map_or(Ok(()), |why| Err((NOT_REACHED, why)))
        }
        _ => Ok(()),
    };
    ended.map_err(|(code, message)| BadRequest::new(code, message))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadRequest> {
    serde_json::from_slice(body).map_err(|error| {
        // It repeats words of the body, of which one may be as long as that.
        let mut told = error.to_string();
        if let Some((end, _)) = told.char_indices().nth(ERROR_CHARS_MAX) {
            told.truncate(end);
            told += "…";
        }
        BadRequest::new("BAD_JSON", format!("the request body is not as it should be: {told}"))
    })
}

fn bad_request(error: BadRequest) -> Response {
    let status = match error.0.code.as_str() {
        "TOO_MANY_STREAMS" => StatusCode::SERVICE_UNAVAILABLE,
        code if is_of_session(code) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    failure(status, &error.0.code, &error.0.message)
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
