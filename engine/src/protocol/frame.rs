//! Frames: length and kind around a message or a batch of entries.
//!
//! A frame is a header of five bytes, the little-endian length of what follows it and a kind, then the
//! payload. Every bound is checked before anything is allocated. `docs/protocol.md` specifies it.

use std::fmt;

use crate::{
    driver::Channel,
    entry::{
        Digest, Entry, LargeName,
        codec::{decode_entry, put_dot, read_dot},
    },
    error::ProtocolError,
    limits::{
        COMPRESS_FROM_BYTES, LARGE_ENTRY_BYTES, MAX_CONTROL_FRAME_BYTES, MAX_ENTRY_RANGE,
        MAX_FRAME_BYTES, MAX_FRAME_OVERHEAD_BYTES, SNAPSHOT_CHUNK_BYTES,
    },
    value::{ByteReader, DecodeError, put_prefixed, put_varint},
    version::Dot,
};

/// Bytes of every frame's header.
pub const FRAME_HEADER_BYTES: usize = 5;

/// A frame longer than its channel allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {bytes} bytes is more than the {max} allowed on this channel")]
pub struct FrameTooLong {
    bytes: usize,
    max: usize,
}

/// From the header of a frame the number of bytes that follow it.
///
/// # Errors
/// If they are more than the channel allows; close the link with
/// [`CloseCode::Malformed`](crate::CloseCode::Malformed).
pub fn frame_length(
    channel: Channel,
    header: [u8; FRAME_HEADER_BYTES],
) -> Result<usize, FrameTooLong> {
    let [a, b, c, d, _] = header;
    let bytes = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let max = match channel {
        Channel::Control => MAX_CONTROL_FRAME_BYTES,
        Channel::Entries => MAX_FRAME_BYTES,
        Channel::Snapshot => SNAPSHOT_CHUNK_BYTES + MAX_FRAME_OVERHEAD_BYTES,
    } - FRAME_HEADER_BYTES;
    if bytes > max { Err(FrameTooLong { bytes, max }) } else { Ok(bytes) }
}

/// A piece of a snapshot, kept as the frame that carries it: it is read from one disk and written to the
/// other without being copied in between.
#[derive(Clone, PartialEq, Eq)]
pub struct Piece(Vec<u8>);

impl Piece {
    const OFFSET_AT: usize = FRAME_HEADER_BYTES;
    const DIGEST_AT: usize = Self::OFFSET_AT + size_of::<u64>();
    const HEAD_BYTES: usize = Self::DIGEST_AT + size_of::<Digest>();

    /// Room for a piece of that many bytes.
    pub(crate) fn empty(offset: u64, bytes: usize) -> Self {
        let mut frame = vec![0; Self::HEAD_BYTES + bytes];
        let length = frame.len() - FRAME_HEADER_BYTES;
        frame[..FRAME_HEADER_BYTES].copy_from_slice(&header(KIND_PIECE, length));
        frame[Self::OFFSET_AT..Self::DIGEST_AT].copy_from_slice(&offset.to_le_bytes());
        Self(frame)
    }

    /// A frame that [`decode_frame`] has found to be one.
    pub(crate) const fn of_frame(frame: Vec<u8>) -> Self {
        Self(frame)
    }

    pub(crate) fn into_frame(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn set_digest(&mut self, digest: Digest) {
        self.0[Self::DIGEST_AT..Self::HEAD_BYTES].copy_from_slice(&digest.0);
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0[Self::HEAD_BYTES..]
    }

    /// Where in the snapshot it begins.
    pub fn offset(&self) -> u64 {
        let mut offset = [0; size_of::<u64>()];
        offset.copy_from_slice(&self.0[Self::OFFSET_AT..Self::DIGEST_AT]);
        u64::from_le_bytes(offset)
    }

    /// The digest of the snapshot from its beginning to the end of this piece.
    pub fn digest(&self) -> Digest {
        let mut digest = [0; size_of::<Digest>()];
        digest.copy_from_slice(&self.0[Self::DIGEST_AT..Self::HEAD_BYTES]);
        Digest(digest)
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        &self.0[Self::HEAD_BYTES..]
    }

    /// Where in the snapshot it ends.
    pub fn end(&self) -> u64 {
        self.offset().saturating_add(self.bytes().len() as u64)
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece({}..{}, {:?})", self.offset(), self.end(), self.digest())
    }
}

const KIND_CONTROL: u8 = 1;
const KIND_ENTRIES: u8 = 2;
const KIND_ENTRIES_ZSTD: u8 = 3;
const KIND_LARGE: u8 = 4;
const KIND_CHUNK: u8 = 5;
const KIND_CHUNK_ZSTD: u8 = 6;
const KIND_PIECE: u8 = 7;

/// A frame carries at most so many bytes of a large entry.
pub(crate) const CHUNK_BYTES_MAX: usize = LARGE_ENTRY_BYTES;

/// zstd's default level costs more than the link it saves; this one is nearly free.
const ZSTD_LEVEL: i32 = 1;

/// The payload of a frame, by its kind.
#[derive(Debug)]
pub(crate) enum Payload<'f> {
    Control(&'f [u8]),
    Entries(Vec<Entry>),
    /// A large entry is next.
    Large(LargeName),
    /// Bytes of a large entry, from an offset on.
    Chunk(Dot, u64, Vec<u8>),
    /// A piece of a snapshot: the frame is one.
    Piece,
}

/// Puts the header before a control message.
pub(crate) fn control_frame(message: &[u8]) -> Vec<u8> {
    framed(KIND_CONTROL, message)
}

/// Offers a large entry.
pub(crate) fn large_frame(name: &LargeName) -> Vec<u8> {
    let mut payload = Vec::with_capacity(64);
    put_dot(&mut payload, name.dot);
    payload.extend_from_slice(&name.digest.0);
    put_varint(&mut payload, name.length);
    framed(KIND_LARGE, &payload)
}

/// Carries bytes of a large entry; compressed if that makes them fewer.
pub(crate) fn chunk_frame(dot: Dot, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(bytes.len() + 64);
    put_dot(&mut payload, dot);
    put_varint(&mut payload, offset);
    let place = payload.len();
    if put_packed(&mut payload, bytes) {
        return framed(KIND_CHUNK_ZSTD, &payload);
    }
    payload.truncate(place);
    payload.extend_from_slice(bytes);
    framed(KIND_CHUNK, &payload)
}

/// Appends the length of `bytes` and their compression, if that makes them fewer; else what is
/// appended is to be removed.
fn put_packed(out: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let before = out.len();
    if bytes.len() >= COMPRESS_FROM_BYTES
        && let Ok(compressed) = zstd::bulk::compress(bytes, ZSTD_LEVEL)
    {
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(&compressed);
    }
    out.len() > before && out.len() - before < bytes.len()
}

/// Collects the bytes of entries for one frame.
#[derive(Debug, Default)]
pub(crate) struct EntriesFrame {
    payload: Vec<u8>,
}

impl EntriesFrame {
    pub(crate) fn is_empty(&self) -> bool {
        self.payload.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.payload.len()
    }

    pub(crate) fn push(&mut self, entry: &Entry) {
        put_prefixed(&mut self.payload, &entry.bytes);
    }

    /// The frame; compressed if that makes it smaller. Starts again empty.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let payload = std::mem::take(&mut self.payload);
        let mut packed = Vec::new();
        if put_packed(&mut packed, &payload) {
            return framed(KIND_ENTRIES_ZSTD, &packed);
        }
        framed(KIND_ENTRIES, &payload)
    }
}

fn framed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    frame.extend_from_slice(&header(kind, payload.len()));
    frame.extend_from_slice(payload);
    frame
}

fn header(kind: u8, length: usize) -> [u8; FRAME_HEADER_BYTES] {
    let length = u32::try_from(length).expect("MAX_FRAME_BYTES fits a u32");
    let [a, b, c, d] = length.to_le_bytes();
    [a, b, c, d, kind]
}

/// Takes a whole frame apart.
pub(crate) fn decode_frame(channel: Channel, frame: &[u8]) -> Result<Payload<'_>, ProtocolError> {
    let (header, payload) = frame
        .split_first_chunk::<FRAME_HEADER_BYTES>()
        .ok_or_else(|| malformed("frame without a header"))?;
    let len = frame_length(channel, *header)
        .map_err(|error| ProtocolError::Malformed(error.to_string()))?;
    if len != payload.len() {
        return Err(malformed("frame whose length is not what its header says"));
    }
    match (channel, header[FRAME_HEADER_BYTES - 1]) {
        (Channel::Control, KIND_CONTROL) => Ok(Payload::Control(payload)),
        (Channel::Entries, KIND_ENTRIES) => entries(payload).map(Payload::Entries),
        (Channel::Entries, KIND_ENTRIES_ZSTD) => entries(&unpacked(payload)?).map(Payload::Entries),
        (Channel::Snapshot, KIND_PIECE) if frame.len() > Piece::HEAD_BYTES => Ok(Payload::Piece),
        (Channel::Entries, KIND_LARGE) => large(payload),
        (Channel::Entries, kind @ (KIND_CHUNK | KIND_CHUNK_ZSTD)) => chunk(kind, payload),
        (_, kind) => Err(ProtocolError::Malformed(format!("frame of kind {kind} on {channel:?}"))),
    }
}

fn unpacked(payload: &[u8]) -> Result<Vec<u8>, ProtocolError> {
    let mut reader = ByteReader::new(payload);
    let len = reader.varint().map_err(|error| malformed(&error.to_string()))?;
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > MAX_FRAME_BYTES {
        return Err(malformed("compressed frame that is too long unpacked"));
    }
    let compressed = &payload[payload.len() - reader.remaining()..];
    let unpacked = zstd::bulk::decompress(compressed, len)
        .map_err(|_| malformed("compressed frame that does not unpack"))?;
    if unpacked.len() == len {
        Ok(unpacked)
    } else {
        Err(malformed("compressed frame of another length"))
    }
}

fn large(payload: &[u8]) -> Result<Payload<'static>, ProtocolError> {
    let mut reader = ByteReader::new(payload);
    let mut read = || {
        let dot = read_dot(&mut reader)?;
        let digest = Digest(reader.array()?);
        let length = reader.varint()?;
        Ok::<_, DecodeError>(LargeName { dot, digest, length })
    };
    let name = read().map_err(|error| malformed(&error.to_string()))?;
    if !reader.is_empty() || name.length > *MAX_ENTRY_RANGE.end() {
        return Err(malformed("offer of a large entry"));
    }
    Ok(Payload::Large(name))
}

fn chunk(kind: u8, payload: &[u8]) -> Result<Payload<'static>, ProtocolError> {
    let mut reader = ByteReader::new(payload);
    let mut read = || Ok::<_, DecodeError>((read_dot(&mut reader)?, reader.varint()?));
    let (dot, offset) = read().map_err(|error| malformed(&error.to_string()))?;
    let rest = &payload[payload.len() - reader.remaining()..];
    let bytes = if kind == KIND_CHUNK { rest.to_vec() } else { unpacked(rest)? };
    if bytes.len() > CHUNK_BYTES_MAX || offset > *MAX_ENTRY_RANGE.end() {
        return Err(malformed("chunk that is too long"));
    }
    Ok(Payload::Chunk(dot, offset, bytes))
}

fn entries(payload: &[u8]) -> Result<Vec<Entry>, ProtocolError> {
    let mut reader = ByteReader::new(payload);
    let mut entries = Vec::new();
    while !reader.is_empty() {
        let bytes = reader.prefixed().map_err(|error| malformed(&error.to_string()))?;
        let entry = decode_entry(bytes.to_vec()).map_err(|error| match error {
            // Written by a newer version: no peer can help.
            DecodeError::Unknown(_) => ProtocolError::Undecodable(error.to_string()),
            _ => malformed(&format!("entry: {error}")),
        })?;
        entries.push(entry);
    }
    Ok(entries)
}

fn malformed(what: &str) -> ProtocolError {
    ProtocolError::Malformed(what.to_owned())
}
