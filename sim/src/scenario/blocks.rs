//! [`Block`]: a named piece of a client's work, read from a file of SQL.
//!
//! ```sql
//! -- name: buy
//! -- weight: 5
//! -- args: sku = zipf(1..10), n = int(1..3), id = uuid()
//! UPDATE stock SET quantity = quantity - :n WHERE sku = :sku AND quantity >= :n;
//! INSERT INTO orders (id, sku, quantity) SELECT :id, :sku, :n WHERE changes() > 0;
//! ```
//!
//! The statements of a block are one transaction. What SQLite thinks of them is asked in
//! [`rehearsal`](super::rehearsal); here it is only found where each of them begins and ends.

use super::{
    arguments::{self, LANGUAGE, Source},
    mistake::{Mistake, suggestion},
};

/// A statement and its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Statement {
    /// Its text, comments included.
    pub(crate) sql: String,
    /// The file that it stands in.
    pub(crate) file: String,
    /// The line of its first word, counted from 1.
    pub(crate) line: usize,
    /// The names of its parameters without the colon, in the order in which SQLite numbers them.
    pub(crate) parameters: Vec<String>,
}

impl Statement {
    /// A mistake in this statement.
    pub(crate) fn mistake(&self, what: impl Into<String>) -> Mistake {
        Mistake::at(&self.file, self.line, what)
    }
}

/// A named piece of a client's work.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Its name.
    pub(crate) name: String,
    /// How often it is chosen, against the other blocks of its file.
    pub(crate) weight: u64,
    /// Its arguments.
    pub(crate) arguments: Vec<(String, Source)>,
    /// What it runs, as one transaction.
    pub(crate) statements: Vec<Statement>,
}

/// What a comment line says of its block.
fn directive(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.trim().strip_prefix("--")?.split_once(':')?;
    let key = key.trim();
    let is_word = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphabetic());
    is_word.then(|| (key, value.trim()))
}

const DIRECTIVES: [&str; 3] = ["name", "weight", "args"];

/// Reads the blocks of a file.
///
/// # Errors
/// What is wrong, with file and line.
pub(crate) fn read(text: &str, file: &str) -> Result<Vec<Block>, Mistake> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut body = String::new();
    let mut begins = 1;
    for (number, line) in (1..).zip(text.lines()) {
        let at = |what: String| Mistake::at(file, number, what);
        // Lines before the first name and within a statement are ordinary comments.
        let Some((key, value)) = directive(line).filter(|_| has_ended(&body)) else {
            body.push_str(line);
            body.push('\n');
            continue;
        };
        if key == "name" {
            close(&mut blocks, &body, begins, file)?;
            (body, begins) = (String::new(), number);
            if value.is_empty() || blocks.iter().any(|block| block.name == value) {
                return Err(at(format!("a block needs a name of its own, not {value:?}")));
            }
            blocks.push(Block {
                name: value.to_owned(),
                weight: 1,
                arguments: Vec::new(),
                statements: Vec::new(),
            });
        } else if let Some(block) = blocks.last_mut() {
            match key {
                "weight" => {
                    block.weight = value
                        .parse()
                        .ok()
                        .filter(|weight| (1..=1000).contains(weight))
                        .ok_or_else(|| at(format!("weight: {value}: expected 1 to 1000")))?;
                }
                "args" => {
                    let more = arguments::parse(value).map_err(|what| at(what).hint(LANGUAGE))?;
                    if let Some((name, _)) =
                        more.iter().find(|(name, _)| block.arguments.iter().any(|a| a.0 == *name))
                    {
                        return Err(at(format!("the argument {name} is given twice")));
                    }
                    block.arguments.extend(more);
                }
                other if suggestion(other, DIRECTIVES.into_iter()).starts_with("did") => {
                    return Err(at(format!("unknown word {other:?} of a block"))
                        .hint(suggestion(other, DIRECTIVES.into_iter())));
                }
                _ => {}
            }
        }
        body.push('\n');
    }
    close(&mut blocks, &body, begins, file)?;
    if blocks.is_empty() {
        return Err(Mistake::new(file, "there is no block in it")
            .hint("a block begins with a line such as -- name: buy"));
    }
    Ok(blocks)
}

/// Ends the last block, whose statements stand in `body`, which begins at line `begins`.
fn close(blocks: &mut [Block], body: &str, begins: usize, file: &str) -> Result<(), Mistake> {
    let statements = split(body, file, begins)?;
    let Some(block) = blocks.last_mut() else {
        return match statements.first() {
            None => Ok(()),
            Some(statement) => Err(statement
                .mistake("a statement that belongs to no block")
                .hint("a block begins with a line such as -- name: buy")),
        };
    };
    if statements.is_empty() {
        return Err(Mistake::at(
            file,
            begins,
            format!("the block {} has no statement", block.name),
        ));
    }
    for statement in &statements {
        for name in &statement.parameters {
            if !block.arguments.iter().any(|(known, _)| known == name) {
                let known = block.arguments.iter().map(|(known, _)| known.as_str());
                return Err(statement
                    .mistake(format!("the block {} has no argument :{name}", block.name))
                    .hint(match block.arguments.is_empty() {
                        true => format!("declare it: -- args: {name} = int(1..10); {LANGUAGE}"),
                        false => suggestion(name, known),
                    }));
            }
        }
    }
    let used = |name: &String| statements.iter().any(|s| s.parameters.contains(name));
    if let Some((name, _)) = block.arguments.iter().find(|(name, _)| !used(name)) {
        let what = format!("no statement of the block {} uses its argument {name}", block.name);
        return Err(Mistake::at(file, begins, what)
            .hint(format!("write it as :{name}, or leave it out of args")));
    }
    block.statements = statements;
    Ok(())
}

fn has_ended(body: &str) -> bool {
    let mut open = false;
    for token in Tokens::of(body) {
        open = token.kind != Kind::Semicolon;
    }
    !open
}

/// Splits a script into statements.
///
/// # Errors
/// Parameters that are not written `:name`.
pub(crate) fn split(text: &str, file: &str, first_line: usize) -> Result<Vec<Statement>, Mistake> {
    let mut statements = Vec::new();
    let mut open: Option<Statement> = None;
    let mut begins = 0;
    for token in Tokens::of(text) {
        if token.kind == Kind::Semicolon {
            statements.extend(open.take().map(|statement: Statement| Statement {
                sql: text[begins..token.begins].trim_end().to_owned(),
                ..statement
            }));
            continue;
        }
        let statement = open.get_or_insert_with(|| {
            begins = token.begins;
            Statement {
                sql: String::new(),
                file: file.to_owned(),
                line: first_line + text[..token.begins].matches('\n').count(),
                parameters: Vec::new(),
            }
        });
        if token.kind == Kind::Parameter {
            let text = &text[token.begins..token.ends];
            match text.strip_prefix(':').filter(|name| !name.is_empty()) {
                Some(name) if statement.parameters.iter().any(|known| known == name) => {}
                Some(name) => statement.parameters.push(name.to_owned()),
                None => {
                    return Err(statement
                        .mistake(format!("the parameter {text:?}"))
                        .hint("parameters are written :name, and named in args"));
                }
            }
        }
    }
    statements.extend(
        open.map(|statement| Statement { sql: text[begins..].trim_end().to_owned(), ..statement }),
    );
    Ok(statements)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Semicolon,
    Parameter,
    Other,
}

/// A piece of SQL that is neither white space nor a comment.
#[derive(Clone, Copy, Debug)]
struct Token {
    kind: Kind,
    begins: usize,
    ends: usize,
}

struct Tokens<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Tokens<'t> {
    fn of(text: &'t str) -> Self {
        Self { text, at: 0 }
    }
}

impl Iterator for Tokens<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            let rest = &self.text[self.at..];
            let begins = self.at;
            let first = rest.chars().next()?;
            let behind = |pattern: &str, from: usize| {
                rest[from..].find(pattern).map_or(rest.len(), |place| from + place + pattern.len())
            };
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let (kind, length) = if first.is_whitespace() {
                self.at += first.len_utf8();
                continue;
            } else if rest.starts_with("--") {
                self.at += behind("\n", 2);
                continue;
            } else if rest.starts_with("/*") {
                self.at += behind("*/", 2);
                continue;
            } else if first == ';' {
                (Kind::Semicolon, 1)
            } else if let '\'' | '"' | '`' = first {
                // A doubled quote reads as two tokens, which comes to the same here.
                (Kind::Other, behind(&first.to_string(), 1))
            } else if first == '[' {
                (Kind::Other, behind("]", 1))
            } else if let ':' | '?' | '@' | '$' = first {
                let end = rest[1..].find(|c| !is_word(c)).map_or(rest.len(), |place| 1 + place);
                (Kind::Parameter, end)
            } else if is_word(first) {
                (Kind::Other, rest.find(|c| !is_word(c)).unwrap_or(rest.len()))
            } else {
                (Kind::Other, first.len_utf8())
            };
            self.at += length;
            return Some(Token { kind, begins, ends: self.at });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUY: &str = "-- Shoppers, in a hurry.
-- name: buy
-- weight: 5
-- args: sku = zipf(1..10), id = uuid()
UPDATE stock SET quantity = quantity - 1 -- note: this is no directive
  WHERE sku = :sku AND ';' <> \":no\";
INSERT INTO orders SELECT :id, :sku;

-- name: look
SELECT * /* :not this */ FROM stock
";

    #[test]
    fn a_file_is_read_into_blocks_and_statements() {
        let blocks = read(BUY, "buy.sql").unwrap();
        let [buy, look] = blocks.as_slice() else { panic!("{blocks:?}") };
        assert_eq!((buy.name.as_str(), buy.weight, buy.arguments.len()), ("buy", 5, 2));
        let lines: Vec<usize> = buy.statements.iter().map(|statement| statement.line).collect();
        assert_eq!(lines, [5, 7]);
        assert_eq!(buy.statements[0].parameters, ["sku"]);
        assert_eq!(buy.statements[1].parameters, ["id", "sku"]);
        assert_eq!(buy.statements[1].sql, "INSERT INTO orders SELECT :id, :sku");
        assert_eq!((look.weight, look.statements.len(), look.statements[0].line), (1, 1, 10));
        assert!(look.statements[0].parameters.is_empty());
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, place, told) in [
            ("SELECT 1;", "f:1", "belongs to no block"),
            ("", "f", "no block"),
            ("-- name: a\n", "f:1", "has no statement"),
            ("-- name: a\nSELECT 1;\n-- name: a\nSELECT 2;", "f:3", "a name of its own"),
            ("-- name: a\n-- weight: 0\nSELECT 1", "f:2", "1 to 1000"),
            ("-- name: a\n-- wieght: 2\nSELECT 1", "f:2", "unknown word"),
            ("-- name: a\n-- args: x = dice(6)\nSELECT :x", "f:2", "no source"),
            ("-- name: a\n-- args: x = uuid()\nSELECT 1", "f:1", "uses its argument x"),
            ("-- name: a\n\nSELECT :y", "f:3", "no argument :y"),
            ("-- name: a\nSELECT ?1", "f:2", "parameter \"?1\""),
            ("-- name: a\nSELECT @x", "f:2", "parameter \"@x\""),
        ] {
            let mistake = read(text, "f").unwrap_err();
            assert_eq!(mistake.place, place, "{text:?}: {mistake}");
            assert!(mistake.what.contains(told), "{text:?}: {mistake}");
        }
    }
}
