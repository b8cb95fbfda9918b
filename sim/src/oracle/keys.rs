//! Keys and their spellings once more, after docs/format.md.

use super::shadow::Held;

/// The canonical encoding of a key, after docs/format.md; `nocase` says how its text is compared.
pub(crate) fn encode_key(parts: &[&Held], nocase: bool) -> Result<Vec<u8>, String> {
    let mut key = Vec::new();
    for part in parts {
        match part {
            Held::Null => return Err("NULL in a key".to_owned()),
            Held::Integer(n) => encode_integer(&mut key, *n),
            Held::Real(bits) => match whole(f64::from_bits(*bits)) {
                Some(n) => encode_integer(&mut key, n),
                None => {
                    key.push(0x21);
                    let flipped = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
                    key.extend(flipped.to_be_bytes());
                }
            },
            Held::Text(bytes) if nocase => encode_bytes(&mut key, 0x30, &folded(bytes)),
            Held::Text(bytes) => encode_bytes(&mut key, 0x30, bytes),
            Held::Blob(bytes) => encode_bytes(&mut key, 0x31, bytes),
        }
    }
    Ok(key)
}

/// The integer that has exactly this value.
#[expect(clippy::cast_possible_truncation, reason = "a cast that does not come back is no match")]
fn whole(r: f64) -> Option<i64> {
    let n = r as i64;
    (n as f64 == r && (n != i64::MAX)).then_some(n)
}

fn encode_integer(key: &mut Vec<u8>, n: i64) {
    let magnitude = n.unsigned_abs().to_be_bytes();
    let digits: Vec<u8> = magnitude.into_iter().skip_while(|byte| *byte == 0).collect();
    let len = u8::try_from(digits.len()).expect("an integer has eight bytes");
    if n < 0 {
        key.push(0x14 - len);
        key.extend(digits.iter().map(|byte| !byte));
    } else {
        key.push(0x14 + len);
        key.extend(digits);
    }
}

fn encode_bytes(key: &mut Vec<u8>, class: u8, bytes: &[u8]) {
    key.push(class);
    for &byte in bytes {
        key.push(byte);
        if byte == 0 {
            key.push(0xff);
        }
    }
    key.push(0);
}

/// What NOCASE leaves of a text: upper-case ASCII letters are lower-case ones, and nothing behind the
/// first zero byte counts but how much it is.
fn folded(text: &[u8]) -> Vec<u8> {
    let mut zero = false;
    let fold = |&byte: &u8| {
        zero |= byte == 0;
        if zero { 0 } else { byte.to_ascii_lowercase() }
    };
    text.iter().map(fold).collect()
}

/// The cell `key spelling` of a key; `real` names the parts whose columns are REAL.
pub(crate) fn spelling(parts: &[&Held], nocase: bool, real: &[bool]) -> Held {
    let plain = parts.iter().zip(real).all(|(part, real)| match part {
        Held::Real(bits) => match whole(f64::from_bits(*bits)) {
            Some(n) => *real && (n as f64).to_bits() == *bits,
            None => true,
        },
        Held::Text(text) => !nocase || folded(text) == *text,
        Held::Null | Held::Integer(_) | Held::Blob(_) => true,
    });
    if plain {
        return Held::Null;
    }
    let mut cells = Vec::new();
    for part in parts {
        match part {
            Held::Null => cells.push(0),
            Held::Integer(n) => {
                cells.push(1);
                varint(&mut cells, ((n << 1) ^ (n >> 63)).cast_unsigned());
            }
            Held::Real(bits) => {
                cells.push(2);
                cells.extend(bits.to_be_bytes());
            }
            Held::Text(bytes) => {
                varint(&mut cells, 4 + 2 * bytes.len() as u64);
                cells.extend(bytes);
            }
            Held::Blob(bytes) => {
                varint(&mut cells, 5 + 2 * bytes.len() as u64);
                cells.extend(bytes);
            }
        }
    }
    Held::Blob(cells)
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(u8::try_from(n & 0x7f).unwrap_or(0) | 0x80);
        n >>= 7;
    }
    out.push(u8::try_from(n).unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_encode_as_the_format_says() {
        let encode = |parts: &[Held]| encode_key(&parts.iter().collect::<Vec<_>>(), false).unwrap();
        assert_eq!(encode(&[Held::Integer(0)]), [0x14]);
        assert_eq!(encode(&[Held::Integer(258)]), [0x16, 1, 2]);
        assert_eq!(encode(&[Held::Integer(-1)]), [0x13, 0xfe]);
        assert_eq!(encode(&[Held::Real(2f64.to_bits())]), encode(&[Held::Integer(2)]));
        assert_eq!(encode(&[Held::Real((-0f64).to_bits())]), [0x14]);
        assert_eq!(encode(&[Held::Real(1e19f64.to_bits())]).len(), 9);
        assert_eq!(encode(&[Held::Blob(vec![1])]), [0x31, 1, 0]);
        let parts = [Held::Text(b"a\0".to_vec()), Held::Integer(7)];
        assert_eq!(encode(&parts), [0x30, b'a', 0, 0xff, 0, 0x15, 7]);
    }

    #[test]
    fn text_is_folded_up_to_its_first_zero() {
        let text = |bytes: &[u8]| Held::Text(bytes.to_vec());
        let key = |held: &Held| encode_key(&[held], true).unwrap();
        assert_eq!(key(&text(b"Bob")), key(&text(b"bOB")));
        assert_eq!(key(&text(b"a\0x")), key(&text(b"A\0Y")));
        assert_ne!(key(&text(b"a\0x")), key(&text(b"a\0xx")));
        assert_eq!(spelling(&[&text(b"bob")], true, &[false]), Held::Null);
        assert_eq!(spelling(&[&text(b"Bob")], true, &[false]), Held::Blob(b"\x0aBob".to_vec()));
    }
}
