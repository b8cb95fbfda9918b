//! Keys: what SQLite calls equal has equal bytes, and what is stored can be told from them.

use proptest::prelude::*;

use super::*;
use crate::{
    sqlite::{Param, column},
    value::{ByteReader, put_key_part, tests::Owned},
};

fn text() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => prop_oneof![Just(b'a'), Just(b'A'), Just(b'b'), Just(b' ')],
        1 => prop_oneof![Just(0), Just(b'['), Just(b'Z'), Just(b'z'), Just(b'\t')],
        // Not UTF-8, and letters beyond ASCII, which no collation folds.
        1 => prop_oneof![Just(0xc3), Just(0x84), Just(0xa4), Just(0xff)],
    ];
    proptest::collection::vec(byte, 0..6)
}

fn number() -> impl Strategy<Value = i64> {
    let far = (1i64 << 53) - 2..(1i64 << 53) + 3;
    prop_oneof![-2i64..3, far, Just(i64::MIN), Just(i64::MAX), Just(i64::MAX - 1)]
}

fn key_value() -> impl Strategy<Value = Owned> {
    prop_oneof![
        number().prop_map(Owned::Integer),
        number().prop_map(|n| Owned::Real(n as f64)),
        prop_oneof![Just(-0.0), Just(0.5), Just(1e300), Just(f64::INFINITY), Just(-9.3e18)]
            .prop_map(Owned::Real),
        text().prop_map(Owned::Text),
        text().prop_map(Owned::Text),
        text().prop_map(Owned::Blob),
    ]
}

fn bits(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Real(r) => format!("real {:x}", r.to_bits()),
        other => format!("{other:?}"),
    }
}

thread_local! {
    static SCRATCH: Connection = {
        let conn = Connection::open_in_memory().unwrap();
        for declared in ["", "REAL", "TEXT", "INT", "NUMERIC"] {
            for collation in ["BINARY", "NOCASE", "RTRIM"] {
                let sql = format!(
                    "CREATE TABLE \"{declared} {collation}\"(k {declared} NOT NULL, n, PRIMARY KEY(k COLLATE {collation}))"
                );
                conn.execute_batch(&sql).unwrap();
            }
        }
        conn
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// What identity by canonical bytes rests on.
    #[test]
    fn keys_have_equal_bytes_exactly_if_sqlite_calls_them_equal(
        a in key_value(),
        b in key_value(),
        declared in prop_oneof![
            Just(""), Just(""), Just("REAL"), Just("TEXT"), Just("INT"), Just("NUMERIC")
        ],
        collation in prop_oneof![Just("BINARY"), Just("NOCASE"), Just("RTRIM")],
    ) {
        SCRATCH.with(|conn| {
            let table = format!("{declared} {collation}");
            conn.execute(&format!("DELETE FROM \"{table}\""), []).unwrap();
            let mut insert = conn.prepare_cached(&format!("INSERT INTO \"{table}\" VALUES(?, ?)")).unwrap();
            insert.execute((Param(a.as_value()), 1)).unwrap();
            let second = insert.execute((Param(b.as_value()), 2));
            let apart = match second {
                Ok(_) => true,
                Err(error) => {
                    assert!(error.to_string().starts_with("UNIQUE"), "{error}");
                    false
                }
            };
            let mut read = conn.prepare_cached(&format!("SELECT k FROM \"{table}\" WHERE n = ?")).unwrap();
            let shape = TableShape::read(conn, &table).unwrap();
            let key = &shape.key_columns()[0];
            let mut stored = |n: i64| {
                let mut rows = read.query([n]).unwrap();
                let value = column(rows.next().unwrap().unwrap(), 0).unwrap();
                let mut bytes = Vec::new();
                put_key_part(&mut bytes, value, key.collation).unwrap();
                let part = ByteReader::new(&bytes).key_part().unwrap();
                // The encoding finds the row.
                let mut find = conn
                    .prepare_cached(&format!("SELECT n FROM \"{table}\" WHERE k = ? COLLATE {collation}"))
                    .unwrap();
                let found = find.query_row([Param(part.as_value())], |row| row.get::<_, i64>(0));
                assert_eq!(found.unwrap_or(0), n, "{value:?} in {table}");
                let back = bits(key.stored(part.as_value())) == bits(value);
                // The encoding leads back to the value, or the table has a cell for its spelling, or
                // the value is refused.
                assert_eq!(back, key.is_canonical(value), "{value:?} in {table}");
                let refused = matches!(value, ValueRef::Real(r) if r == i64::MIN as f64);
                assert!(back || shape.has_spellings() || refused, "{value:?} in {table}");
                bytes
            };
            let first = stored(1);
            if apart {
                assert_ne!(first, stored(2), "{a:?} and {b:?} in {table}");
            } else {
                // It was not stored, so its affinity was not applied.
                conn.execute(&format!("DELETE FROM \"{table}\""), []).unwrap();
                insert.execute((Param(b.as_value()), 1)).unwrap();
                assert_eq!(first, stored(1), "{a:?} and {b:?} in {table}");
            }
        });
    }
}

#[test]
fn the_shape_of_a_table_says_how_its_rows_are_told_apart() {
    let conn = Connection::open_in_memory().unwrap();
    let shape = |columns: &str| {
        conn.execute_batch(&format!("DROP TABLE IF EXISTS t; CREATE TABLE t({columns}")).unwrap();
        TableShape::read(&conn, "t").unwrap()
    };
    for (columns, key) in [
        ("id INTEGER PRIMARY KEY, v)", "id"),
        ("id INTEGER PRIMARY KEY, v) WITHOUT ROWID", "id"),
        ("id INT PRIMARY KEY NOT NULL, v)", "id"),
        ("id INT PRIMARY KEY, v)", "rowid"),
        ("id INTEGER PRIMARY KEY DESC, v)", "rowid"),
        ("a, b, rowid, PRIMARY KEY(b, a))", "_rowid_"),
        ("a NOT NULL, b NOT NULL, PRIMARY KEY(b, a))", "b,a"),
        ("a, b, PRIMARY KEY(b, a)) WITHOUT ROWID", "b,a"),
        ("a, v AS (a + 1))", "rowid"),
    ] {
        let shape = shape(columns);
        let names: Vec<String> =
            shape.key_columns().into_iter().map(|column| column.name).collect();
        assert_eq!(names.join(","), key, "{columns}");
        assert!(!shape.autoincrement);
    }
    assert!(matches!(shape("rowid, oid, _rowid_)").key, KeyShape::Rowid(None)));
    assert!(shape("id INTEGER PRIMARY KEY AUTOINCREMENT)").autoincrement);
    assert!(!shape("id INTEGER COLLATE NOCASE PRIMARY KEY)").has_spellings());
    assert!(!shape("k TEXT NOT NULL PRIMARY KEY)").has_spellings());
    assert!(!shape("k BLOB NOT NULL PRIMARY KEY) STRICT").has_spellings());
    assert!(shape("k ANY NOT NULL PRIMARY KEY) STRICT").has_spellings());
    assert!(shape("k BLOB NOT NULL PRIMARY KEY)").has_spellings());
    assert!(shape("k TEXT COLLATE RTRIM NOT NULL PRIMARY KEY)").has_spellings());
}
