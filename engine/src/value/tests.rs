//! Cells, varints and keys decode to what they were made of.

use proptest::prelude::*;

use super::*;

/// A value that owns its bytes.
#[derive(Clone, Debug)]
pub(crate) enum Owned {
    Null,
    Integer(i64),
    Real(f64),
    Text(Vec<u8>),
    Blob(Vec<u8>),
}

impl Owned {
    pub(crate) fn as_value(&self) -> ValueRef<'_> {
        match self {
            Self::Null => ValueRef::Null,
            Self::Integer(n) => ValueRef::Integer(*n),
            Self::Real(r) => ValueRef::Real(*r),
            Self::Text(b) => ValueRef::Text(b),
            Self::Blob(b) => ValueRef::Blob(b),
        }
    }
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![any::<i64>(), -300i64..300, Just(i64::MIN), Just(i64::MAX)]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(0xff)], 0..12)
}

fn real() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>().prop_filter("SQLite stores NaN as NULL", |r| !r.is_nan()),
        number().prop_map(|n| n as f64),
        Just(-0.0)
    ]
}

fn key_value() -> impl Strategy<Value = Owned> {
    prop_oneof![
        number().prop_map(Owned::Integer),
        real().prop_map(Owned::Real),
        bytes().prop_map(Owned::Text),
        bytes().prop_map(Owned::Blob),
    ]
}

fn key(value: &Owned) -> Vec<u8> {
    let mut out = Vec::new();
    put_key_part(&mut out, value.as_value(), Collation::Binary).unwrap();
    out
}

proptest! {
    #[test]
    fn a_varint_decodes_to_itself(n: u64, m in number()) {
        let mut out = Vec::new();
        put_varint(&mut out, n);
        put_zigzag(&mut out, m);
        let mut reader = ByteReader::new(&out);
        prop_assert_eq!(reader.varint().unwrap(), n);
        prop_assert_eq!(reader.zigzag().unwrap(), m);
        prop_assert!(reader.is_empty());
    }

    #[test]
    fn a_cell_decodes_to_itself(value in prop_oneof![key_value(), Just(Owned::Null)]) {
        let mut out = Vec::new();
        put_cell(&mut out, value.as_value());
        let decoded = ByteReader::new(&out).cell().unwrap();
        match (value.as_value(), decoded) {
            (ValueRef::Real(a), ValueRef::Real(b)) => prop_assert_eq!(a.to_bits(), b.to_bits()),
            (a, b) => prop_assert_eq!(a, b),
        }
    }

    #[test]
    fn decoding_noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..40)) {
        let mut reader = ByteReader::new(&noise);
        while reader.cell().is_ok() {}
        let mut reader = ByteReader::new(&noise);
        while reader.key_part().is_ok() {}
    }

    #[test]
    fn a_key_decodes_to_an_equal_value(value in key_value()) {
        let bytes = key(&value);
        let mut reader = ByteReader::new(&bytes);
        let part = reader.key_part().unwrap();
        prop_assert!(reader.is_empty());
        match (value.as_value(), part.as_value()) {
            (ValueRef::Real(r), ValueRef::Integer(n)) => prop_assert_eq!(integral(r), Some(n)),
            (a, b) => prop_assert_eq!(a, b),
        }
    }

    #[test]
    fn the_total_order_is_one(a in key_value(), b in key_value(), c in key_value()) {
        let (a, b, c) = (a.as_value(), b.as_value(), c.as_value());
        prop_assert_eq!(a.total_cmp(b), b.total_cmp(a).reverse());
        prop_assert_eq!(a.total_cmp(a), Ordering::Equal);
        if a.total_cmp(b).is_le() && b.total_cmp(c).is_le() {
            prop_assert!(a.total_cmp(c).is_le());
        }
    }

    #[test]
    fn integer_keys_sort_as_bytes(a in number(), b in number()) {
        prop_assert_eq!(key(&Owned::Integer(a)).cmp(&key(&Owned::Integer(b))), a.cmp(&b));
    }

    #[test]
    fn composite_keys_are_equal_only_part_by_part(a in bytes(), b in bytes(), c in bytes(), d in bytes()) {
        let pair = |x: &Vec<u8>, y: &Vec<u8>| {
            [key(&Owned::Text(x.clone())), key(&Owned::Blob(y.clone()))].concat()
        };
        prop_assert_eq!(pair(&a, &b) == pair(&c, &d), a == c && b == d);
    }
}

#[test]
fn numbers_compare_exactly_and_integers_come_first() {
    use ValueRef::{Integer, Real};
    let big = (1i64 << 53) + 1;
    let ascending = [
        Real(f64::NEG_INFINITY),
        Real(-1e19),
        Integer(i64::MIN),
        Real(i64::MIN as f64),
        Real(-1.5),
        Integer(-1),
        Real(-1.0),
        Real(-0.5),
        Integer(0),
        Real(-0.0),
        Real(0.0),
        Real(0.5),
        Integer(1),
        Real((big - 1) as f64),
        Integer(big),
        Real((big + 1) as f64),
        Integer(i64::MAX),
        Real(i64::MAX as f64),
        Real(f64::INFINITY),
    ];
    for (place, a) in ascending.iter().enumerate() {
        for (other, b) in ascending.iter().enumerate() {
            assert_eq!(a.total_cmp(*b), place.cmp(&other), "{a:?} {b:?}");
        }
    }
}

#[test]
fn numbers_of_equal_value_share_a_key_beyond_what_a_double_can_hold() {
    assert_eq!(key(&Owned::Integer(1)), key(&Owned::Real(1.0)));
    assert_eq!(key(&Owned::Integer(0)), key(&Owned::Real(-0.0)));
    let big = (1i64 << 53) + 1;
    assert_ne!(key(&Owned::Integer(big)), key(&Owned::Real(big as f64)));
    assert_eq!(key(&Owned::Integer(i64::MIN)), key(&Owned::Real(i64::MIN as f64)));
    assert_ne!(key(&Owned::Integer(i64::MAX)), key(&Owned::Real(i64::MAX as f64)));
}
