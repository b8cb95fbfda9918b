//! The words of a statement: for the little that SQLite's own parser does not tell.

/// The words and signs of a statement, without its comments; each string and quoted name is `''`.
pub(super) fn words(sql: &str) -> Vec<&str> {
    parts(sql).into_iter().map(|part| if part.is_quoted() { "''" } else { part.0 }).collect()
}

/// The names that a statement uses like those of functions: with a parenthesis behind them.
pub(super) fn calls(sql: &str) -> Vec<&str> {
    let parts = parts(sql);
    let calls = parts.windows(2).filter(|pair| pair[1].0 == "(");
    calls.filter_map(|pair| pair[0].name()).collect()
}

/// Whether a statement says that rows which are in its way are to be replaced.
pub(crate) fn says_replace(sql: &str) -> bool {
    let words = words(sql);
    let is =
        |place: usize, word: &str| words.get(place).is_some_and(|w| w.eq_ignore_ascii_case(word));
    (0..words.len()).any(|place| {
        is(place, "REPLACE") && (is(place + 1, "INTO") || (place > 0 && is(place - 1, "OR")))
    })
}

/// A word, a sign, a string or a quoted name, as it is written.
struct Part<'s>(&'s str);

impl<'s> Part<'s> {
    fn is_quoted(&self) -> bool {
        self.0.starts_with(['\'', '"', '`', '['])
    }

    /// What it names, if it can name something. Names with a quote in them are none that anybody asks for.
    fn name(&self) -> Option<&'s str> {
        match self.0.chars().next()? {
            '\'' => None,
            '"' | '`' | '[' => self.0.get(1..self.0.len() - 1),
            first => is_of_word(first).then_some(self.0),
        }
    }
}

/// As SQLite has it: every character beyond ASCII may stand in a name.
fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// Before a word a byte order mark is a space, as it is to SQLite; within one it is not.
fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\u{feff}'
}

/// How long a parameter with a name is. Tcl's may end with an index in parentheses, `$v(i)`, in which a quote
/// means nothing.
fn parameter(sql: &str) -> usize {
    let mut len = 1;
    loop {
        len += sql[len..].find(|c| !is_of_word(c)).unwrap_or(sql.len() - len);
        if let Some(index) = sql[len..].strip_prefix('(').filter(|_| len > 1) {
            let end = index.find(|c: char| c == ')' || c.is_ascii_whitespace());
            return end.map_or(sql.len(), |end| {
                len + 1 + end + usize::from(index[end..].starts_with(')'))
            });
        }
        if !sql[len..].starts_with("::") {
            return len;
        }
        len += 2;
    }
}

fn parts(sql: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let close = match first {
            '\'' | '"' | '`' => Some(first),
            '[' => Some(']'),
            _ => None,
        };
        let len = if let Some(close) = close {
            // A doubled quote ends one string and begins the next, which comes to the same.
            rest[1..].find(close).map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.find("*/").map_or(rest.len(), |end| end + 4)
        } else if is_space(first) {
            first.len_utf8()
        } else if matches!(first, '$' | '@' | ':' | '#') {
            parameter(rest)
        } else if is_of_word(first) {
            rest.find(|c| !is_of_word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (part, behind) = rest.split_at(len);
        if !is_space(first) && !part.starts_with("--") && !part.starts_with("/*") {
            parts.push(Part(part));
        }
        rest = behind;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_from_what_is_quoted() {
        assert_eq!(
            words("a 'FROM ''x' -- FROM\n [IN] /* RAISE( */ b(\"IN\")"),
            ["a", "''", "''", "''", "b", "(", "''", ")"]
        );
    }

    #[test]
    fn replacing_is_found_however_it_is_written() {
        for sql in [
            "REPLACE INTO t VALUES (1)",
            "insert or/**/replace into t values (1)",
            "INSERT OR \u{feff}REPLACE \u{feff}INTO t VALUES (1)",
            "UPDATE OR \u{feff}REPLACE t SET a = 1",
            "WITH x AS (SELECT $v(')) INSERT OR REPLACE INTO t SELECT 1",
            "WITH x AS (SELECT $v::w(\"), :a('), @b([), #c(`), $d) INSERT OR REPLACE INTO t SELECT 1",
        ] {
            assert!(says_replace(sql), "{sql}");
        }
        for sql in [
            "INSERT INTO t VALUES ('OR REPLACE INTO')",
            "SELECT replace(a, 'b', $c)",
            "INSERT OR REPLACE\u{feff} INTO t VALUES (1)",
        ] {
            assert!(!says_replace(sql), "{sql}");
        }
    }

    #[test]
    fn calls_are_found_however_they_are_written() {
        let sql = "SELECT a(1), \"b\" /* ( */ ('c(', 'd'), `e`\n(f), [g](h.i), x = 'j(' AND 'k'(l)";
        assert_eq!(calls(sql), ["a", "b", "e", "g"]);
        assert_eq!(calls("\"a"), [""; 0]);
        assert_eq!(calls("SELECT (\""), ["SELECT"]);
    }
}
