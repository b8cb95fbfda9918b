//! [`Source`]: where an argument of a client's call comes from, and its small language:
//! `sku = zipf(1..100), n = int(1..3), size = choice('s', 'm', null)`.

use std::rc::Rc;

use rusqlite::types::Value;

use crate::chance::Draw;

/// The most values that `zipf` chooses from.
const MAX_ZIPF: u64 = 1_000_000;

/// Where the values of an argument come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// An integer between two, both included, each as likely.
    Int(i64, i64),
    /// An integer from the first on, the k-th of them k times rarer than the first.
    Zipf {
        /// The most frequent one.
        first: i64,
        /// Sums of the weights up to each.
        sums: Rc<[u64]>,
    },
    /// One of these, each as likely.
    Choice(Vec<Value>),
    /// A text that looks like a UUID, and that no other call gets.
    Uuid,
    /// Counts the calls of the block in the whole cluster, from this number on.
    Seq(i64),
    /// The name of the client's node.
    Node,
}

/// What a draw needs to know of the call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallSite<'c> {
    /// The name of the client's node.
    pub(crate) node: &'c str,
    /// How many calls of the block came before, in the whole cluster.
    pub(crate) before: u64,
}

impl Source {
    /// A value for one call.
    pub(crate) fn draw(&self, draw: &mut Draw, site: CallSite<'_>) -> Value {
        match self {
            Self::Int(low, high) => {
                let span = high.wrapping_sub(*low).cast_unsigned();
                let above = if span == u64::MAX { draw.word() } else { draw.below(span + 1) };
                Value::Integer(low.wrapping_add_unsigned(above))
            }
            Self::Zipf { first, sums } => {
                let place = draw.below(sums.last().copied().unwrap_or(1));
                let rank = sums.partition_point(|sum| *sum <= place) as u64;
                Value::Integer(first.wrapping_add_unsigned(rank))
            }
            Self::Choice(values) => draw.pick(values).clone(),
            Self::Uuid => Value::Text(uuid(draw)),
            Self::Seq(first) => Value::Integer(first.wrapping_add_unsigned(site.before)),
            Self::Node => Value::Text(site.node.to_owned()),
        }
    }
}

fn uuid(draw: &mut Draw) -> String {
    let (high, low) = (draw.word(), draw.word());
    let (a, b, c) = (high >> 32, high >> 16 & 0xffff, high & 0xfff);
    let (d, e) = (low >> 48 & 0x3fff | 0x8000, low & 0xffff_ffff_ffff);
    format!("{a:08x}-{b:04x}-4{c:03x}-{d:04x}-{e:012x}")
}

/// Parses `name = source, name = source`.
///
/// # Errors
/// What is wrong, for a hint that shows the whole language.
pub(crate) fn parse(text: &str) -> Result<Vec<(String, Source)>, String> {
    let mut parser = Parser { rest: text.trim_start() };
    let mut arguments: Vec<(String, Source)> = Vec::new();
    while !parser.rest.is_empty() {
        let name = parser.word()?.to_owned();
        parser.expect('=')?;
        let source = parser.source()?;
        if arguments.iter().any(|(known, _)| *known == name) {
            return Err(format!("the argument {name} is given twice"));
        }
        arguments.push((name, source));
        if !parser.accept(',') && !parser.rest.is_empty() {
            return Err(format!("expected a comma before {:?}", parser.rest));
        }
    }
    Ok(arguments)
}

/// The language in one line, for hints.
pub(crate) const LANGUAGE: &str = "arguments are written NAME = SOURCE, with SOURCE one of \
    int(1..3), zipf(1..100), choice('s', 'm', 3, null), uuid(), seq(1), node()";

struct Parser<'t> {
    rest: &'t str,
}

impl<'t> Parser<'t> {
    fn accept(&mut self, c: char) -> bool {
        let Some(rest) = self.rest.strip_prefix(c) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.accept(c) {
            return Ok(());
        }
        let found =
            self.rest.chars().next().map_or_else(|| "nothing".to_owned(), |c| format!("{c:?}"));
        Err(format!("expected {c:?}, found {found}"))
    }

    fn take(&mut self, length: usize) -> &'t str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest.trim_start();
        taken
    }

    fn word(&mut self) -> Result<&'t str, String> {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
        let starts = self.rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts {
            return Err(format!("expected a name at {:?}", self.rest));
        }
        Ok(self.take(length))
    }

    fn integer(&mut self) -> Result<i64, String> {
        let digits = self.rest.strip_prefix('-').unwrap_or(self.rest);
        let sign = self.rest.len() - digits.len();
        let length = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let text = self.take(sign + length);
        text.parse().map_err(|_| format!("{text:?} is not a 64-bit integer"))
    }

    fn range(&mut self) -> Result<(i64, i64), String> {
        let low = self.integer()?;
        let Some(rest) = self.rest.strip_prefix("..") else {
            return Err(format!("expected .. after {low}, as in 1..3"));
        };
        self.rest = rest.trim_start();
        let high = self.integer()?;
        if low > high {
            return Err(format!("the range {low}..{high} is empty"));
        }
        Ok((low, high))
    }

    fn value(&mut self) -> Result<Value, String> {
        if let Some(rest) = self.rest.strip_prefix('\'') {
            let end = rest.find('\'').ok_or("a text without its closing quote")?;
            let text = &rest[..end];
            self.take(end + 2);
            return Ok(Value::Text(text.to_owned()));
        }
        if self.rest.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
            return self.integer().map(Value::Integer);
        }
        match self.word()? {
            "null" => Ok(Value::Null),
            word => Err(format!("{word:?} is no value; texts are written 'so'")),
        }
    }

    fn source(&mut self) -> Result<Source, String> {
        let word = self.word()?;
        self.expect('(')?;
        let source = match word {
            "int" => {
                let (low, high) = self.range()?;
                Source::Int(low, high)
            }
            "zipf" => {
                let (first, last) = self.range()?;
                zipf(first, last)?
            }
            "choice" => {
                let mut values = vec![self.value()?];
                while self.accept(',') {
                    values.push(self.value()?);
                }
                Source::Choice(values)
            }
            "uuid" => Source::Uuid,
            "seq" if self.rest.starts_with(')') => Source::Seq(1),
            "seq" => Source::Seq(self.integer()?),
            "node" => Source::Node,
            other => return Err(format!("there is no source {other:?}")),
        };
        self.expect(')')?;
        Ok(source)
    }
}

/// Weights fall as 1, 1/2, 1/3 …, in fixed point: no run depends on how a machine rounds.
fn zipf(first: i64, last: i64) -> Result<Source, String> {
    let count = last.abs_diff(first).saturating_add(1);
    if count > MAX_ZIPF {
        return Err(format!("zipf chooses from {MAX_ZIPF} values at most, not from {count}"));
    }
    let sums = (1..=count).scan(0, |sum, rank| {
        *sum += (1u64 << 32) / rank;
        Some(*sum)
    });
    Ok(Source::Zipf { first, sums: sums.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::{Chance, Stream};

    fn values(text: &str) -> Vec<Value> {
        let (_, source) = parse(text).unwrap().remove(0);
        let site = CallSite { node: "fra", before: 4 };
        let draw = |index| source.draw(&mut Chance::of(1).draw(Stream::Job, 0, index), site);
        (0..1000).map(draw).collect()
    }

    #[test]
    fn integers_stay_in_their_range_and_reach_its_ends() {
        let mut seen = values("n = int(-1..1)");
        seen.sort_by_key(|value| format!("{value:?}"));
        seen.dedup();
        assert_eq!(seen, [Value::Integer(-1), Value::Integer(0), Value::Integer(1)]);
        values("n = int(-9223372036854775808..9223372036854775807)");
    }

    #[test]
    fn zipf_prefers_the_first_and_reaches_the_last() {
        let seen = values("n = zipf(10..13)");
        let count = |n| seen.iter().filter(|value| **value == Value::Integer(n)).count();
        assert!(count(10) > 400 && count(10) > count(11) && count(11) > count(13), "{seen:?}");
        assert!(count(13) > 50);
        assert_eq!((10..=13).map(count).sum::<usize>(), 1000);
    }

    #[test]
    fn other_sources_are_what_they_say() {
        assert!(values("x = choice('it, (is)', 2, null)").iter().all(|value| {
            [Value::Text("it, (is)".to_owned()), Value::Integer(2), Value::Null].contains(value)
        }));
        assert_eq!(values("x = seq()")[0], Value::Integer(5));
        assert_eq!(values("x = seq(100)")[0], Value::Integer(104));
        assert_eq!(values("x = node()")[0], Value::Text("fra".to_owned()));
        let uuids = values("x = uuid()");
        let Value::Text(text) = &uuids[0] else { panic!("{uuids:?}") };
        assert_eq!(text.len(), 36);
        assert_ne!(uuids[0], uuids[1]);
    }

    #[test]
    fn several_arguments_are_separated_by_commas() {
        let names: Vec<String> = parse("a = int(1..2), b=uuid(),c = node()")
            .unwrap()
            .into_iter()
            .map(|(n, _)| n)
            .collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_not_the_language_is_refused() {
        for (text, told) in [
            ("n", "expected '='"),
            ("n = 3", "expected a name"),
            ("n = int", "expected '('"),
            ("n = int(3)", "expected .."),
            ("n = int(3..1)", "empty"),
            ("n = int(1..99999999999999999999)", "64-bit"),
            ("n = zipf(1..2000000)", "at most"),
            ("n = float(1..2)", "no source"),
            ("n = choice()", "expected a name"),
            ("n = choice('a)", "closing quote"),
            ("n = choice(so)", "no value"),
            ("n = uuid(1)", "expected ')'"),
            ("n = uuid() m = uuid()", "comma"),
            ("n = uuid(), n = uuid()", "twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
