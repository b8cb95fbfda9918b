//! Hrana over WebSockets: many streams on one socket, each with a task that runs its requests in order.
//!
//! ```text
//!   socket ──► one loop: reads, plans, hands on ──► task of a stream ──► execute
//!     ▲                                        └──► task of a cursor ◄── its entries
//!     └──────────────── answers ◄──────────────────────────┘
//! ```
//!
//! Stored SQL belongs to the socket, so what a request means is settled in the order in which requests come.
//! A message that breaks the protocol closes the socket, and with it all its streams. So does a request whose
//! token has expired or is signed with a key that is gone: tokens are judged with every request.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use axum::{
    Extension,
    extract::{
        State,
        ws::{
            CloseCode, CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code,
            rejection::WebSocketUpgradeRejection,
        },
    },
    response::Response,
};
use littoral::Grants;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};

use super::{
    batons::{IDLE_LIMIT, Place},
    emitter::Emitter,
    execute, outcome,
    program::{BadRequest, Program, Stored},
    region::never_ran,
    stream::{Open, Stream},
    to_json,
    wire::{Batch, HranaError, SqlText, Stmt, StreamRequest, StreamResponse, StreamResult},
};
use crate::{
    http::{ServerState, access::RemoteAddress, not_found, session::BySubject},
    token::Refused,
};

/// In the order in which they are liked.
const PROTOCOLS: [&str; 3] = ["hrana3", "hrana2", "hrana1"];

/// Streams of one socket at most, and cursors.
const STREAMS_MAX: usize = 128;

/// Requests of one stream that may wait.
const REQUESTS_WAITING: usize = 128;

/// Answers that may wait to be sent; who makes more waits.
const ANSWERS_WAITING: usize = 16;

/// Entries of one answer at most.
const ENTRIES_MAX: usize = 10_000;

/// A WebSocket, on any path; anything else that nobody serves is not found.
pub(in crate::http) async fn upgrade(
    State(state): State<Arc<ServerState>>,
    remote: Option<Extension<RemoteAddress>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else { return not_found() };
    let place = match state.streams.place() {
        Ok(place) => place,
        Err(error) => return super::bad_request(error),
    };
    let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let address = remote.map_or(unknown, |Extension(RemoteAddress(at))| at.ip().to_canonical());
    let size = state.max_body_bytes;
    upgrade
        .protocols(PROTOCOLS)
        .max_message_size(size)
        .max_frame_size(size)
        .on_upgrade(move |socket| serve(socket, state, address, place))
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ClientMessage {
    Hello {
        #[serde(default)]
        jwt: Option<String>,
    },
    Request {
        request_id: i32,
        request: SocketRequest,
    },
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum SocketRequest {
    OpenStream {
        stream_id: i32,
    },
    CloseStream {
        stream_id: i32,
    },
    Execute {
        stream_id: i32,
        stmt: Stmt,
    },
    Batch {
        stream_id: i32,
        batch: Batch,
    },
    Sequence {
        stream_id: i32,
        #[serde(flatten)]
        text: SqlText,
    },
    Describe {
        stream_id: i32,
        #[serde(flatten)]
        text: SqlText,
    },
    StoreSql {
        sql_id: i64,
        sql: String,
    },
    CloseSql {
        sql_id: i64,
    },
    GetAutocommit {
        stream_id: i32,
    },
    OpenCursor {
        stream_id: i32,
        cursor_id: i32,
        batch: Batch,
    },
    FetchCursor {
        cursor_id: i32,
        max_count: u32,
    },
    CloseCursor {
        cursor_id: i32,
    },
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ServerMessage<'a> {
    HelloOk,
    HelloError { error: HranaError },
    ResponseOk { request_id: i32, response: SocketResponse<'a> },
    ResponseError { request_id: i32, error: HranaError },
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum SocketResponse<'a> {
    Stream(StreamResponse),
    Socket(OwnResponse<'a>),
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum OwnResponse<'a> {
    OpenStream,
    CloseStream,
    OpenCursor,
    FetchCursor { entries: Entries<'a>, done: bool },
    CloseCursor,
}

/// Entries that are JSON already.
#[derive(Debug)]
struct Entries<'a>(&'a [String]);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw = |entry: &'_ String| serde_json::from_str::<Box<RawValue>>(entry).ok();
        serializer.collect_seq(self.0.iter().filter_map(raw))
    }
}

/// What a stream's task is asked to do.
enum Work {
    Run(i32, Arc<Program>, Client),
    Cursor(Arc<Program>, Emitter, Client),
    Close(i32),
}

/// Who asks for it.
struct Client {
    /// What the engine is to allow, if not everything.
    grants: Option<Arc<Grants>>,
    /// The session of its token's subject, if the node keeps such.
    session: Option<BySubject>,
}

/// What a cursor's task is asked to do.
struct Fetch {
    request_id: i32,
    max_count: usize,
}

type Answers = mpsc::Sender<String>;

/// One socket.
struct Socket {
    state: Arc<ServerState>,
    address: IpAddr,
    /// As the last hello said.
    hello: Option<Hello>,
    stored: Stored,
    streams: HashMap<i32, mpsc::Sender<Work>>,
    cursors: HashMap<i32, mpsc::Sender<Fetch>>,
    answers: Answers,
}

/// Who somebody says they are.
struct Hello {
    token: Option<String>,
}

/// Why a socket is closed, and what is said before.
struct Closing {
    said: Option<String>,
    code: CloseCode,
    reason: String,
}

impl Closing {
    fn unauthorized(refused: &Refused, said: impl FnOnce(HranaError) -> String) -> Self {
        let error = HranaError::new("LITTORAL_UNAUTHORIZED", refused.to_string());
        let reason = error.message.clone();
        Self { said: Some(said(error)), code: close_code::POLICY, reason }
    }
}

impl From<BadRequest> for Closing {
    fn from(BadRequest(error): BadRequest) -> Self {
        Self { said: None, code: close_code::PROTOCOL, reason: error.message }
    }
}

/// What happens next on a socket.
enum Next {
    Message(Option<Result<Message, axum::Error>>),
    Answer(String),
    Stop,
}

async fn stops(stopping: &mut watch::Receiver<bool>) {
    // An error says that the server is gone, which is the same.
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn serve(mut socket: WebSocket, state: Arc<ServerState>, address: IpAddr, _place: Place) {
    let (answers, mut ready) = mpsc::channel(ANSWERS_WAITING);
    let mut stopping = state.stopping.clone();
    let mut session = Socket {
        state,
        address,
        hello: None,
        stored: Stored::default(),
        streams: HashMap::new(),
        cursors: HashMap::new(),
        answers,
    };
    let close = loop {
        let next = tokio::select! {
            message = socket.recv() => Next::Message(message),
            Some(answer) = ready.recv() => Next::Answer(answer),
            () = stops(&mut stopping) => Next::Stop,
        };
        let message = match next {
            Next::Message(message) => message,
            Next::Answer(answer) => {
                if socket.send(Message::Text(answer.into())).await.is_err() {
                    return;
                }
                continue;
            }
            Next::Stop => break (close_code::AWAY, "the node is stopping".to_owned()),
        };
        let text = match message {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            Some(Ok(Message::Binary(_))) => {
                break (close_code::UNSUPPORTED, "messages are text".to_owned());
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return,
        };
        match session.take(&text) {
            Ok(None) => {}
            Ok(Some(answer)) => {
                if socket.send(Message::Text(answer.into())).await.is_err() {
                    return;
                }
            }
            Err(Closing { said, code, reason }) => {
                if let Some(said) = said
                    && socket.send(Message::Text(said.into())).await.is_err()
                {
                    return;
                }
                break (code, reason);
            }
        }
    };
    let (code, mut reason) = close;
    // What fits into a frame that closes.
    while reason.len() > 120 {
        reason.pop();
    }
    let frame = CloseFrame { code, reason: reason.into() };
    // The client may be gone.
    let _ = socket.send(Message::Close(Some(frame))).await;
}

impl Socket {
    /// Takes a message; gives the answer if it is known at once.
    ///
    /// # Errors
    /// The message breaks the protocol, or is of somebody whom nobody knows, or no longer.
    fn take(&mut self, text: &str) -> Result<Option<String>, Closing> {
        let (request_id, request) = match super::parse(text.as_bytes())? {
            ClientMessage::Hello { jwt } => return self.greet(jwt).map(Some),
            ClientMessage::Request { request_id, request } => (request_id, request),
        };
        let Some(Hello { token }) = &self.hello else {
            return Err(BadRequest::new("NO_HELLO", "a request before the hello").into());
        };
        let who = self.state.access.authenticate(token.as_deref());
        let who = who.map_err(|refused| {
            Closing::unauthorized(&refused, |error| refusal(request_id, error))
        })?;
        let session = self.state.subject_sessions && who.subject.is_some();
        let session = session.then(|| BySubject::new(self.state.node.clone()));
        let client = Client { grants: who.grants.clone(), session };
        if self.state.access.count(who.subject.as_ref(), self.address).is_err() {
            let message = "more requests than http.limits allows; come again later";
            let error = HranaError::new("LITTORAL_RATE_LIMITED", message);
            return Ok(Some(refusal(request_id, error)));
        }
        let own = |response| Ok(Some(answer(request_id, SocketResponse::Socket(response))));
        let (stream_id, request) = match request {
            SocketRequest::OpenStream { stream_id } => {
                return match self.open_stream(stream_id)? {
                    Ok(()) => own(OwnResponse::OpenStream),
                    Err(error) => Ok(Some(refusal(request_id, error))),
                };
            }
            SocketRequest::CloseStream { stream_id } => {
                // Dropping what sends to it ends its task, behind what it has to do.
                return match self.streams.remove(&stream_id) {
                    Some(stream) => Ok(hand_on(&stream, Work::Close(request_id), request_id)),
                    None => own(OwnResponse::CloseStream),
                };
            }
            SocketRequest::StoreSql { sql_id, sql } => {
                self.stored.store(sql_id, sql)?;
                let response = SocketResponse::Stream(StreamResponse::StoreSql);
                return Ok(Some(answer(request_id, response)));
            }
            SocketRequest::CloseSql { sql_id } => {
                self.stored.close(sql_id);
                let response = SocketResponse::Stream(StreamResponse::CloseSql);
                return Ok(Some(answer(request_id, response)));
            }
            SocketRequest::OpenCursor { stream_id, cursor_id, batch } => {
                return Ok(self.open_cursor(request_id, stream_id, cursor_id, batch, client)?);
            }
            SocketRequest::FetchCursor { cursor_id, max_count } => {
                let Some(cursor) = self.cursors.get(&cursor_id) else {
                    return Ok(Some(refusal(request_id, unknown("cursor", cursor_id))));
                };
                let max_count = usize::try_from(max_count).unwrap_or(ENTRIES_MAX);
                let fetch = Fetch { request_id, max_count: max_count.clamp(1, ENTRIES_MAX) };
                return Ok(hand_on(cursor, fetch, request_id));
            }
            SocketRequest::CloseCursor { cursor_id } => {
                self.cursors.remove(&cursor_id);
                return own(OwnResponse::CloseCursor);
            }
            SocketRequest::Execute { stream_id, stmt } => {
                (stream_id, StreamRequest::Execute { stmt })
            }
            SocketRequest::Batch { stream_id, batch } => {
                (stream_id, StreamRequest::Batch { batch })
            }
            SocketRequest::Sequence { stream_id, text } => {
                (stream_id, StreamRequest::Sequence(text))
            }
            SocketRequest::Describe { stream_id, text } => {
                (stream_id, StreamRequest::Describe(text))
            }
            SocketRequest::GetAutocommit { stream_id } => (stream_id, StreamRequest::GetAutocommit),
        };
        let program = Arc::new(Program::plan(vec![request], &mut self.stored)?);
        match self.streams.get(&stream_id) {
            Some(stream) => Ok(hand_on(stream, Work::Run(request_id, program, client), request_id)),
            None => Ok(Some(refusal(request_id, unknown("stream", stream_id)))),
        }
    }

    /// Takes a hello: the first, or one with another token.
    fn greet(&mut self, token: Option<String>) -> Result<String, Closing> {
        match self.state.access.authenticate(token.as_deref()) {
            Ok(_) => {
                self.hello = Some(Hello { token });
                Ok(to_json(&ServerMessage::HelloOk))
            }
            Err(refused) => Err(Closing::unauthorized(&refused, |error| {
                to_json(&ServerMessage::HelloError { error })
            })),
        }
    }

    fn open_stream(&mut self, stream_id: i32) -> Result<Result<(), HranaError>, BadRequest> {
        if self.streams.contains_key(&stream_id) {
            let message = format!("stream {stream_id} is open already");
            return Err(BadRequest::new("STREAM_ID_IN_USE", message));
        }
        if self.streams.len() >= STREAMS_MAX {
            let message = format!("a socket has {STREAMS_MAX} streams at most");
            return Ok(Err(HranaError::new("TOO_MANY_STREAMS", message)));
        }
        let place = match self.state.streams.place() {
            Ok(place) => place,
            Err(BadRequest(error)) => return Ok(Err(error)),
        };
        let (work, todo) = mpsc::channel(REQUESTS_WAITING);
        tokio::spawn(run_stream(self.state.clone(), todo, self.answers.clone(), place));
        self.streams.insert(stream_id, work);
        Ok(Ok(()))
    }

    fn open_cursor(
        &mut self,
        request_id: i32,
        stream_id: i32,
        cursor_id: i32,
        batch: Batch,
        client: Client,
    ) -> Result<Option<String>, BadRequest> {
        if self.cursors.contains_key(&cursor_id) {
            let message = format!("cursor {cursor_id} is open already");
            return Err(BadRequest::new("CURSOR_ID_IN_USE", message));
        }
        let program = Program::plan(vec![StreamRequest::Batch { batch }], &mut self.stored)?;
        let Some(stream) = self.streams.get(&stream_id) else {
            return Ok(Some(refusal(request_id, unknown("stream", stream_id))));
        };
        self.cursors.retain(|_, cursor| !cursor.is_closed());
        if self.cursors.len() >= STREAMS_MAX {
            let message = format!("a socket has {STREAMS_MAX} cursors at most");
            return Ok(Some(refusal(request_id, HranaError::new("TOO_MANY_CURSORS", message))));
        }
        let (emitter, chunks) = Emitter::new();
        let refused = hand_on(stream, Work::Cursor(Arc::new(program), emitter, client), request_id);
        if refused.is_some() {
            return Ok(refused);
        }
        let (fetch, fetches) = mpsc::channel(REQUESTS_WAITING);
        tokio::spawn(run_cursor(chunks, fetches, self.answers.clone()));
        self.cursors.insert(cursor_id, fetch);
        Ok(Some(answer(request_id, SocketResponse::Socket(OwnResponse::OpenCursor))))
    }
}

/// Hands work to a task; gives the answer if it has too much to do already.
fn hand_on<T>(task: &mpsc::Sender<T>, work: T, request_id: i32) -> Option<String> {
    task.try_send(work).err().map(|_| {
        let message = format!("{REQUESTS_WAITING} requests wait already, or it has ended");
        refusal(request_id, HranaError::new("TOO_MANY_REQUESTS", message))
    })
}

async fn run_stream(
    state: Arc<ServerState>,
    mut todo: mpsc::Receiver<Work>,
    answers: Answers,
    _place: Place,
) {
    let mut stream = Stream::default();
    loop {
        let work = if stream.is_in_transaction() {
            match tokio::time::timeout(IDLE_LIMIT, todo.recv()).await {
                Ok(work) => work,
                Err(_) => {
                    let message = format!(
                        "the transaction was rolled back, since nothing came for {} s",
                        IDLE_LIMIT.as_secs()
                    );
                    stream.open = Open::Lost(HranaError::new("TRANSACTION_TIMEOUT", message));
                    todo.recv().await
                }
            }
        } else {
            todo.recv().await
        };
        let sent = match work {
            None => return,
            Some(Work::Close(request_id)) => {
                drop(stream);
                let closed = SocketResponse::Socket(OwnResponse::CloseStream);
                // The socket may be gone.
                let _ = answers.send(answer(request_id, closed)).await;
                return;
            }
            Some(Work::Run(request_id, program, client)) => {
                let ran = run_request(&state, &mut stream, &program, &client);
                let result = state.spans.request("WebSocket request", ran).await;
                let text = match result {
                    Some(StreamResult::Ok { response }) => {
                        answer(request_id, SocketResponse::Stream(response))
                    }
                    Some(StreamResult::Error { error }) => refusal(request_id, error),
                    None => refusal(request_id, never_ran()),
                };
                answers.send(text).await
            }
            Some(Work::Cursor(program, emitter, client)) => {
                let ran = run_of_cursor(&state, &mut stream, &program, &client, emitter);
                state.spans.request("WebSocket cursor", ran).await;
                Ok(())
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Runs a request; gives its answer, if there is one.
async fn run_request(
    state: &ServerState,
    stream: &mut Stream,
    program: &Arc<Program>,
    client: &Client,
) -> Option<StreamResult> {
    if let Err(error) = client.begins(stream).await {
        return Some(StreamResult::Error { error });
    }
    let (node, grants) = (&state.node, client.grants.as_ref());
    let outcomes = execute::execute(node, grants, stream, program, None, None, None).await;
    match client.ends(stream).await {
        Ok(()) => outcome::answer(program, outcomes).into_iter().next(),
        Err(error) => Some(StreamResult::Error { error }),
    }
}

/// The same of a cursor, whose entries are sent as they come.
async fn run_of_cursor(
    state: &ServerState,
    stream: &mut Stream,
    program: &Arc<Program>,
    client: &Client,
    mut emitter: Emitter,
) {
    if let Err(error) = client.begins(stream).await {
        return emitter.fail(&error).await;
    }
    let mut end = emitter.again();
    let (node, grants) = (&state.node, client.grants.as_ref());
    execute::execute(node, grants, stream, program, None, None, Some(emitter)).await;
    if let Err(error) = client.ends(stream).await {
        end.fail(&error).await;
    }
}

impl Client {
    /// Before a request runs, unless it goes on with a transaction.
    async fn begins(&self, stream: &Stream) -> Result<(), HranaError> {
        match &self.session {
            Some(session) if !stream.is_in_transaction() => session.begins().await,
            _ => Ok(()),
        }
        .map_err(|(code, message)| HranaError::new(code, message))
    }

    /// Before it is answered, unless a transaction is open.
    async fn ends(&self, stream: &Stream) -> Result<(), HranaError> {
        match &self.session {
            Some(session) if !stream.is_in_transaction() => session.ends().await,
            _ => Ok(()),
        }
        .map_err(|(code, message)| HranaError::new(code, message))
    }
}

/// Gives the entries of a cursor as they are asked for. Dropped, the statement behind it ends.
async fn run_cursor(
    mut chunks: mpsc::Receiver<String>,
    mut fetches: mpsc::Receiver<Fetch>,
    answers: Answers,
) {
    let mut entries: VecDeque<String> = VecDeque::new();
    let mut ended = false;
    while let Some(Fetch { request_id, max_count }) = fetches.recv().await {
        while entries.len() < max_count && !ended {
            let chunk = if entries.is_empty() {
                chunks.recv().await
            } else {
                match chunks.try_recv() {
                    Ok(chunk) => Some(chunk),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => None,
                }
            };
            match chunk {
                Some(chunk) => entries.extend(chunk.lines().map(str::to_owned)),
                None => ended = true,
            }
        }
        let given: Vec<String> = entries.drain(..max_count.min(entries.len())).collect();
        let done = ended && entries.is_empty();
        let response = OwnResponse::FetchCursor { entries: Entries(&given), done };
        let text = answer(request_id, SocketResponse::Socket(response));
        if answers.send(text).await.is_err() {
            return;
        }
    }
}

fn answer(request_id: i32, response: SocketResponse<'_>) -> String {
    to_json(&ServerMessage::ResponseOk { request_id, response })
}

fn refusal(request_id: i32, error: HranaError) -> String {
    to_json(&ServerMessage::ResponseError { request_id, error })
}

fn unknown(what: &str, id: i32) -> HranaError {
    HranaError::new("NOT_OPEN", format!("{what} {id} is not open"))
}
