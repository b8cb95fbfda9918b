//! [`Mistake`]: what is wrong with a scenario, where, and what to do about it.

use std::fmt;

/// Why a scenario was refused. Nothing was run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Mistake {
    /// A file, with the line if that is known.
    pub(crate) place: String,
    /// What is wrong there.
    pub(crate) what: String,
    /// What to do, if that is not plain.
    pub(crate) hint: Option<String>,
}

impl Mistake {
    /// Something wrong at a place.
    pub(crate) fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into(), hint: None }
    }

    /// Something wrong in a line of a file; lines count from 1.
    pub(crate) fn at(file: &str, line: usize, what: impl Into<String>) -> Self {
        Self::new(format!("{file}:{line}"), what)
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

impl std::error::Error for Mistake {}

/// What somebody who wrote `word` may have meant: the nearest of `known`, or all there are.
pub(crate) fn suggestion<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> String {
    let known: Vec<&str> = known.collect();
    let nearest = known.iter().min_by_key(|name| strsim::damerau_levenshtein(word, name));
    match nearest {
        Some(name) if strsim::damerau_levenshtein(word, name) <= 1 + word.len() / 4 => {
            format!("did you mean {name:?}?")
        }
        Some(_) => format!("one of {}", known.join(", ")),
        None => "there is none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_gets_the_word_and_anything_else_gets_all_words() {
        let known = ["partition", "power-cut", "cut"];
        let suggest = |word| suggestion(word, known.into_iter());
        assert_eq!(suggest("partiton"), "did you mean \"partition\"?");
        assert_eq!(suggest("powercut"), "did you mean \"power-cut\"?");
        assert_eq!(suggest("earthquake"), "one of partition, power-cut, cut");
        assert_eq!(suggestion("x", std::iter::empty()), "there is none");
    }
}
