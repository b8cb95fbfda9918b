//! SQLite over the faulty disk: what a crash keeps, and that a run repeats byte for byte.

use rusqlite::{Connection, OpenFlags};

use super::*;
use crate::chance::Stream;

fn connect(machine: &str) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let path = format!("/{machine}/test.db");
    let connection = Connection::open_with_flags_and_vfs(path, flags, NAME).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = wal; PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = normal",
        )
        .unwrap();
    connection
}

fn count(connection: &Connection) -> i64 {
    connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
}

fn insert(connection: &Connection, from: i64, to: i64) {
    for n in from..to {
        connection.execute("INSERT INTO t VALUES (?1, randomblob(300))", [n]).unwrap();
    }
}

fn crash(machine: &str, connections: Vec<Connection>, power: Option<(&Chance, u64)>) {
    with(|store| store.stop(machine));
    drop(connections);
    with(|store| {
        if let Some((chance, nth)) = power {
            store.cut_power(machine, &mut chance.draw(Stream::PowerCut, 0, nth));
        }
        store.start(machine);
    });
}

#[test]
fn a_process_crash_keeps_every_commit() {
    let chance = Chance::of(1);
    let _session = Session::begin(&chance);
    let connection = connect("m0");
    connection.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, b)").unwrap();
    insert(&connection, 0, 50);
    crash("m0", vec![connection], None);
    assert_eq!(count(&connect("m0")), 50);
}

#[test]
fn a_power_cut_keeps_what_was_synced_and_never_breaks_the_file() {
    let mut lost = 0;
    for seed in 0..60 {
        let chance = Chance::of(seed);
        let _session = Session::begin(&chance);
        let mut connection = connect("m0");
        connection.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, b)").unwrap();
        let mut synced = 0;
        for round in 0..4 {
            let from = count(&connection);
            insert(&connection, from, from + 20);
            let mark = with(|store| store.begin_sync("/m0/test.db-wal")).unwrap();
            insert(&connection, from + 20, from + 30);
            if round % 2 == 0 {
                with(|store| store.end_sync("/m0/test.db-wal", mark));
                synced = from + 20;
            }
            if round == 2 {
                connection.execute_batch("PRAGMA wal_checkpoint(restart)").ok();
                insert(&connection, from + 30, from + 40);
            }
            crash("m0", vec![connection], Some((&chance, round)));
            connection = connect("m0");
            let left = count(&connection);
            assert!(left >= synced, "seed {seed}: {left} rows of {synced} synced");
            lost += i64::from(left < from + 30);
            synced = left;
            with(|store| store.begin_sync("/m0/test.db-wal"));
            let check: String =
                connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(check, "ok", "seed {seed}");
            let gap: i64 = connection
                .query_row("SELECT count(*) - coalesce(max(n) + 1, 0) FROM t", [], |row| row.get(0))
                .unwrap();
            assert_eq!(gap, 0, "seed {seed}: what survives is a prefix");
            connection.execute_batch("PRAGMA wal_checkpoint(full)").unwrap();
        }
    }
    assert!(lost > 20, "the power cuts took something: {lost}");
}

#[test]
fn a_machine_may_stop_in_the_middle_of_any_commit() {
    let chance = Chance::of(5);
    for changes in 0..40 {
        let _session = Session::begin(&chance);
        let connection = connect("m0");
        connection
            .execute_batch("PRAGMA synchronous = full; CREATE TABLE t (n INTEGER PRIMARY KEY, b)")
            .unwrap();
        insert(&connection, 0, 3);
        with(|store| store.stop_after("m0", changes));
        let mut answered = 3;
        while connection.execute("INSERT INTO t VALUES (?1, zeroblob(5000))", [answered]).is_ok() {
            answered += 1;
            if answered % 4 == 0 {
                connection.execute_batch("PRAGMA wal_checkpoint(passive)").ok();
            }
        }
        crash("m0", vec![connection], Some((&chance, changes)));
        let left = count(&connect("m0"));
        assert!(left == answered || left == answered + 1, "{left} rows of {answered} answered");
    }
}

#[test]
fn two_connections_see_each_other_and_exclude_each_other() {
    let chance = Chance::of(2);
    let _session = Session::begin(&chance);
    let (one, two) = (connect("m0"), connect("m0"));
    two.busy_timeout(std::time::Duration::ZERO).unwrap();
    one.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, b)").unwrap();
    insert(&one, 0, 5);
    assert_eq!(count(&two), 5);
    one.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (100, NULL)").unwrap();
    assert_eq!(count(&two), 5);
    assert!(two.execute("INSERT INTO t VALUES (101, NULL)", []).is_err());
    one.execute_batch("COMMIT").unwrap();
    assert_eq!(count(&two), 6);
    two.execute("INSERT INTO t VALUES (101, NULL)", []).unwrap();
    assert_eq!(count(&one), 7);
}

#[test]
fn a_full_disk_fails_the_transaction_whole() {
    let chance = Chance::of(2);
    let _session = Session::begin(&chance);
    let connection = connect("m0");
    connection.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, b)").unwrap();
    with(|store| store.set_full("m0", true));
    assert!(connection.execute("INSERT INTO t VALUES (1, NULL)", []).is_err());
    with(|store| store.set_full("m0", false));
    assert_eq!(count(&connection), 0);
    insert(&connection, 0, 1);
}

#[test]
fn the_same_seed_writes_the_same_bytes_and_time_stands_still() {
    let hash = |seed: u64| {
        let _session = Session::begin(&Chance::of(seed));
        with(|store| store.wall_ms = 1_700_000_000_000);
        let connection = connect("m0");
        connection.execute_batch("CREATE TABLE t (n INTEGER PRIMARY KEY, b)").unwrap();
        insert(&connection, 0, 20);
        let now: String =
            connection.query_row("SELECT datetime('now')", [], |row| row.get(0)).unwrap();
        assert_eq!(now, "2023-11-14 22:13:20");
        drop(connection);
        let mut hasher = blake3::Hasher::new();
        with(|store| store.hash_into(&mut hasher));
        hasher.finalize()
    };
    assert_eq!(hash(9), hash(9));
    assert_ne!(hash(9), hash(10));
}
