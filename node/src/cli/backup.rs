//! `littoral backup`: a copy of a node's database, made while the node runs, and checked.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use rusqlite::{Connection, OpenFlags, backup::Backup as Copying};
use serde_json::json;

use super::{OrHint as _, say};
use crate::config::Config;

/// Pages copied at a time.
const STEP_PAGES: i32 = 1024;

/// Copy a node's database into a file while the node runs, and check the copy.
///
/// The copy is of one moment; its structure and its foreign keys are checked. It is an ordinary SQLite
/// database with all rows of this node, those of local tables too. It cannot be run as a node: issue one
/// anew for that.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  littoral backup --config origin/littoral.toml origin-2026-11-28.sqlite"
)]
pub(super) struct Backup {
    /// Configuration of the node.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The file to make. It must not exist yet.
    out: PathBuf,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

impl Backup {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let config = Config::load(&self.config)?;
        if self.out.exists() {
            return Err(anyhow!("{} exists already", self.out.display()))
                .or_hint("a backup overwrites nothing; give it another name");
        }
        let directory = self.out.parent().filter(|path| !path.as_os_str().is_empty());
        if let Some(directory) = directory.filter(|path| !path.is_dir()) {
            return Err(anyhow!("there is no directory {}", directory.display()))
                .or_hint("make it first: a backup makes a file and no directory");
        }
        let began = Instant::now();
        // What is not whole must not look like a backup.
        let partial = beside(&self.out, ".partial");
        let made = copy(&config.database, &partial).and_then(|()| check(&partial));
        let tables = match made {
            Ok(tables) => tables,
            Err(error) => {
                remove(&partial)?;
                return Err(error);
            }
        };
        File::open(&partial)?.sync_all()?;
        fs::rename(&partial, &self.out)
            .with_context(|| format!("cannot create {}", self.out.display()))?;
        let bytes = fs::metadata(&self.out)?.len();
        let seconds = began.elapsed().as_secs_f64();
        if self.json {
            return say(json!({
                "file": self.out, "bytes": bytes, "tables": tables, "seconds": seconds,
            }));
        }
        say(format_args!(
            "{}: {bytes} bytes, {tables} tables, checked, in {seconds:.1} s",
            self.out.display()
        ))
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn remove(partial: &Path) -> anyhow::Result<()> {
    match fs::remove_file(partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", partial.display()))
        }
        _ => Ok(()),
    }
}

/// Copies the database of one moment.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let source = Connection::open_with_flags(from, flags)
        .with_context(|| format!("cannot open {}", from.display()))
        .or_hint("a node makes its database when it is first served")?;
    source.busy_timeout(Duration::from_secs(5))?;
    // Without it the copy would begin anew with each commit of the node.
    let moment = source.unchecked_transaction()?;
    source.query_row("SELECT count(*) FROM sqlite_schema", (), |_| Ok(()))?;
    let mut target =
        Connection::open(to).with_context(|| format!("cannot create {}", to.display()))?;
    Copying::new(&source, &mut target)?.run_to_completion(STEP_PAGES, Duration::ZERO, None)?;
    // A copy that is read from a medium that cannot be written needs no WAL beside it.
    target.pragma_update(None, "journal_mode", "DELETE")?;
    moment.finish()?;
    Ok(())
}

/// Reads the copy as a whole; gives how many of the user's tables there are.
fn check(path: &Path) -> anyhow::Result<i64> {
    let copy = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let found: String = copy.query_row("PRAGMA integrity_check(1)", (), |row| row.get(0))?;
    if found != "ok" {
        bail!("the copy is damaged, and the database may be: {found}");
    }
    let mut violations = copy.prepare("PRAGMA foreign_key_check")?;
    if let Some(row) = violations.query(())?.next()? {
        let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
        bail!("in the copy, and in the database, a row of {table} refers to no row of {parent}");
    }
    let tables = copy.query_row(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table'
           AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE 'littoral\\_%' ESCAPE '\\'",
        (),
        |row| row.get(0),
    )?;
    Ok(tables)
}
