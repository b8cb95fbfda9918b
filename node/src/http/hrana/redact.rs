//! A statement as a log may show it: without its values.
//!
//! Strings, numbers and blobs become `?`, comments go, and so does a name in double quotes that is not a known
//! one: SQLite takes it for a string where there is no such column. What a PRAGMA is set to is a value in any
//! spelling.

use std::collections::BTreeSet;

/// Longer texts are cut.
const TEXT_CHARS_MAX: usize = 1000;

/// A statement without its values; `known` are the names of tables and columns, in lower case.
pub(super) fn without_values(sql: &str, known: &BTreeSet<String>) -> String {
    let mut out = String::new();
    let mut rest = sql;
    let mut is_pragma = false;
    while let Some(first) = rest.chars().next() {
        let (token, length) = token(rest, first);
        rest = &rest[length..];
        match token {
            Token::Space => {
                if !out.ends_with(' ') && !out.is_empty() {
                    out.push(' ');
                }
            }
            Token::Value => value(&mut out),
            Token::Quoted(name) if known.contains(&name.to_lowercase()) => {
                out.push('"');
                out.extend(name.chars().filter(|c| !c.is_control()));
                out.push('"');
            }
            Token::Quoted(_) => value(&mut out),
            Token::Text("=" | "(") if is_pragma => {
                out.truncate(out.trim_end().len());
                out.push_str(" = ?");
                break;
            }
            Token::Text(text) => {
                is_pragma |= out.is_empty() && text.eq_ignore_ascii_case("pragma");
                out.extend(text.chars().filter(|c| !c.is_control()));
            }
        }
        if out.len() > TEXT_CHARS_MAX {
            let end = (0..=TEXT_CHARS_MAX).rev().find(|at| out.is_char_boundary(*at));
            out.truncate(end.unwrap_or(0));
            out.push('…');
            break;
        }
    }
    out.truncate(out.trim_end().len());
    out
}

enum Token<'a> {
    /// White space and comments.
    Space,
    /// A string, a number, a blob.
    Value,
    /// What stands in double quotes.
    Quoted(&'a str),
    /// Anything else, as it is.
    Text(&'a str),
}

/// A value; of those in a list only the first two are shown.
fn value(out: &mut String) {
    let list = out.trim_end_matches([' ', ',']);
    if list.ends_with("?, ?") && out.trim_end().ends_with(',') {
        out.truncate(list.len());
        out.push_str(", …");
    } else if list.ends_with("?, ?, …") {
        out.truncate(list.len());
    } else {
        out.push('?');
    }
}

/// The token that a text begins with, and how long it is.
fn token(sql: &str, first: char) -> (Token<'_>, usize) {
    let after = |close: &str, from: usize| {
        sql[from..].find(close).map_or(sql.len(), |at| from + at + close.len())
    };
    let word = |from: usize| {
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
        sql[from..].find(|c| !is_word(c)).map_or(sql.len(), |at| from + at)
    };
    if first.is_whitespace() {
        return (Token::Space, first.len_utf8());
    }
    if sql.starts_with("--") {
        return (Token::Space, after("\n", 2));
    }
    if sql.starts_with("/*") {
        return (Token::Space, after("*/", 2));
    }
    let blob = (first == 'x' || first == 'X') && sql[1..].starts_with('\'');
    match first {
        '\'' => (Token::Value, quoted(sql, 0, b'\'')),
        _ if blob => (Token::Value, quoted(sql, 1, b'\'')),
        '"' => {
            let end = quoted(sql, 0, b'"');
            (Token::Quoted(sql[1..end].trim_end_matches('"')), end)
        }
        '`' => (Token::Text(&sql[..quoted(sql, 0, b'`')]), quoted(sql, 0, b'`')),
        '[' => (Token::Text(&sql[..after("]", 1)]), after("]", 1)),
        '?' | ':' | '@' | '$' => (Token::Text(&sql[..word(1)]), word(1)),
        '0'..='9' => (Token::Value, number(sql)),
        '.' if sql[1..].starts_with(|c: char| c.is_ascii_digit()) => (Token::Value, number(sql)),
        c if c.is_alphabetic() || c == '_' || !c.is_ascii() => {
            (Token::Text(&sql[..word(0)]), word(0))
        }
        other => (Token::Text(&sql[..other.len_utf8()]), other.len_utf8()),
    }
}

/// Where a quoted text ends whose quote is at `start`; a doubled quote does not end it.
fn quoted(sql: &str, start: usize, quote: u8) -> usize {
    let bytes = sql.as_bytes();
    let mut at = start + 1;
    while at < bytes.len() {
        if bytes[at] == quote {
            if bytes.get(at + 1) != Some(&quote) {
                return at + 1;
            }
            at += 1;
        }
        at += 1;
    }
    bytes.len()
}

/// Where a number ends, its point and exponent included.
fn number(sql: &str) -> usize {
    let bytes = sql.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let sign =
            matches!(bytes[at], b'+' | b'-') && at > 0 && matches!(bytes[at - 1], b'e' | b'E');
        if !(bytes[at].is_ascii_alphanumeric() || matches!(bytes[at], b'.' | b'_') || sign) {
            break;
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_and_the_rest_stays() {
        let known = ["users", "name"].map(str::to_owned).into();
        for (sql, shown) in [
            ("SELECT * FROM users WHERE name = 'bob'", "SELECT * FROM users WHERE name = ?"),
            ("select 'it''s', 1.5e-3, -2, .5, 0xff, x'ab' , X'cd'", "select ?, ?, -?, ?, …"),
            (
                "SELECT \"name\" FROM \"users\" WHERE name = \"bob\"",
                "SELECT \"name\" FROM \"users\" WHERE name = ?",
            ),
            ("SELECT a1, `b 2`, [c 3] FROM t4", "SELECT a1, `b 2`, [c 3] FROM t4"),
            ("SELECT :a, ?1, @b, $c -- for bob\n", "SELECT :a, ?1, @b, $c"),
            ("/* bob */ DELETE\n\tFROM t", "DELETE FROM t"),
            (
                "INSERT INTO t VALUES (1,2,3,4), ('a', 'b')",
                "INSERT INTO t VALUES (?,?,?,?), (?, ?)",
            ),
            ("SELECT a FROM t WHERE a IN (1, 2, 3, 4, 5)", "SELECT a FROM t WHERE a IN (?, ?, …)"),
            ("SELECT 'never closed bob", "SELECT ?"),
            ("SELECT \"never closed bob", "SELECT ?"),
            ("SELECT x'00bob", "SELECT ?"),
            ("SELECT größe, 'naïve' FROM täble", "SELECT größe, ? FROM täble"),
            ("/* bob */ pragma main.user_version=bob", "pragma main.user_version = ?"),
            ("PRAGMA table_info (bob) ;", "PRAGMA table_info = ?"),
        ] {
            assert_eq!(without_values(sql, &known), shown, "{sql}");
        }
        let long = format!("SELECT {}", "ä, ".repeat(2000));
        assert!(without_values(&long, &known).len() < TEXT_CHARS_MAX + 10);
    }

    #[test]
    fn no_value_is_shown_wherever_it_stands() {
        for sql in [
            "MARK 'MARK' \"MARK\"",
            "'MARK''MARK'",
            "\"MARK\"\"MARK\"",
            "1MARK",
            "--MARK",
            "/*MARK",
            "x'MARK'",
            "'a' 'MARK",
            "\"MARK",
            "/*'*/'MARK'",
            "--'\n'MARK'",
        ] {
            let shown = without_values(&sql.replacen("MARK ", "", 1), &BTreeSet::new());
            assert!(!shown.contains("MARK"), "{sql}: {shown}");
        }
    }
}
