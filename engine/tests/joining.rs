//! Nodes that come later: they become members at run time and take a snapshot of whoever is near.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{
    ColumnType, Consistency, Digest, Input, OpenError, PieceWritten, Replica, TablePolicy,
    WriteError, Writers,
};

use self::support::Cluster;

const SCHEMA: &str = "
    CREATE TABLE cart(id TEXT PRIMARY KEY NOT NULL, note TEXT, qty INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE orders(id INTEGER PRIMARY KEY, code TEXT NOT NULL UNIQUE);
";

fn cluster(nodes: usize) -> Cluster {
    let cart = TablePolicy {
        writers: Writers::Any,
        columns: [("qty".to_owned(), ColumnType::Counter)].into(),
        ..TablePolicy::default()
    };
    let mut cluster = Cluster::new(nodes, SCHEMA, &[("cart", cart)]);
    for node in 1..nodes {
        cluster.link(node - 1, node);
    }
    cluster.settle();
    cluster
}

/// More entries than a newcomer is sent one by one.
fn filled(nodes: usize) -> Cluster {
    let mut cluster = cluster(nodes);
    for _ in 0..70 {
        cluster.write(
            0,
            "INSERT INTO cart(id, note) VALUES(hex(randomblob(8)), hex(randomblob(400)))",
        );
    }
    cluster.settle();
    cluster
}

#[test]
fn a_newcomer_joins_through_a_relay_and_writes() {
    let mut cluster = filled(2);
    let late = cluster.newcomer();
    assert!(matches!(
        cluster.try_write(late, |tx| tx.execute_batch("SELECT 1")),
        Err(WriteError::NotAMember)
    ));
    cluster.link(1, late);
    cluster.settle();
    assert_eq!(cluster.installed, 1);
    cluster.link(1, late);
    cluster.settle();
    cluster.write(late, "INSERT INTO cart(id, qty) VALUES('from the newcomer', 3)");
    cluster.write(0, "INSERT INTO orders(id, code) VALUES(1, 'a')");
    cluster.settle();
    cluster.assert_equal();
    let members = cluster.replica(0).status().members;
    assert_eq!(members.len(), 3);
    assert_eq!(members[2].node, cluster.names[late]);
    assert_eq!(cluster.replica(late).status().author, Some(members[2].author));
    // Asking again changes nothing.
    cluster.cut();
    cluster.link(0, late);
    cluster.settle();
    assert_eq!(cluster.replica(0).status().members.len(), 3);
}

#[test]
fn a_cluster_that_has_just_begun_is_joined_too() {
    let mut cluster = cluster(2);
    let late = cluster.newcomer();
    cluster.link(0, late);
    cluster.settle();
    if cluster.installed == 1 {
        cluster.link(0, late);
        cluster.settle();
    }
    cluster.write(late, "INSERT INTO cart(id, qty) VALUES('x', 1)");
    cluster.settle();
    cluster.assert_equal();
}

#[test]
fn what_was_received_before_a_cut_or_a_crash_is_not_sent_again() {
    let mut cluster = filled(1);
    // Three times what is received between two syncs.
    for _ in 0..48 {
        cluster
            .write(0, "INSERT INTO cart(id, note) VALUES(hex(randomblob(8)), randomblob(1048576))");
    }
    let late = cluster.newcomer();
    cluster.cut_at = Some(40 << 20);
    cluster.link(0, late);
    assert!(cluster.links.is_empty(), "the link was cut half way");
    let before = cluster.received;
    // The process ends, and begins again with what is on its disk.
    drop(cluster.replicas[late].take());
    cluster.open(late);
    cluster.link(0, late);
    cluster.settle();
    assert_eq!(cluster.installed, 1);
    let size = usize::try_from(std::fs::metadata(cluster.path(late)).unwrap().len()).unwrap();
    let again = cluster.received.saturating_sub(size);
    assert!(before < size, "it was not cut half way");
    assert!(again < 17 << 20, "{again} bytes of {before} were sent twice");
    cluster.link(0, late);
    cluster.write(late, "INSERT INTO cart(id, qty) VALUES('x', 1)");
    cluster.settle();
    cluster.assert_equal();
}

#[test]
fn what_a_newcomer_is_still_to_be_sent_is_not_trimmed() {
    let mut cluster = Cluster::new(2, SCHEMA, &[("cart", support::any())]);
    // From the future, and more than a link carries without being told that some of it was taken.
    cluster.ahead.insert(0, 50_000);
    for _ in 0..14 {
        cluster
            .write(0, "INSERT INTO cart(id, note) VALUES(hex(randomblob(8)), randomblob(900000))");
    }
    cluster.ahead.remove(&0);
    let late = cluster.newcomer();
    cluster.link(0, late);
    // The other member takes it as it comes, since its clock and the origin's are as wrong.
    cluster.ahead.extend([(0, 50_000), (1, 50_000)]);
    cluster.link(1, 0);
    cluster.ahead.clear();
    (0..30).for_each(|_| cluster.wait(1000));
    let count = "SELECT count(*) FROM cart";
    let counts = [0, 1, late].map(|node| cluster.rows(node, count).remove(0));
    assert_eq!(counts, ["14", "14", "0"]);
    assert!(cluster.replica(0).status().stability.covered.iter().any(|dot| dot.seq > 14));
    (0..30).for_each(|_| cluster.wait(1000));
    cluster.assert_rows(count, &["14"]);
    assert_eq!((cluster.installed, &cluster.closed), (0, &vec![]));
    cluster.write(late, "INSERT INTO cart(id, qty) VALUES('x', 1)");
    (0..10).for_each(|_| cluster.wait(1000));
    cluster.assert_equal();
    for node in [0, 1, late] {
        let left = cluster.rows(node, "SELECT count(*) FROM littoral_log").remove(0);
        assert!(left.parse::<u32>().unwrap() < 5, "n{node} keeps {left} entries");
    }
}

#[test]
fn what_is_not_on_stable_storage_is_not_trimmed() {
    let mut cluster = Cluster::new(2, SCHEMA, &[("cart", support::any())]);
    cluster.link(0, 1);
    cluster.read_only.push(2);
    let late = cluster.newcomer();
    cluster.link(0, late);
    cluster.settle();
    cluster.link(0, late);
    (0..5).for_each(|_| cluster.wait(1000));
    cluster.closed.clear();
    cluster.held_syncs = true;
    cluster.write(1, "INSERT INTO cart(id) VALUES('a')");
    (0..5).for_each(|_| cluster.wait(1000));
    let status = cluster.replica(0).status();
    assert!(status.durable < status.applied, "its disk is slow");
    let author = cluster.replica(1).status().author.unwrap();
    assert!(status.stability.covered.iter().any(|dot| dot.author == author), "everybody has it");
    // The read-only node was not sent it yet.
    let count = "SELECT count(*) FROM cart";
    assert_eq!(cluster.rows(late, count), ["0"]);
    cluster.held_syncs = false;
    cluster.handle(0, Input::Synced(status.applied));
    (0..5).for_each(|_| cluster.wait(1000));
    assert_eq!((cluster.installed, &cluster.closed), (1, &vec![]));
    cluster.assert_rows(count, &["1"]);
    let left = cluster.rows(0, "SELECT count(*) FROM littoral_log").remove(0);
    assert!(left.parse::<u32>().unwrap() < 5, "{left} entries are kept");
}

#[test]
fn a_damaged_piece_on_the_disk_is_found_before_anything_is_published() {
    let mut cluster = filled(1);
    let sponsor = cluster.replica(0).db().clone();
    let taken = sponsor.take_snapshot(Digest::of(b"a name")).unwrap();
    let late = cluster.newcomer();
    let db = cluster.replica(late).db().clone();
    let half = 8192;
    let first = sponsor.read_snapshot(0, half).unwrap();
    let rest = usize::try_from(taken.bytes).unwrap() - half;
    let second = sponsor.read_snapshot(half as u64, rest).unwrap();
    assert_eq!(db.write_incoming(&first, true).unwrap(), PieceWritten::Synced);
    cluster.replicas[late].take().unwrap().close(cluster.now).1.unwrap();
    drop(db);
    cluster.open(late);
    let db = cluster.replica(late).db().clone();
    let mut stored = std::fs::read(db.incoming_path()).unwrap();
    stored[5000] ^= 1;
    std::fs::write(db.incoming_path(), &stored).unwrap();
    assert_eq!(db.write_incoming(&second, true).unwrap(), PieceWritten::Damaged);
    assert!(!db.verify_incoming(&taken).unwrap());
    assert!(!db.incoming_path().exists());
    // Nothing that is damaged on its way is written.
    assert_eq!(db.write_incoming(&first, true).unwrap(), PieceWritten::Synced);
    let other = sponsor.read_snapshot(half as u64 + 1, rest - 1).unwrap();
    assert_eq!(db.write_incoming(&other, true).unwrap(), PieceWritten::Damaged);
    assert!(!db.verify_incoming(&taken).unwrap());
    assert_eq!(db.write_incoming(&first, false).unwrap(), PieceWritten::Written);
    assert_eq!(db.write_incoming(&second, false).unwrap(), PieceWritten::Written);
    assert!(db.verify_incoming(&taken).unwrap());
}

#[test]
fn a_read_only_node_follows_and_refuses_writes() {
    let mut cluster = filled(2);
    cluster.read_only.push(2);
    let late = cluster.newcomer();
    cluster.link(1, late);
    cluster.settle();
    cluster.link(1, late);
    cluster.write(0, "INSERT INTO cart(id, qty) VALUES('later', 1)");
    cluster.settle();
    assert_eq!(cluster.installed, 1);
    cluster.assert_equal();
    assert!(matches!(
        cluster.try_write(late, |tx| tx.execute_batch("DELETE FROM cart")),
        Err(WriteError::ReadOnly)
    ));
    assert_eq!(cluster.replica(0).status().members.len(), 2);
    // It passes on what it has.
    let last = cluster.newcomer();
    cluster.link(late, last);
    cluster.settle();
    cluster.link(late, last);
    cluster.settle();
    cluster.assert_equal();
    assert!(cluster.replica(last).status().author.is_some());
}

#[test]
fn what_is_the_sponsors_own_is_in_no_byte_of_a_snapshot() {
    let local = TablePolicy { consistency: Consistency::Local, ..TablePolicy::default() };
    let schema = "CREATE TABLE secret(id INTEGER PRIMARY KEY, words TEXT, more BLOB);
        CREATE INDEX by_words ON secret(words); CREATE TABLE shown(id INTEGER PRIMARY KEY, words TEXT);";
    let mut cluster = Cluster::new(1, schema, &[("secret", local)]);
    cluster.write(
        0,
        "INSERT INTO secret VALUES(1, 'nobody may read this', zeroblob(20000) || 'hidden')",
    );
    cluster.write(
        0,
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
        INSERT INTO secret SELECT i, 'nobody may read this ' || i, NULL FROM n",
    );
    cluster.write(0, "INSERT INTO shown VALUES(1, 'everybody may read this')");
    let identity = cluster.identity(0);
    let stored = cluster.rows(0, "SELECT lower(hex(value)) FROM littoral_meta WHERE name = 'file'");
    let mark: Vec<u8> = (0..stored[0].len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&stored[0][at..at + 2], 16).unwrap())
        .collect();
    let sponsor = cluster.replica(0).db();
    let taken = sponsor.take_snapshot(Digest::of(b"a name")).unwrap();
    let piece = sponsor.read_snapshot(0, usize::try_from(taken.bytes).unwrap()).unwrap();
    let finds = |what: &[u8]| piece.bytes().windows(what.len()).any(|window| window == what);
    assert!(finds(b"snapshot_of") && finds(b"everybody may read this"));
    assert!(!finds(b"nobody may read this") && !finds(b"hidden"));
    assert!(!finds(identity.incarnation.to_string().as_bytes()));
    assert!(!finds(&mark[..24]));
}

#[test]
fn copies_and_restored_files_are_told_from_the_original() {
    let mut cluster = filled(1);
    let path = cluster.path(0);
    let copy = cluster.dir.path().join("copy.sqlite");
    let identity = cluster.identity(0);
    let now = cluster.now;
    let open = |path: &std::path::Path, seed| {
        Replica::builder(identity.clone()).open(path, now, seed).map(|replica| replica.close(now))
    };
    cluster.replicas[0].take().unwrap().close(now).1.unwrap();
    std::fs::copy(&path, &copy).unwrap();
    assert!(matches!(open(&copy, 7), Err(OpenError::CopiedFile { noted: 0, .. })));
    open(&path, 8).unwrap().1.unwrap();
    std::fs::copy(&copy, &path).unwrap();
    let error = open(&path, 9).err().unwrap();
    assert!(matches!(error, OpenError::CopiedFile { opened: 1, noted: 2 }), "{error}");
    assert!(error.to_string().contains("littoral ca issue"), "{error}");
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(open(&path, 10), Err(OpenError::LostFile)));
}
