//! Takes the canonical encoding of a key apart, after `docs/format.md`, so that a story can show it.

use crate::oracle::shadow::Held;

/// The parts of a key; `None` if this is not its encoding.
pub(super) fn decode(mut key: &[u8]) -> Option<Vec<Held>> {
    let mut parts = Vec::new();
    while let Some((&class, rest)) = key.split_first() {
        let (part, rest) = match class {
            0x0c..=0x1c => integer(class, rest)?,
            0x21 => {
                let (bytes, rest) = rest.split_first_chunk()?;
                let flipped = u64::from_be_bytes(*bytes);
                let bits = if flipped >> 63 == 1 { flipped ^ 1 << 63 } else { !flipped };
                (Held::Real(bits), rest)
            }
            0x30 | 0x31 => {
                let (bytes, rest) = escaped(rest)?;
                (if class == 0x30 { Held::Text(bytes) } else { Held::Blob(bytes) }, rest)
            }
            _ => return None,
        };
        parts.push(part);
        key = rest;
    }
    Some(parts)
}

fn integer(class: u8, rest: &[u8]) -> Option<(Held, &[u8])> {
    let (digits, rest) = rest.split_at_checked(usize::from(class.abs_diff(0x14)))?;
    let negative = class < 0x14;
    let magnitude = digits
        .iter()
        .fold(0u64, |sum, digit| sum << 8 | u64::from(if negative { !digit } else { *digit }));
    let n = if negative { 0i64.wrapping_sub_unsigned(magnitude) } else { magnitude.cast_signed() };
    Some((Held::Integer(n), rest))
}

fn escaped(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut text = Vec::new();
    let mut at = 0;
    loop {
        let byte = *bytes.get(at)?;
        at += 1;
        if byte == 0 {
            if bytes.get(at) != Some(&0xff) {
                return Some((text, &bytes[at..]));
            }
            at += 1;
        }
        text.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::keys::encode_key;

    #[test]
    fn what_is_encoded_comes_back() {
        let parts = [0, 1, -1, 255, 256, -256, i64::MAX, i64::MIN].map(Held::Integer);
        let more = [0.5, -1.5e300, f64::INFINITY].map(|real| Held::Real(real.to_bits()));
        let texts = [&b""[..], b"a\0b\0", b"\xff"].map(|text| Held::Text(text.to_vec()));
        let blob = [Held::Blob(b"\0\xff\0".to_vec())];
        let all: Vec<Held> = parts.into_iter().chain(more).chain(texts).chain(blob).collect();
        assert_eq!(decode(&encode_key(&all.iter().collect::<Vec<_>>(), false).unwrap()), Some(all));
    }

    #[test]
    fn anything_else_is_no_key() {
        for bytes in [&b"\x15"[..], b"\x21\0", b"\x30ab", b"\x99"] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }
}
