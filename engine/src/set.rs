//! Sets: their elements, as JSON text in a column and as bytes in an entry.
//!
//! What a set column holds is a JSON array of numbers, strings, `true` and `false`. A set has one
//! spelling: its elements ascending, each once, without spaces, numbers and strings as RFC 8785 writes
//! them, integers of 64 bits exactly. NULL counts as the empty set, whose spelling is `[]`.
//!
//! Invariants:
//! - two elements are equal exactly if their bytes are, and exactly if their spelling is;
//! - an element that is an integer of 64 bits is an [`Element::Integer`], however it was written.

use std::{borrow::Cow, cmp::Ordering};

use crate::value::{ByteReader, DecodeError, ValueRef, integral, put_cell, put_varint};

/// One element of a set. They have a total order: false, true, numbers by value, then strings byte by
/// byte.
#[derive(Clone, Debug)]
pub enum Element<'a> {
    /// `true` or `false`.
    Bool(bool),
    /// A number that is an integer of 64 bits.
    Integer(i64),
    /// Any other number.
    Real(f64),
    /// A string.
    Text(Cow<'a, str>),
}

impl Element<'_> {
    /// Its bytes, which name it.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_element(&mut bytes, self);
        bytes
    }

    /// As a value of SQLite, in the same order; NULL stands for both of `true` and `false`.
    fn as_value(&self) -> ValueRef<'_> {
        match self {
            Self::Bool(_) => ValueRef::Null,
            Self::Integer(n) => ValueRef::Integer(*n),
            Self::Real(r) => ValueRef::Real(*r),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
        }
    }
}

impl Ord for Element<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            _ => self.as_value().total_cmp(other.as_value()),
        }
    }
}

impl PartialOrd for Element<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Element<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Element<'_> {}

// --- As bytes: a cell, but for the headers of NULL and of nothing

const FALSE: u64 = 0;
const TRUE: u64 = 3;

/// Appends an element.
pub(crate) fn put_element(out: &mut Vec<u8>, element: &Element<'_>) {
    match element {
        Element::Bool(false) => put_varint(out, FALSE),
        Element::Bool(true) => put_varint(out, TRUE),
        other => put_cell(out, other.as_value()),
    }
}

/// Reads an element, which has one encoding only.
pub(crate) fn read_element<'a>(reader: &mut ByteReader<'a>) -> Result<Element<'a>, DecodeError> {
    let mut ahead = *reader;
    let header = ahead.varint()?;
    if header == FALSE || header == TRUE {
        *reader = ahead;
        return Ok(Element::Bool(header == TRUE));
    }
    match reader.cell()? {
        ValueRef::Integer(n) => Ok(Element::Integer(n)),
        ValueRef::Real(r) if r.is_finite() && integral(r).is_none() => Ok(Element::Real(r)),
        ValueRef::Text(text) => match std::str::from_utf8(text) {
            Ok(text) => Ok(Element::Text(Cow::Borrowed(text))),
            Err(_) => Err(DecodeError::Invalid("text is not UTF-8")),
        },
        ValueRef::Null | ValueRef::Real(_) | ValueRef::Blob(_) => {
            Err(DecodeError::Invalid("not an element of a set"))
        }
    }
}

// --- As text

/// Why a value is no set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSet {
    #[error("a set is a JSON array in a TEXT, not {0}")]
    Class(&'static str),
    #[error(
        "a set is a JSON array of numbers, strings, true and false; at byte {at} of its text {what}"
    )]
    Json { at: usize, what: &'static str },
}

/// The elements of a value, ascending, each once.
pub(crate) fn read(value: ValueRef<'_>) -> Result<Vec<Element<'_>>, NoSet> {
    let text = match value {
        ValueRef::Null => return Ok(Vec::new()),
        ValueRef::Text(text) => text,
        ValueRef::Integer(_) => return Err(NoSet::Class("an INTEGER")),
        ValueRef::Real(_) => return Err(NoSet::Class("a REAL")),
        ValueRef::Blob(_) => return Err(NoSet::Class("a BLOB")),
    };
    let text = std::str::from_utf8(text)
        .map_err(|error| NoSet::Json { at: error.valid_up_to(), what: "it is not UTF-8" })?;
    let mut elements = Parser { text, at: 0 }.array()?;
    elements.sort_unstable();
    elements.dedup();
    Ok(elements)
}

/// The one spelling of a set whose elements ascend.
pub(crate) fn spell<'e>(elements: impl IntoIterator<Item = &'e Element<'e>>) -> String {
    let mut out = String::from("[");
    for element in elements {
        if out.len() > 1 {
            out.push(',');
        }
        match element {
            Element::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Element::Integer(n) => out.push_str(&n.to_string()),
            Element::Real(r) => put_real(&mut out, *r),
            Element::Text(text) => put_string(&mut out, text),
        }
    }
    out.push(']');
    out
}

/// The one spelling of the set that a value is.
pub(crate) fn spelled(value: ValueRef<'_>) -> Result<String, NoSet> {
    read(value).map(|elements| spell(&elements))
}

/// As ECMAScript's `Number::toString`, which RFC 8785 refers to.
fn put_real(out: &mut String, real: f64) {
    // The shortest digits that lead back to it: one before the point, then the others, then e.
    let digits = format!("{:e}", real.abs());
    let (mantissa, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if real < 0.0 {
        out.push('-');
    }
    match usize::try_from(exponent) {
        Ok(behind) if exponent < 21 => {
            let whole = behind + 1;
            match digits.split_at_checked(whole).filter(|(_, rest)| !rest.is_empty()) {
                Some((before, after)) => {
                    out.push_str(before);
                    out.push('.');
                    out.push_str(after);
                }
                None => {
                    out.push_str(&digits);
                    out.extend(std::iter::repeat_n('0', whole.saturating_sub(digits.len())));
                }
            }
        }
        Err(_) if exponent >= -6 => {
            out.push_str("0.");
            out.extend(std::iter::repeat_n('0', exponent.unsigned_abs() as usize - 1));
            out.push_str(&digits);
        }
        _ => {
            let (first, rest) = digits.split_at(1);
            out.push_str(first);
            if !rest.is_empty() {
                out.push('.');
                out.push_str(rest);
            }
            out.push_str(&format!("e{exponent:+}"));
        }
    }
}

fn put_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Reads JSON as RFC 8259 has it, as far as sets need it.
struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn array(mut self) -> Result<Vec<Element<'a>>, NoSet> {
        let mut elements = Vec::new();
        self.space();
        self.expect(b'[', "\"[\" was expected")?;
        self.space();
        if !self.take(b']') {
            loop {
                self.space();
                elements.push(self.element()?);
                self.space();
                if self.take(b']') {
                    break;
                }
                self.expect(b',', "\",\" or \"]\" was expected")?;
            }
        }
        self.space();
        if self.at < self.text.len() { self.wrong("the array has ended") } else { Ok(elements) }
    }

    fn element(&mut self) -> Result<Element<'a>, NoSet> {
        match self.peek() {
            Some(b'"') => self.string().map(Element::Text),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b'[' | b'{') => self.wrong("an array or an object begins"),
            _ if self.word("true") => Ok(Element::Bool(true)),
            _ if self.word("false") => Ok(Element::Bool(false)),
            _ if self.word("null") => {
                self.at -= "null".len();
                self.wrong("null stands, which is no element")
            }
            _ => self.wrong("an element was expected"),
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, NoSet> {
        self.at += 1;
        let mut begin = self.at;
        let mut unescaped: Option<String> = None;
        loop {
            match self.peek() {
                None => return self.wrong("a string does not end"),
                Some(b'"') => {
                    let rest = &self.text[begin..self.at];
                    self.at += 1;
                    return Ok(match unescaped {
                        None => Cow::Borrowed(rest),
                        Some(before) => Cow::Owned(before + rest),
                    });
                }
                Some(b'\\') => {
                    let string = unescaped.get_or_insert_default();
                    string.push_str(&self.text[begin..self.at]);
                    let escaped = self.escape()?;
                    unescaped.get_or_insert_default().push(escaped);
                    begin = self.at;
                }
                Some(..0x20) => return self.wrong("a control character is not escaped"),
                Some(_) => self.at += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<char, NoSet> {
        self.at += 1;
        let Some(letter) = self.peek() else { return self.wrong("a string does not end") };
        let c = match letter {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                self.at += 1;
                return self.code_point();
            }
            _ => return self.wrong("there is no such escape"),
        };
        self.at += 1;
        Ok(c)
    }

    fn code_point(&mut self) -> Result<char, NoSet> {
        const HALF: &str = "half of a surrogate pair has ended";
        let first = self.hex()?;
        if !(0xd800..0xe000).contains(&first) {
            return char::from_u32(first).map_or_else(|| self.wrong(HALF), Ok);
        }
        if first >= 0xdc00 || !self.word("\\u") {
            return self.wrong(HALF);
        }
        let second = self.hex()?;
        if !(0xdc00..0xe000).contains(&second) {
            return self.wrong(HALF);
        }
        let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        char::from_u32(code).map_or_else(|| self.wrong(HALF), Ok)
    }

    fn hex(&mut self) -> Result<u32, NoSet> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let Some(digits) = digits else {
            return self.wrong("four hexadecimal digits were expected");
        };
        self.at += 4;
        let digit = |n: u32, digit: &u8| n << 4 | char::from(*digit).to_digit(16).unwrap_or(0);
        Ok(digits.iter().fold(0, digit))
    }

    fn number(&mut self) -> Result<Element<'a>, NoSet> {
        let begin = self.at;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        let mut whole = true;
        if self.take(b'.') {
            whole = false;
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            whole = false;
            let _signed = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        let text = &self.text[begin..self.at];
        if whole && let Ok(n) = text.parse() {
            return Ok(Element::Integer(n));
        }
        match text.parse::<f64>() {
            Ok(real) if real.is_finite() => {
                Ok(integral(real).map_or(Element::Real(real), Element::Integer))
            }
            _ => {
                self.wrong("a number has ended that is beyond what 64 bits of floating point hold")
            }
        }
    }

    fn digits(&mut self) -> Result<(), NoSet> {
        let begin = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == begin { self.wrong("a digit was expected") } else { Ok(()) }
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn word(&mut self, word: &str) -> bool {
        let there = self.text[self.at..].starts_with(word);
        self.at += if there { word.len() } else { 0 };
        there
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), NoSet> {
        if self.take(byte) { Ok(()) } else { self.wrong(what) }
    }

    const fn wrong<T>(&self, what: &'static str) -> Result<T, NoSet> {
        Err(NoSet::Json { at: self.at, what })
    }
}

#[cfg(test)]
pub(crate) mod tests;
