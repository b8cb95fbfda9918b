//! [`Watched`]: files that are read again when they change.

use std::{fs, path::PathBuf, time::Duration};

/// How often files are looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Files that belong together, by what was in them.
#[derive(Debug)]
pub(crate) struct Watched {
    files: Vec<PathBuf>,
    /// What was taken last.
    taken: blake3::Hash,
    /// What was there at the last look.
    seen: blake3::Hash,
}

impl Watched {
    /// Looks for the first time: what is there now counts as taken.
    pub(crate) fn new(files: Vec<PathBuf>) -> Self {
        let seen = hash(&files);
        Self { files, taken: seen, seen }
    }

    /// Looks again. True if there is something else than was taken, and the same as at the last look: so
    /// files that are being replaced one after the other are taken together. From then on it counts as
    /// taken, whatever the caller makes of it. Blocks on the disk.
    pub(crate) fn look(&mut self) -> bool {
        let now = hash(&self.files);
        let steady = now == self.seen;
        self.seen = now;
        let changed = steady && now != self.taken;
        if changed {
            self.taken = now;
        }
        changed
    }
}

/// A file that cannot be read counts as one that is empty.
fn hash(files: &[PathBuf]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let bytes = fs::read(file).unwrap_or_default();
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_and_only_when_it_is_complete() {
        let home = tempfile::tempdir().unwrap();
        let (a, b) = (home.path().join("a"), home.path().join("b"));
        fs::write(&a, "1").unwrap();
        let mut watched = Watched::new(vec![a.clone(), b.clone()]);
        assert!(!watched.look());
        fs::write(&a, "2").unwrap();
        assert!(!watched.look(), "it may be half of a change");
        fs::write(&b, "2").unwrap();
        assert!(!watched.look());
        assert!(watched.look());
        assert!(!watched.look());
        // What was there before is a change, too.
        fs::remove_file(&b).unwrap();
        assert!(!watched.look());
        assert!(watched.look());
    }
}
