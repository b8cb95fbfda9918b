//! An HTTP client that needs nothing but a socket, and what libSQL clients send with it.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use serde_json::{Value, json};

use super::PATIENCE;

/// One connection, kept from request to request.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case, values as they came.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub(crate) fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.send("GET", path, "")
    }

    /// An error means that nobody knows whether the request was carried out.
    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        self.send_with(method, path, &[], body)
    }

    /// The same, with more headers.
    pub(crate) fn send_with(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<Answer> {
        let more: String =
            headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             {more}content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        self.answer()
    }

    /// Sends a request and reads only the first line of the answer, which is JSON.
    pub(crate) fn begin(&mut self, method: &str, path: &str, body: &str) -> io::Result<Value> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        while !self.line()?.is_empty() {}
        // The length of the first chunk.
        self.line()?;
        let line = self.line()?;
        serde_json::from_str(&line).map_err(|_| broken(&line))
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| broken(&first))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| broken(&line))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut answer = Answer { status, headers, body: String::new() };
        let body = match answer.header("content-length") {
            Some(length) => {
                let length = length.parse().map_err(|_| broken(length))?;
                self.exactly(length)?
            }
            None if answer.header("transfer-encoding") == Some("chunked") => self.chunks()?,
            None => Vec::new(),
        };
        answer.body = String::from_utf8(body).map_err(|_| broken("a body that is not UTF-8"))?;
        Ok(answer)
    }

    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let length = usize::from_str_radix(&line, 16).map_err(|_| broken(&line))?;
            body.extend(self.exactly(length)?);
            self.line()?;
            if length == 0 {
                return Ok(body);
            }
        }
    }

    fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    /// Sends requests through `/v2/pipeline`, which must be answered with status 200; gives the
    /// results.
    pub(crate) fn pipeline(&mut self, requests: &Value) -> io::Result<Vec<Value>> {
        let body = json!({ "requests": requests }).to_string();
        let answer = self.send("POST", "/v2/pipeline", &body)?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        match answer.json()["results"].take() {
            Value::Array(results) => Ok(results),
            other => panic!("results that are no list: {other}"),
        }
    }

    /// Runs statements as one transaction under a key; gives the code of the error if it fails.
    pub(crate) fn transaction_with_key(
        &mut self,
        key: &str,
        statements: &[Value],
    ) -> io::Result<Result<(), String>> {
        let body = json!({ "requests": [batch(statements), { "type": "close" }] }).to_string();
        let key = [("idempotency-key", key)];
        let answer = self.send_with("POST", "/v2/pipeline", &key, &body)?;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        let errors = &answer["results"][0]["response"]["result"]["step_errors"];
        let errors = errors.as_array().unwrap_or_else(|| panic!("{answer}"));
        let failed = errors.iter().find_map(|error| error["code"].as_str());
        Ok(failed.map_or(Ok(()), |code| Err(code.to_owned())))
    }

    /// Runs statements as one transaction, which must succeed if it is answered; gives the
    /// statements' results.
    pub(crate) fn transaction(&mut self, statements: &[Value]) -> io::Result<Vec<Value>> {
        let results = self.pipeline(&json!([batch(statements), { "type": "close" }]))?;
        let result = &results[0]["response"]["result"];
        let errors = result["step_errors"].as_array().unwrap_or_else(|| panic!("{results:?}"));
        assert!(errors.iter().all(Value::is_null), "{errors:?}");
        let steps = result["step_results"].as_array().unwrap();
        Ok(steps[1..=statements.len()].to_vec())
    }
}

/// A batch as `@libsql/client` frames it: each step after the first only if the one before went
/// well, and a ROLLBACK if the COMMIT did not.
pub(crate) fn batch(statements: &[Value]) -> Value {
    let ok = |step: usize| json!({ "type": "ok", "step": step });
    let mut steps = vec![json!({ "stmt": { "sql": "BEGIN IMMEDIATE" } })];
    for (step, stmt) in statements.iter().enumerate() {
        steps.push(json!({ "condition": ok(step), "stmt": stmt }));
    }
    let commit = statements.len() + 1;
    steps.push(json!({ "condition": ok(commit - 1), "stmt": { "sql": "COMMIT" } }));
    let failed = json!({ "type": "not", "cond": ok(commit) });
    steps.push(json!({ "condition": failed, "stmt": { "sql": "ROLLBACK" } }));
    json!({ "type": "batch", "batch": { "steps": steps } })
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
