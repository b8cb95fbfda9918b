//! A WebSocket client that needs nothing but a socket, and what libSQL clients send with it.

use std::{
    io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpStream},
};

use serde_json::{Value, json};

use super::{Node, PATIENCE};

/// A WebSocket that knows as much of the protocol as this needs.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: BufReader<TcpStream>,
    /// What the server has chosen.
    pub(crate) protocol: String,
    requests: i32,
    /// What came before what was asked for.
    early: Vec<Value>,
}

impl Socket {
    pub(crate) fn connect(node: &Node, protocols: &str) -> Self {
        let mut stream = TcpStream::connect(node.http).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        write!(
            stream,
            "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\
             sec-websocket-protocol: {protocols}\r\n\r\n"
        )
        .unwrap();
        let mut socket = Self {
            stream: BufReader::new(stream),
            protocol: String::new(),
            requests: 0,
            early: Vec::new(),
        };
        let mut status = None;
        loop {
            let mut line = String::new();
            socket.stream.read_line(&mut line).unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(protocol) = line.strip_prefix("sec-websocket-protocol: ") {
                protocol.clone_into(&mut socket.protocol);
            }
            status.get_or_insert(line);
        }
        assert!(status.unwrap().starts_with("http/1.1 101 "));
        socket
    }

    /// One that has said its hello, without a token.
    pub(crate) fn greeted(node: &Node, protocols: &str) -> Self {
        let mut socket = Self::connect(node, protocols);
        assert_eq!(socket.hello(None), Some(json!({ "type": "hello_ok" })));
        socket
    }

    /// Says a hello; gives what comes next.
    pub(crate) fn hello(&mut self, token: Option<&str>) -> Option<Value> {
        self.send(&json!({ "type": "hello", "jwt": token }));
        self.receive()
    }

    pub(crate) fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string());
    }

    pub(crate) fn send_text(&mut self, text: &str) {
        // The server may have closed; then nothing is received.
        let _ = self.stream.get_mut().write_all(&Self::frame(text));
    }

    /// Sends bytes in the place of frames and no more; returns when the server has closed, too.
    pub(crate) fn send_and_hang_up(mut self, bytes: &[u8]) {
        let stream = self.stream.get_mut();
        if stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write)).is_ok() {
            // A server that resets the connection has closed it as well.
            let _ = self.stream.read_to_end(&mut Vec::new());
        }
    }

    /// A text as it is sent.
    pub(crate) fn frame(text: &str) -> Vec<u8> {
        let mut frame = vec![0x81];
        let length = u16::try_from(text.len()).unwrap();
        match u8::try_from(length) {
            Ok(short) if short < 126 => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(length.to_be_bytes());
            }
        }
        // A mask of zeros changes nothing.
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        frame
    }

    /// Whether the server answers still.
    pub(crate) fn is_alive(&mut self) -> bool {
        const ID: i32 = 999_999;
        self.send(&json!({ "type": "request", "request_id": ID,
            "request": { "type": "close_sql", "sql_id": ID } }));
        loop {
            match self.try_receive() {
                Ok(Some(message)) if message["request_id"] == json!(ID) => return true,
                Ok(Some(message)) => assert!(message["type"].is_string(), "{message}"),
                Ok(None) => return false,
                // It is gone, and with it what it has said.
                Err(error) => {
                    assert_ne!(error.kind(), ErrorKind::WouldBlock, "no answer, and not closed");
                    return false;
                }
            }
        }
    }

    /// The next message; `None` if the server closes.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        self.try_receive().unwrap()
    }

    /// The next message of a request, or of none; what comes before it is kept.
    pub(crate) fn receive_of(&mut self, request: &Value) -> Value {
        let is_its = |message: &Value| message["request_id"] == *request;
        if let Some(at) = self.early.iter().position(is_its) {
            return self.early.remove(at);
        }
        loop {
            let message = self.receive().unwrap();
            if is_its(&message) {
                return message;
            }
            self.early.push(message);
        }
    }

    fn try_receive(&mut self) -> io::Result<Option<Value>> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        let mut length = u64::from(head[1]);
        if length >= 126 {
            let mut bytes = vec![0; if length == 126 { 2 } else { 8 }];
            self.stream.read_exact(&mut bytes)?;
            length = bytes.iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
        }
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload)?;
        match head[0] {
            0x81 => Ok(Some(serde_json::from_slice(&payload).unwrap())),
            0x88 => Ok(None),
            other => panic!("a frame of kind {other:x}"),
        }
    }

    pub(crate) fn request(&mut self, request: &Value) -> i32 {
        self.requests += 1;
        self.send(&json!({ "type": "request", "request_id": self.requests, "request": request }));
        self.requests
    }

    /// The answer to a request, whatever comes before it.
    pub(crate) fn answer(&mut self, request: i32) -> Result<Value, String> {
        loop {
            let mut message = self.receive().unwrap();
            if message["request_id"] != json!(request) {
                continue;
            }
            return match message["type"].as_str() {
                Some("response_ok") => Ok(message["response"].take()),
                _ => Err(message["error"]["code"].as_str().unwrap().to_owned()),
            };
        }
    }

    pub(crate) fn ask(&mut self, request: &Value) -> Result<Value, String> {
        let request = self.request(request);
        self.answer(request)
    }

    pub(crate) fn run(&mut self, stream: i32, sql: &str) -> Result<Value, String> {
        let stmt = json!({ "sql": sql, "want_rows": true });
        let answer = self.ask(&json!({ "type": "execute", "stream_id": stream, "stmt": stmt }))?;
        Ok(answer["result"]["rows"][0][0]["value"].clone())
    }
}
