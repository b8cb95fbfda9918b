//! What can be known of SQL without preparing it: where a statement ends, its first word, and its
//! parameters. The words that control transactions must be known before SQLite sees them.
//!
//! Tokens are SQLite's. A script is split as `sqlite3_complete` does it, which knows that the
//! semicolons in a trigger's body do not end the statement.

use std::collections::HashMap;

/// A piece of SQL text that is neither white space nor a comment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token<'a> {
    /// A bare word or number.
    Word(&'a str),
    /// `?`, `?NNN`, `:name`, `@name` or `$name`.
    Parameter(&'a str),
    Semicolon,
    /// A string, a quoted name, an operator.
    Other,
}

/// Tokens with the offset behind each.
struct Tokens<'a> {
    sql: &'a str,
    at: usize,
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (Token<'a>, usize);

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.sql.as_bytes();
        loop {
            let rest = &bytes[self.at..];
            let start = self.at;
            match rest.first()? {
                b' ' | b'\t' | b'\n' | b'\x0c' | b'\r' => self.at += 1,
                b'-' if rest.get(1) == Some(&b'-') => {
                    self.at += rest.iter().position(|b| *b == b'\n').map_or(rest.len(), |i| i + 1);
                }
                b'/' if rest.get(1) == Some(&b'*') => {
                    let end = rest[2..].windows(2).position(|pair| pair == b"*/");
                    self.at += end.map_or(rest.len(), |i| i + 4);
                }
                b';' => {
                    self.at += 1;
                    return Some((Token::Semicolon, self.at));
                }
                quote @ (b'\'' | b'"' | b'`' | b'[') => {
                    let close = if *quote == b'[' { b']' } else { *quote };
                    // A doubled quote reads as two tokens, which comes to the same here.
                    let end = rest[1..].iter().position(|b| *b == close);
                    self.at += end.map_or(rest.len(), |i| i + 2);
                    return Some((Token::Other, self.at));
                }
                b'?' | b':' | b'@' | b'$' => {
                    self.at += 1 + rest[1..].iter().take_while(|b| is_word(**b)).count();
                    let text = &self.sql[start..self.at];
                    let named = text.len() > 1 || text == "?";
                    let token = if named { Token::Parameter(text) } else { Token::Other };
                    return Some((token, self.at));
                }
                byte if is_word(*byte) => {
                    self.at += rest.iter().take_while(|b| is_word(**b)).count();
                    return Some((Token::Word(&self.sql[start..self.at]), self.at));
                }
                _ => {
                    self.at += 1;
                    return Some((Token::Other, self.at));
                }
            }
        }
    }
}

const fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

const fn tokens(sql: &str) -> Tokens<'_> {
    Tokens { sql, at: 0 }
}

/// The statements of a script, without the semicolons between them.
pub(crate) fn statements(script: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut start, mut words, mut empty) = (0, Opening::default(), true);
    for (token, end) in tokens(script) {
        if token == Token::Semicolon && words.semicolon_ends() {
            if !empty {
                found.push(script[start..end - 1].trim());
            }
            (start, words, empty) = (end, Opening::default(), true);
        } else {
            words.take(token);
            empty = false;
        }
    }
    if !empty {
        found.push(script[start..].trim());
    }
    found
}

/// Whether a statement changes the schema, as its first word says.
pub(crate) fn changes_schema(sql: &str) -> bool {
    let first = tokens(sql).find_map(|(token, _)| match token {
        Token::Word(word) => Some(word),
        _ => None,
    });
    let words = ["create", "alter", "drop"];
    first.is_some_and(|first| words.iter().any(|word| first.eq_ignore_ascii_case(word)))
}

/// How far a statement is towards being a `CREATE TRIGGER`, and within one, towards its `END;`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Opening {
    #[default]
    Start,
    Explain,
    Create,
    Ordinary,
    Trigger,
    TriggerSemicolon,
    TriggerEnd,
}

impl Opening {
    fn take(&mut self, token: Token<'_>) {
        let is = |word: &str| matches!(token, Token::Word(w) if w.eq_ignore_ascii_case(word));
        *self = match *self {
            Self::Start if is("explain") => Self::Explain,
            Self::Explain if is("query") || is("plan") => Self::Explain,
            Self::Start | Self::Explain if is("create") => Self::Create,
            Self::Create if is("temp") || is("temporary") => Self::Create,
            Self::Create if is("trigger") => Self::Trigger,
            Self::Start | Self::Explain | Self::Create | Self::Ordinary => Self::Ordinary,
            Self::Trigger | Self::TriggerSemicolon | Self::TriggerEnd
                if token == Token::Semicolon =>
            {
                Self::TriggerSemicolon
            }
            Self::TriggerSemicolon if is("end") => Self::TriggerEnd,
            Self::Trigger | Self::TriggerSemicolon | Self::TriggerEnd => Self::Trigger,
        };
    }

    fn semicolon_ends(self) -> bool {
        !matches!(self, Self::Trigger | Self::TriggerSemicolon)
    }
}

/// What a statement's first words say of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verb {
    /// `BEGIN IMMEDIATE` and other forms that ask for the writer at once.
    Begin,
    /// `BEGIN` or `BEGIN DEFERRED`: the writer is asked for when something writes.
    BeginDeferred,
    /// `BEGIN READONLY` or `BEGIN TRANSACTION READONLY`, libSQL's own.
    BeginReadOnly,
    /// `COMMIT` or `END`.
    Commit,
    /// `ROLLBACK`, but not `ROLLBACK TO`.
    Rollback,
    /// `SAVEPOINT`, `RELEASE` or `ROLLBACK TO`.
    Savepoint,
    /// A statement that may only read: preparing it tells.
    MayRead,
    /// `INSERT` or `REPLACE`.
    Insert,
    /// Any other statement.
    Write,
}

/// Where a transaction that is begun wants to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Place {
    /// Where its statements may run.
    #[default]
    Anywhere,
    /// `BEGIN CONCURRENT`: on the node that was asked.
    Here,
    /// `BEGIN EXCLUSIVE`: at the origin.
    Origin,
}

impl Place {
    /// Where the transaction of a BEGIN wants to be.
    pub(crate) fn of(statement: &str) -> Self {
        let mut words = tokens(statement).filter_map(|(token, _)| match token {
            Token::Word(word) => Some(word),
            _ => None,
        });
        match words.nth(1) {
            Some(word) if word.eq_ignore_ascii_case("concurrent") => Self::Here,
            Some(word) if word.eq_ignore_ascii_case("exclusive") => Self::Origin,
            _ => Self::Anywhere,
        }
    }
}

impl Verb {
    pub(crate) fn of(statement: &str) -> Self {
        let mut words = tokens(statement).filter_map(|(token, _)| match token {
            Token::Word(word) => Some(word.to_ascii_lowercase()),
            _ => None,
        });
        let mut next = || words.next().unwrap_or_default();
        match next().as_str() {
            "begin" => loop {
                match next().as_str() {
                    "readonly" => return Self::BeginReadOnly,
                    "transaction" | "deferred" => {}
                    "" => return Self::BeginDeferred,
                    _ => return Self::Begin,
                }
            },
            "commit" | "end" => Self::Commit,
            "rollback" => {
                let mut second = next();
                if second == "transaction" {
                    second = next();
                }
                if second == "to" { Self::Savepoint } else { Self::Rollback }
            }
            "savepoint" | "release" => Self::Savepoint,
            // It reads, as SQLite sees it, and declares a policy, which is the writer's business.
            "select" | "values" | "with" if words.any(|word| word == "littoral_policy") => {
                Self::Write
            }
            "select" | "values" | "with" | "explain" | "pragma" => Self::MayRead,
            "insert" | "replace" => Self::Insert,
            _ => Self::Write,
        }
    }

    /// Whether it begins or ends a transaction.
    pub(crate) const fn controls_transaction(self) -> bool {
        self.begins_transaction() || self.ends_transaction()
    }

    /// Whether it begins a transaction.
    pub(crate) const fn begins_transaction(self) -> bool {
        matches!(self, Self::Begin | Self::BeginDeferred | Self::BeginReadOnly)
    }

    /// Whether it ends a transaction.
    pub(crate) const fn ends_transaction(self) -> bool {
        matches!(self, Self::Commit | Self::Rollback)
    }
}

/// What `PRAGMA foreign_keys` is set to: `on` or `off`.
pub(crate) fn sets_foreign_keys(statement: &str) -> Option<&'static str> {
    let mut words = tokens(statement).filter_map(|(token, _)| match token {
        Token::Word(word) => Some(word.to_ascii_lowercase()),
        _ => None,
    });
    if words.next()? != "pragma" || words.next()? != "foreign_keys" {
        return None;
    }
    match words.next()?.as_str() {
        "off" | "0" | "false" | "no" => Some("off"),
        "on" | "1" | "true" | "yes" => Some("on"),
        _ => None,
    }
}

/// Whether the statement begins with `EXPLAIN`.
pub(crate) fn is_explain(statement: &str) -> bool {
    let first = tokens(statement).next();
    matches!(first, Some((Token::Word(word), _)) if word.eq_ignore_ascii_case("explain"))
}

/// A statement's parameters by number, from 1.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Parameters {
    /// `None` where the number is not used at all; otherwise the text, such as `?`, `?3` or `:name`.
    texts: Vec<Option<String>>,
    /// The index, from 0, of each text but `?`.
    indices: HashMap<String, usize>,
}

/// The largest parameter number SQLite takes, `SQLITE_MAX_VARIABLE_NUMBER`.
const MAX_PARAMETER: usize = 32_766;

impl Parameters {
    /// SQLite's numbering: `?NNN` has its number, a name seen before has the same one, everything else
    /// the one after the largest so far. Numbers that SQLite refuses are left to its own error.
    pub(crate) fn of(statement: &str) -> Self {
        let mut texts: Vec<Option<String>> = Vec::new();
        let mut indices: HashMap<String, usize> = HashMap::new();
        for (token, _) in tokens(statement) {
            let Token::Parameter(text) = token else { continue };
            let number = text.strip_prefix('?').and_then(|digits| digits.parse::<usize>().ok());
            match number {
                Some(n) if (1..=MAX_PARAMETER).contains(&n) => {
                    if texts.len() < n {
                        texts.resize(n, None);
                    }
                    texts[n - 1] = Some(text.to_owned());
                    indices.entry(text.to_owned()).or_insert(n - 1);
                }
                Some(_) => {}
                None if indices.contains_key(text) => {}
                // SQLite refuses the statement for this parameter, whatever comes behind it.
                None if texts.len() >= MAX_PARAMETER => break,
                None => {
                    if text != "?" {
                        indices.insert(text.to_owned(), texts.len());
                    }
                    texts.push(Some(text.to_owned()));
                }
            }
        }
        Self { texts, indices }
    }

    /// How many values SQLite expects, unused numbers included.
    pub(crate) const fn count(&self) -> usize {
        self.texts.len()
    }

    /// Whether the number, counted from 0 here, is used.
    pub(crate) fn is_used(&self, index: usize) -> bool {
        self.texts.get(index).is_some_and(Option::is_some)
    }

    /// The index, from 0, of a name that may come with or without its prefix.
    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.indices.get(name).copied().or_else(|| {
            [':', '@', '$']
                .iter()
                .filter_map(|prefix| self.indices.get(&format!("{prefix}{name}")).copied())
                .min()
        })
    }

    /// The names as `describe` tells them: with prefix; none for `?`.
    pub(crate) fn names(&self) -> impl Iterator<Item = Option<&str>> {
        self.texts.iter().map(|text| text.as_deref().filter(|text| *text != "?"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_split_where_statements_end() {
        for (script, expected) in [
            ("", vec![]),
            (" ; ;; -- nothing\n", vec![]),
            ("SELECT 1", vec!["SELECT 1"]),
            ("SELECT 1;", vec!["SELECT 1"]),
            ("SELECT ';' ; SELECT \";\"", vec!["SELECT ';'", "SELECT \";\""]),
            ("SELECT 'it''s; fine';SELECT 2", vec!["SELECT 'it''s; fine'", "SELECT 2"]),
            ("SELECT [a;b], `c;d`; X", vec!["SELECT [a;b], `c;d`", "X"]),
            ("SELECT 1 -- ; no\n; SELECT 2 /* ; */", vec!["SELECT 1 -- ; no", "SELECT 2 /* ; */"]),
            ("SELECT 'open; SELECT 2", vec!["SELECT 'open; SELECT 2"]),
            ("SELECT /* open ; ", vec!["SELECT /* open ;"]),
            ("SELECT 'é';x", vec!["SELECT 'é'", "x"]),
        ] {
            assert_eq!(statements(script), expected, "{script}");
        }
    }

    #[test]
    fn a_triggers_body_is_part_of_it() {
        let trigger = "CREATE TEMP TRIGGER t AFTER INSERT ON a BEGIN\n\
                       SELECT CASE WHEN 1 THEN 2 END; DELETE FROM b; END";
        let script = format!("{trigger}; SELECT 1");
        assert_eq!(statements(&script), vec![trigger, "SELECT 1"]);
        let table = "CREATE TABLE trigger_log (id)";
        assert_eq!(statements(&format!("{table};SELECT 1")), vec![table, "SELECT 1"]);
    }

    #[test]
    fn first_words_tell_what_a_statement_may_do() {
        for (sql, verb) in [
            ("BEGIN", Verb::BeginDeferred),
            ("BEGIN DEFERRED TRANSACTION;", Verb::BeginDeferred),
            ("BEGIN EXCLUSIVE TRANSACTION", Verb::Begin),
            ("begin immediate", Verb::Begin),
            ("/* x */ BEGIN CONCURRENT", Verb::Begin),
            ("BEGIN TRANSACTION", Verb::BeginDeferred),
            ("BEGIN TRANSACTION READONLY", Verb::BeginReadOnly),
            ("BEGIN READONLY", Verb::BeginReadOnly),
            ("COMMIT", Verb::Commit),
            ("End Transaction", Verb::Commit),
            ("ROLLBACK", Verb::Rollback),
            ("ROLLBACK TRANSACTION", Verb::Rollback),
            ("ROLLBACK TO s", Verb::Savepoint),
            ("ROLLBACK TRANSACTION TO SAVEPOINT s", Verb::Savepoint),
            ("SAVEPOINT s", Verb::Savepoint),
            ("release s", Verb::Savepoint),
            ("-- c\nSELECT 1", Verb::MayRead),
            ("WITH x AS (SELECT 1) DELETE FROM t", Verb::MayRead),
            ("SELECT Littoral_Policy('t', 'eventual')", Verb::Write),
            ("SELECT 'littoral_policy(1)'", Verb::MayRead),
            ("REPLACE INTO t VALUES (1)", Verb::Insert),
            ("DELETE FROM t", Verb::Write),
            ("", Verb::Write),
        ] {
            assert_eq!(Verb::of(sql), verb, "{sql}");
        }
    }

    #[test]
    fn the_switch_of_foreign_keys_is_recognised() {
        for (sql, to) in [
            ("PRAGMA foreign_keys=OFF", Some("off")),
            ("pragma foreign_keys = 1", Some("on")),
            ("PRAGMA foreign_keys(off)", Some("off")),
            ("PRAGMA foreign_keys", None),
            ("PRAGMA defer_foreign_keys = ON", None),
            ("SELECT 'PRAGMA foreign_keys=OFF'", None),
        ] {
            assert_eq!(sets_foreign_keys(sql), to, "{sql}");
        }
    }

    #[test]
    fn parameters_are_numbered_as_sqlite_does() {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        for sql in [
            "SELECT 1",
            "SELECT ?, ?",
            "SELECT ?2, ?, ?1",
            "SELECT :a, @a, $a, :a, ?",
            "SELECT ':no', \"?\", [@no] -- ?\n, ?3 /* :x */",
            "SELECT :Ünï",
        ] {
            let statement = connection.prepare(sql);
            let Ok(statement) = statement else {
                // An unknown column: parsed all the same, so the count is not to be had.
                continue;
            };
            let ours = Parameters::of(sql);
            assert_eq!(ours.count(), statement.parameter_count(), "{sql}");
            for (i, name) in ours.names().enumerate() {
                assert_eq!(name, statement.parameter_name(i + 1), "{sql}");
            }
        }
    }

    #[test]
    fn a_statement_of_too_many_parameters_is_read_no_further_than_sqlite_would() {
        use std::fmt::Write as _;

        let mut sql = "SELECT ".to_owned();
        for i in 0..1_000_000 {
            write!(sql, ":a{i},").unwrap();
        }
        let began = std::time::Instant::now();
        let parameters = Parameters::of(&sql);
        assert_eq!(parameters.count(), MAX_PARAMETER);
        for i in 0..MAX_PARAMETER {
            assert_eq!(parameters.index_of(&format!("a{i}")), Some(i));
        }
        assert!(began.elapsed().as_secs() < 2, "quadratic: {:?}", began.elapsed());
    }

    #[test]
    fn names_match_with_and_without_prefix() {
        let parameters = Parameters::of("SELECT :a, @b, ?5");
        assert_eq!(parameters.index_of("a"), Some(0));
        assert_eq!(parameters.index_of(":a"), Some(0));
        assert_eq!(parameters.index_of("@b"), Some(1));
        assert_eq!(parameters.index_of("$a"), None);
        assert!(!parameters.is_used(2) && parameters.is_used(4));
    }
}
