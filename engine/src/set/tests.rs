//! Elements as bytes and back, and sets in their one spelling.

use proptest::prelude::*;

use super::*;

fn spelled_text(text: &str) -> Result<String, String> {
    spelled(ValueRef::Text(text.as_bytes())).map_err(|error| error.to_string())
}

fn check(text: &str, expected: &str) {
    assert_eq!(spelled_text(text).as_deref(), Ok(expected), "{text}");
    assert_eq!(spelled_text(expected).as_deref(), Ok(expected), "{text}");
}

fn check_refused(text: &str, what: &str) {
    let error = spelled_text(text).unwrap_err();
    assert!(error.contains(what), "{text}: {error}");
}

/// Any element, in the form that reading gives.
pub(crate) fn element() -> impl Strategy<Value = Element<'static>> {
    let real = |r: f64| {
        let finite = if r.is_finite() { r } else { 0.5 };
        integral(finite).map_or(Element::Real(finite), Element::Integer)
    };
    prop_oneof![
        any::<bool>().prop_map(Element::Bool),
        any::<i64>().prop_map(Element::Integer),
        (-3i64..3).prop_map(Element::Integer),
        any::<f64>().prop_map(real),
        (-400i64..400).prop_map(move |n| real(n as f64 / 64.0)),
        ".{0,6}".prop_map(|text| Element::Text(Cow::Owned(text))),
        "[\u{0}-\u{7f}]{0,4}".prop_map(|text| Element::Text(Cow::Owned(text))),
    ]
}

#[test]
fn elements_ascend_each_once_and_have_one_spelling() {
    check("[]", "[]");
    check(" [ \n] ", "[]");
    check(r#"["b", "a" ,"b"]"#, r#"["a","b"]"#);
    check(r#"["1", 2, true, "", 1.5, false, -1]"#, r#"[false,true,-1,1.5,2,"","1"]"#);
    check(r#"["é","z","Z"]"#, r#"["Z","z","é"]"#);
    check("[1, 1.0, 1e0, 10e-1, 0.1e1]", "[1]");
    check("[0, -0, -0.0, 0e9]", "[0]");
}

#[test]
fn numbers_are_spelled_as_rfc_8785_has_them_and_integers_exactly() {
    check("[9007199254740993, 9007199254740992]", "[9007199254740992,9007199254740993]");
    check(
        "[9223372036854775807, -9223372036854775808]",
        "[-9223372036854775808,9223372036854775807]",
    );
    check("[9223372036854775808]", "[9223372036854776000]");
    check("[1e20, 1e21, 1.5e300]", "[100000000000000000000,1e+21,1.5e+300]");
    check("[0.000001, 0.0000001, -2.5, 123.456e-9]", "[-2.5,1e-7,1.23456e-7,0.000001]");
    check("[0.1, 5e-324, 1.7976931348623157e308]", "[5e-324,0.1,1.7976931348623157e+308]");
    check("[12345678901234567890123]", "[1.2345678901234568e+22]");
}

#[test]
fn strings_are_escaped_only_where_they_must_be() {
    check(r#"["\u0041\/\u00e9\ud83d\ude00"]"#, "[\"A/é😀\"]");
    check(r#"["\u0000\b\t\n\f\r\u001f\"\\"]"#, r#"["\u0000\b\t\n\f\r\u001f\"\\"]"#);
    check("[\"\u{7f}\u{2028}\"]", "[\"\u{7f}\u{2028}\"]");
}

#[test]
fn what_is_no_set_is_refused_and_told_where() {
    check_refused("", "at byte 0 of its text \"[\" was expected");
    check_refused("{}", "at byte 0 of its text \"[\" was expected");
    check_refused("[1", "at byte 2 of its text \",\" or \"]\" was expected");
    check_refused("[1,]", "at byte 3 of its text an element was expected");
    check_refused("[1 2]", "at byte 3 of its text \",\" or \"]\" was expected");
    check_refused("[[]]", "at byte 1 of its text an array or an object begins");
    check_refused("[null]", "at byte 1 of its text null stands, which is no element");
    check_refused("[tru]", "an element was expected");
    check_refused("[01]", "at byte 2 of its text");
    check_refused("[1.]", "a digit was expected");
    check_refused("[-]", "a digit was expected");
    check_refused("[1e999]", "beyond what 64 bits");
    check_refused("[\"a]", "a string does not end");
    check_refused("[\"\\x\"]", "no such escape");
    check_refused("[\"\\u12\"]", "four hexadecimal digits");
    check_refused("[\"\\ud800\"]", "half of a surrogate pair");
    check_refused("[\"\\udc00\\ud800\"]", "half of a surrogate pair");
    check_refused("[\"\t\"]", "a control character");
    check_refused("[] []", "at byte 3 of its text the array has ended");
    assert!(read(ValueRef::Text(b"[\"\xff\"]")).unwrap_err().to_string().contains("UTF-8"));
    let classes = [ValueRef::Integer(1), ValueRef::Real(0.5), ValueRef::Blob(b"[]")];
    for (value, class) in classes.into_iter().zip(["an INTEGER", "a REAL", "a BLOB"]) {
        assert!(read(value).unwrap_err().to_string().ends_with(class));
    }
    assert_eq!(spelled(ValueRef::Null).as_deref(), Ok("[]"));
}

proptest! {
    #[test]
    fn elements_come_back_from_their_bytes_which_are_alike_if_they_are(a in element(), b in element()) {
        let (one, other) = (a.to_bytes(), b.to_bytes());
        let mut reader = ByteReader::new(&one);
        prop_assert_eq!(read_element(&mut reader).unwrap(), a.clone());
        prop_assert!(reader.is_empty());
        prop_assert_eq!(one == other, a == b);
        prop_assert_eq!(spell([&a]) == spell([&b]), a == b);
    }

    #[test]
    fn a_spelling_is_read_as_what_it_spells(mut elements in prop::collection::vec(element(), 0..8)) {
        elements.sort();
        elements.dedup();
        let text = spell(&elements);
        prop_assert_eq!(read(ValueRef::Text(text.as_bytes())).unwrap(), elements);
    }

    #[test]
    fn noise_is_refused_or_a_set(text in "[\\[\\]\",0-9.eE+truefalsn\\\\ -]{0,24}") {
        if let Ok(spelling) = spelled_text(&text) {
            prop_assert_eq!(spelled_text(&spelling), Ok(spelling));
        }
    }

    #[test]
    fn bytes_of_any_kind_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
        let mut reader = ByteReader::new(&bytes);
        if let Ok(element) = read_element(&mut reader) {
            let mut again = Vec::new();
            put_element(&mut again, &element);
            prop_assert_eq!(&bytes[..bytes.len() - reader.remaining()], &again[..]);
        }
    }
}
