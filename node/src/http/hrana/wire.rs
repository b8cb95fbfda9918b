//! The JSON types of the protocol, kept apart from engine types.
//!
//! Unknown fields are ignored, since clients send fields of later versions; unknown request types are
//! errors. Optional fields may be absent or null.

use std::borrow::Cow;

use base64::{
    Engine as _,
    engine::general_purpose::{GeneralPurpose, STANDARD_NO_PAD},
};
use rusqlite::types::{ToSqlOutput, ValueRef};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap as _};

/// Writes without padding, since some clients read nothing else; reads with and without.
const BASE64: GeneralPurpose = STANDARD_NO_PAD;

/// Several requests on one stream.
#[derive(Debug, Deserialize)]
pub(crate) struct PipelineRequest {
    #[serde(default)]
    pub(crate) baton: Option<String>,
    pub(crate) requests: Vec<StreamRequest>,
}

/// The answer to a [`PipelineRequest`].
#[derive(Debug, Serialize)]
pub(crate) struct PipelineResponse {
    pub(crate) baton: Option<String>,
    pub(crate) base_url: Option<String>,
    pub(crate) results: Vec<StreamResult>,
}

/// One batch, answered as JSON lines.
#[derive(Debug, Deserialize)]
pub(crate) struct CursorRequest {
    #[serde(default)]
    pub(crate) baton: Option<String>,
    pub(crate) batch: Batch,
}

/// One line of the answer to a [`CursorRequest`].
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum CursorEntry<'a> {
    StepBegin { step: usize, cols: &'a [Column] },
    Row { row: &'a [Value] },
    StepEnd { affected_row_count: u64, last_insert_rowid: Option<&'a str> },
    StepError { step: usize, error: &'a HranaError },
    Error { error: &'a HranaError },
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum StreamRequest {
    Execute { stmt: Stmt },
    Batch { batch: Batch },
    Sequence(SqlText),
    Describe(SqlText),
    StoreSql { sql_id: i64, sql: String },
    CloseSql { sql_id: i64 },
    GetAutocommit,
    Close,
}

/// A statement's text, or the number under which it was stored.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SqlText {
    #[serde(default)]
    pub(crate) sql: Option<String>,
    #[serde(default)]
    pub(crate) sql_id: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Stmt {
    #[serde(flatten)]
    pub(crate) text: SqlText,
    #[serde(default)]
    pub(crate) args: Option<Vec<Value>>,
    #[serde(default)]
    pub(crate) named_args: Option<Vec<NamedArg>>,
    #[serde(default)]
    pub(crate) want_rows: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct NamedArg {
    pub(crate) name: String,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Batch {
    pub(crate) steps: Vec<BatchStep>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct BatchStep {
    #[serde(default)]
    pub(crate) condition: Option<Condition>,
    pub(crate) stmt: Stmt,
}

/// What must hold of earlier steps for a step to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Condition {
    Ok { step: usize },
    Error { step: usize },
    Not { cond: Box<Self> },
    And { conds: Vec<Self> },
    Or { conds: Vec<Self> },
    IsAutocommit,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum StreamResult {
    Ok { response: StreamResponse },
    Error { error: HranaError },
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum StreamResponse {
    Execute { result: StmtResult },
    Batch { result: BatchResult },
    Sequence,
    Describe { result: DescribeResult },
    StoreSql,
    CloseSql,
    GetAutocommit { is_autocommit: bool },
    Close,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StmtResult {
    pub(crate) cols: Vec<Column>,
    pub(crate) rows: Vec<Vec<Value>>,
    pub(crate) affected_row_count: u64,
    /// The key must be there, if only as null.
    pub(crate) last_insert_rowid: Option<String>,
    pub(crate) query_duration_ms: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) decltype: Option<String>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct BatchResult {
    pub(crate) step_results: Vec<Option<StmtResult>>,
    pub(crate) step_errors: Vec<Option<HranaError>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DescribeResult {
    pub(crate) params: Vec<Parameter>,
    pub(crate) cols: Vec<Column>,
    pub(crate) is_explain: bool,
    pub(crate) is_readonly: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parameter {
    pub(crate) name: Option<String>,
}

/// What went wrong with a statement, or, as the body of a 4xx, with a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HranaError {
    pub(crate) message: String,
    /// SQLite's primary code by name, as clients test it, or one of the protocol's or our own.
    pub(crate) code: String,
    /// SQLite's extended code by name, where it says more. Clients ignore it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) extended_code: Option<Cow<'static, str>>,
}

impl HranaError {
    pub(crate) fn new(code: &str, message: impl Into<String>) -> Self {
        Self { message: message.into(), code: code.to_owned(), extended_code: None }
    }
}

/// A SQLite value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Integer(i64),
    Float(f64),
    Text(String),
    Blob(Vec<u8>),
}

impl Value {
    /// Bytes that are no UTF-8 become replacement characters: JSON cannot carry them.
    pub(crate) fn from_sqlite(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(n) => Self::Integer(n),
            ValueRef::Real(x) => Self::Float(x),
            ValueRef::Text(text) => Self::Text(String::from_utf8_lossy(text).into_owned()),
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }

    /// About as much as it takes in JSON.
    pub(crate) const fn size(&self) -> usize {
        const FRAME: usize = 32;
        match self {
            Self::Null => FRAME,
            Self::Integer(_) | Self::Float(_) => FRAME + 20,
            Self::Text(text) => FRAME + text.len(),
            Self::Blob(bytes) => FRAME + bytes.len() / 3 * 4,
        }
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(n) => ValueRef::Integer(*n),
            Self::Float(x) => ValueRef::Real(*x),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            // Infinity has no JSON; null is the one form that every client can read.
            Self::Null => map.serialize_entry("type", "null")?,
            Self::Float(x) if !x.is_finite() => map.serialize_entry("type", "null")?,
            Self::Integer(n) => {
                map.serialize_entry("type", "integer")?;
                map.serialize_entry("value", &n.to_string())?;
            }
            Self::Float(x) => {
                map.serialize_entry("type", "float")?;
                map.serialize_entry("value", x)?;
            }
            Self::Text(text) => {
                map.serialize_entry("type", "text")?;
                map.serialize_entry("value", text)?;
            }
            Self::Blob(bytes) => {
                map.serialize_entry("type", "blob")?;
                map.serialize_entry("base64", &BASE64.encode(bytes))?;
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = RawValue::deserialize(deserializer)?;
        match raw.kind.as_str() {
            "null" => Ok(Self::Null),
            "integer" => match raw.value {
                Some(serde_json::Value::String(text)) => {
                    text.parse().map(Self::Integer).map_err(de::Error::custom)
                }
                Some(serde_json::Value::Number(n)) if n.is_i64() => {
                    Ok(Self::Integer(n.as_i64().unwrap_or_default()))
                }
                _ => Err(de::Error::custom("an integer has a decimal number of 64 bits as value")),
            },
            "float" => raw
                .value
                .as_ref()
                .and_then(serde_json::Value::as_f64)
                .map(Self::Float)
                .ok_or_else(|| de::Error::custom("a float has a number as value")),
            "text" => match raw.value {
                Some(serde_json::Value::String(text)) => Ok(Self::Text(text)),
                _ => Err(de::Error::custom("a text has a string as value")),
            },
            "blob" => {
                let text = raw.base64.ok_or_else(|| de::Error::missing_field("base64"))?;
                let bytes = BASE64.decode(text.trim_end_matches('='));
                bytes.map(Self::Blob).map_err(de::Error::custom)
            }
            other => Err(de::Error::unknown_variant(
                other,
                &["null", "integer", "float", "text", "blob"],
            )),
        }
    }
}

#[derive(Deserialize)]
struct RawValue {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    value: Option<serde_json::Value>,
    #[serde(default)]
    base64: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &Value, json: &str) {
        assert_eq!(serde_json::to_string(value).unwrap(), json);
        assert_eq!(serde_json::from_str::<Value>(json).unwrap(), *value);
    }

    #[test]
    fn values_survive_json() {
        check(&Value::Null, r#"{"type":"null"}"#);
        let least = r#"{"type":"integer","value":"-9223372036854775808"}"#;
        check(&Value::Integer(i64::MIN), least);
        let float = r#"{"type":"float","value":123456789.98765433}"#;
        check(&Value::Float(123_456_789.987_654_33), float);
        check(&Value::Text("a\0é".to_owned()), r#"{"type":"text","value":"a\u0000é"}"#);
        check(&Value::Blob(vec![1]), r#"{"type":"blob","base64":"AQ"}"#);
    }

    #[test]
    fn clients_may_pad_blobs_and_send_numbers_as_integers() {
        let blob: Value = serde_json::from_str(r#"{"type":"blob","base64":"AQ=="}"#).unwrap();
        assert_eq!(blob, Value::Blob(vec![1]));
        let integer: Value = serde_json::from_str(r#"{"type":"integer","value":7}"#).unwrap();
        assert_eq!(integer, Value::Integer(7));
        let float: Value = serde_json::from_str(r#"{"type":"float","value":20}"#).unwrap();
        assert_eq!(float, Value::Float(20.0));
    }

    #[test]
    fn malformed_values_are_refused() {
        for json in [
            r#"{"type":"integer","value":"1.5"}"#,
            r#"{"type":"integer","value":1.5}"#,
            r#"{"type":"float","value":"1"}"#,
            r#"{"type":"blob"}"#,
            r#"{"type":"blob","base64":"*"}"#,
            r#"{"type":"date","value":"today"}"#,
            r#"{"value":"1"}"#,
        ] {
            assert!(serde_json::from_str::<Value>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn infinity_is_sent_as_null() {
        let json = serde_json::to_string(&Value::Float(f64::INFINITY)).unwrap();
        assert_eq!(json, r#"{"type":"null"}"#);
    }

    #[test]
    fn requests_of_several_clients_are_understood() {
        // As the Rust client sends it: every optional field there, and null.
        let json = r#"{"baton":null,"requests":[
            {"type":"batch","batch":{"steps":[{"condition":null,"stmt":{"sql":"SELECT 1",
             "sql_id":null,"args":[],"named_args":[],"want_rows":true,"replication_index":null}}],
             "replication_index":null}},
            {"type":"get_autocommit"},{"type":"close"}]}"#;
        let request: PipelineRequest = serde_json::from_str(json).unwrap();
        assert_eq!(request.requests.len(), 3);
        // As the JavaScript client does.
        let json = r#"{"requests":[{"type":"store_sql","sql_id":0,"sql":"SELECT ?"},
            {"type":"execute","stmt":{"sql_id":0,"args":[{"type":"float","value":1}]}},
            {"type":"sequence","sql":"SELECT 1; SELECT 2"},{"type":"describe","sql":"SELECT 1"}]}"#;
        let request: PipelineRequest = serde_json::from_str(json).unwrap();
        assert_eq!(request.requests.len(), 4);
        let unknown = r#"{"requests":[{"type":"explode"}]}"#;
        assert!(serde_json::from_str::<PipelineRequest>(unknown).is_err());
    }
}
