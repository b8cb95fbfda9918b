//! Whose file it is, and the evidence that it was lost, copied or restored.
//!
//! The file has an id, and counts how often it was opened; a note beside it, `<database>-id`, counts too.
//! An older copy of the file, or the file without its note, shows by that, before anything of it is
//! told to anybody. A copy of both is recognised by peers only.
//!
//! The note has two slots, each written whole. Opening writes the next count into one slot, then into
//! the file, then into the other slot: whenever the process ends, one slot holds the file's count, and
//! no older count stays.

use crate::{db::File, entry::Digest, error::OpenError, sqlite::file::VfsFile};

/// What the note's name ends with.
pub(crate) const NOTE: &str = "-id";

/// The slots are so far apart that no torn write hits both.
const SLOT_BYTES: u64 = 4096;

/// Id, count, and the start of the digest of both.
const MARK_BYTES: usize = 16 + 8 + 8;

/// Which file it is, and how often it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark {
    pub(crate) file: [u8; 16],
    pub(crate) opened: u64,
}

impl Mark {
    /// The same file, opened once more.
    pub(crate) const fn next(self) -> Self {
        Self { file: self.file, opened: self.opened + 1 }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.file.to_vec();
        out.extend_from_slice(&self.opened.to_be_bytes());
        let digest = Digest::of(&out).prefix();
        out.extend_from_slice(&digest);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (file, rest) = bytes.split_first_chunk()?;
        let (opened, digest) = rest.split_first_chunk()?;
        let told = &bytes[..bytes.len() - digest.len()];
        let opened = u64::from_be_bytes(*opened);
        (Digest::of(told).prefix() == digest).then_some(Self { file: *file, opened })
    }
}

/// What the note of a file says, if there is one; it is not changed.
pub(crate) fn noted(file: &File) -> Result<[Option<Mark>; 2], OpenError> {
    match file.open_beside(NOTE, false)? {
        Some(mut note) => read(&mut note),
        None => Ok([None; 2]),
    }
}

fn read(note: &mut VfsFile) -> Result<[Option<Mark>; 2], OpenError> {
    let mut slots = [None; 2];
    let size = note.size()?;
    for (slot, at) in slots.iter_mut().zip([0, SLOT_BYTES]) {
        if size >= at + MARK_BYTES as u64 {
            let mut bytes = [0; MARK_BYTES];
            note.read(at, &mut bytes)?;
            *slot = Mark::decode(&bytes);
        }
    }
    Ok(slots)
}

/// Judges a file by its note, as [`Note::check`] says.
pub(crate) fn judge(
    slots: [Option<Mark>; 2],
    stored: Option<Mark>,
    empty: bool,
) -> Result<(), OpenError> {
    let [one, two] = slots;
    match stored {
        Some(mark) if one == Some(mark) || two == Some(mark) => Ok(()),
        Some(mark) => {
            let noted = [one, two].into_iter().flatten().filter(|noted| noted.file == mark.file);
            let noted = noted.map(|noted| noted.opened).max().unwrap_or(0);
            Err(OpenError::CopiedFile { opened: mark.opened, noted })
        }
        // Both slots are written only after the file was committed.
        None if empty && one.is_some() && one == two => Err(OpenError::LostFile),
        None => Ok(()),
    }
}

/// The note beside the file.
#[derive(Debug)]
pub(crate) struct Note {
    note: VfsFile,
    slots: [Option<Mark>; 2],
}

impl Note {
    /// Reads the note, and judges the file by it: `None` is a file without a mark, new or just received
    /// as a snapshot, and `empty` says that it holds nothing at all.
    pub(crate) fn check(file: &File, stored: Option<Mark>, empty: bool) -> Result<Self, OpenError> {
        let opened = file.open_beside(NOTE, true)?;
        let mut note = opened.ok_or(OpenError::CopiedFile { opened: 0, noted: 0 })?;
        let slots = read(&mut note)?;
        judge(slots, stored, empty)?;
        Ok(Self { note, slots })
    }

    /// The file is about to get this mark.
    pub(crate) fn announce(&mut self, mark: Mark, stored: Option<Mark>) -> Result<(), OpenError> {
        let place = usize::from(stored.is_some() && self.slots[0] == stored);
        self.write(place, mark)?;
        Ok(self.note.sync()?)
    }

    /// The file has the mark, on stable storage.
    pub(crate) fn confirm(&mut self, mark: Mark) -> Result<(), OpenError> {
        for place in [0, 1] {
            if self.slots[place] != Some(mark) {
                self.write(place, mark)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, place: usize, mark: Mark) -> Result<(), OpenError> {
        self.slots[place] = Some(mark);
        Ok(self.note.write(place as u64 * SLOT_BYTES, &mark.encode())?)
    }
}
