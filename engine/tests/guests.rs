//! Interactive transactions at the origin that clients of other nodes step through: every step once, and
//! all of them or none.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::time::Duration;

use littoral::{
    ForwardError, Guest, Outcome, RequestId, WriteError, WriteTx,
    limits::{PROGRAM_BYTES_MAX, RESULT_BYTES_MAX},
};

use self::support::{Cluster, linked};

const SCHEMA: &str = "CREATE TABLE stock(item TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL);";
const TAKE: &str = "UPDATE stock SET n = n - 1=>SELECT 'left: ' || n FROM stock";
const TAKE_LAST: &str = "UPDATE stock SET n = n - 1=>SELECT 'left: ' || n FROM stock;COMMIT";
const PATIENCE: Duration = Duration::from_secs(5);

/// Nodes in a line, the origin first.
fn cluster(nodes: usize) -> Cluster {
    let mut cluster = linked(nodes, SCHEMA, &[]);
    cluster.write(0, "INSERT INTO stock VALUES('tea', 10)");
    cluster.settle();
    cluster
}

type Answer = Result<Outcome, ForwardError>;

fn answer(cluster: &mut Cluster, node: usize, ticket: littoral::Ticket) -> Answer {
    cluster.drain(node);
    cluster.settle();
    cluster.answered.remove(&(node, ticket)).unwrap()
}

fn begin(cluster: &mut Cluster, node: usize, id: u128) -> Answer {
    let now = cluster.now_at(node);
    let ticket = cluster.replica(node).begin_at_origin(now, RequestId(id), now.wall, PATIENCE);
    answer(cluster, node, ticket)
}

fn begun(cluster: &mut Cluster, node: usize, id: u128) -> Guest {
    match begin(cluster, node, id) {
        Ok(Outcome::Begun(guest)) => guest,
        other => panic!("{other:?}"),
    }
}

fn send(cluster: &mut Cluster, node: usize, guest: Guest, n: u64, sql: &str) -> littoral::Ticket {
    let now = cluster.now_at(node);
    let program = sql.as_bytes().to_vec();
    let ticket = cluster.replica(node).step_at_origin(now, guest, n, program, PATIENCE);
    cluster.drain(node);
    ticket
}

fn step(cluster: &mut Cluster, node: usize, guest: Guest, n: u64, sql: &str) -> Answer {
    let ticket = send(cluster, node, guest, n, sql);
    answer(cluster, node, ticket)
}

fn stepped(result: &str) -> Answer {
    Ok(Outcome::Stepped { result: result.as_bytes().to_vec() })
}

fn committed(answer: Answer) -> String {
    match answer {
        Ok(Outcome::Committed { result: Some(result), .. }) => String::from_utf8(result).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn left(cluster: &mut Cluster, node: usize) -> Vec<String> {
    cluster.rows(node, "SELECT n FROM stock")
}

#[test]
fn a_guest_steps_through_a_transaction_over_relays() {
    let mut cluster = cluster(3);
    let guest = begun(&mut cluster, 2, 1);
    assert_eq!(step(&mut cluster, 2, guest, 1, TAKE), stepped("left: 9"));
    // Meanwhile nobody else writes at the origin, and nobody sees it.
    let now = cluster.now_at(0);
    let insert = |tx: &mut WriteTx<'_>| tx.execute_batch("INSERT INTO stock VALUES('jam', 1)");
    let waits = (0, cluster.replica(0).write(now, Box::new(insert)));
    cluster.drain(0);
    assert!(!cluster.done.contains_key(&waits));
    assert_eq!(left(&mut cluster, 0), ["10"]);
    assert_eq!(committed(step(&mut cluster, 2, guest, 2, TAKE_LAST)), "left: 8");
    assert_eq!(left(&mut cluster, 2), ["8", "1"]);
    assert!(cluster.done[&waits].is_ok());
    cluster.assert_equal();
    // It is the request's outcome, as of any other.
    let asked = cluster.ask(1, 1);
    cluster.settle();
    assert_eq!(committed(cluster.answered.remove(&asked).unwrap()), "left: 8");
    let gone = Err(ForwardError::Gone { id: RequestId(1) });
    assert_eq!(step(&mut cluster, 2, guest, 3, TAKE), gone);
    assert_eq!(begin(&mut cluster, 1, 1), gone);
}

#[test]
fn a_step_whose_reply_is_lost_is_answered_and_not_run_again() {
    for last in [false, true] {
        let mut cluster = cluster(2);
        let guest = begun(&mut cluster, 1, 1);
        cluster.held_steps = Some(Vec::new());
        let ticket = send(&mut cluster, 1, guest, 1, if last { TAKE_LAST } else { TAKE });
        cluster.cut();
        cluster.step_held(0);
        cluster.link(1, 0);
        let answered = answer(&mut cluster, 1, ticket);
        if last {
            assert_eq!(committed(answered), "left: 9");
        } else {
            assert_eq!(answered, stepped("left: 9"));
            // Nor if the same is sent once more.
            assert_eq!(step(&mut cluster, 1, guest, 1, TAKE), stepped("left: 9"));
            assert_eq!(committed(step(&mut cluster, 1, guest, 2, "=>SELECT '';COMMIT")), "");
        }
        assert_eq!(left(&mut cluster, 1), ["9"]);
        assert_eq!(cluster.ran.iter().filter(|ran| ran.starts_with("UPDATE")).count(), 1);
    }
}

#[test]
fn a_commit_is_answered_also_after_the_origin_was_started_again() {
    let mut cluster = cluster(2);
    let guest = begun(&mut cluster, 1, 1);
    cluster.held_steps = Some(Vec::new());
    let ticket = send(&mut cluster, 1, guest, 1, TAKE_LAST);
    cluster.cut();
    cluster.step_held(0);
    let now = cluster.now;
    cluster.replicas[0].take().unwrap().close(now).1.unwrap();
    cluster.open(0);
    cluster.link(1, 0);
    assert_eq!(committed(answer(&mut cluster, 1, ticket)), "left: 9");
}

#[test]
fn what_is_meant_for_one_of_before_a_restart_is_done_in_no_other() {
    let mut cluster = cluster(2);
    let before = begun(&mut cluster, 1, 1);
    assert_eq!(step(&mut cluster, 1, before, 1, TAKE), stepped("left: 9"));
    let now = cluster.now;
    cluster.cut();
    cluster.replicas[0].take().unwrap().close(now).1.unwrap();
    cluster.open(0);
    cluster.link(1, 0);
    // Even if a request to begin it comes late.
    let again = begun(&mut cluster, 1, 1);
    assert_ne!(before, again);
    let gone = Err(ForwardError::Gone { id: RequestId(1) });
    assert_eq!(step(&mut cluster, 1, before, 2, TAKE_LAST), gone);
    assert_eq!(step(&mut cluster, 1, before, 1, TAKE_LAST), gone);
    assert_eq!(left(&mut cluster, 0), ["10"]);
    // One that is skipped is missing for ever.
    assert_eq!(step(&mut cluster, 1, again, 2, TAKE_LAST), gone);
}

#[test]
fn who_leaves_or_takes_too_long_leaves_nothing() {
    let mut cluster = cluster(2);
    let guest = begun(&mut cluster, 1, 1);
    assert_eq!(step(&mut cluster, 1, guest, 1, TAKE), stepped("left: 9"));
    let now = cluster.now_at(1);
    cluster.replica(1).leave_origin(now, guest.id, PATIENCE);
    cluster.drain(1);
    cluster.settle();
    assert_eq!(left(&mut cluster, 0), ["10"]);
    let over = step(&mut cluster, 1, guest, 2, TAKE_LAST);
    assert!(
        matches!(over, Ok(Outcome::Failed { .. }) | Err(ForwardError::Gone { .. })),
        "{over:?}"
    );
    // The writer is free.
    cluster.write(0, "UPDATE stock SET n = 20");

    let guest = begun(&mut cluster, 1, 2);
    assert_eq!(step(&mut cluster, 1, guest, 1, TAKE), stepped("left: 19"));
    let (_, ticket) = *cluster.begun.last().unwrap();
    let now = cluster.now_at(0);
    cluster.replica(0).abandon(now, ticket, WriteError::Aborted("too long".to_owned()));
    cluster.drain(0);
    let over = step(&mut cluster, 1, guest, 2, TAKE_LAST);
    assert!(
        matches!(&over, Ok(Outcome::Failed { answer }) if answer.ends_with(b"too long")),
        "{over:?}"
    );
    assert_eq!(left(&mut cluster, 0), ["20"]);
}

#[test]
fn one_that_waits_and_leaves_does_not_come() {
    let mut cluster = cluster(2);
    let first = begun(&mut cluster, 1, 1);
    let now = cluster.now_at(1);
    let second = cluster.replica(1).begin_at_origin(now, RequestId(2), now.wall, PATIENCE);
    cluster.drain(1);
    cluster.replica(1).leave_origin(now, RequestId(2), PATIENCE);
    let gone = Err(ForwardError::Gone { id: RequestId(2) });
    assert_eq!(answer(&mut cluster, 1, second), gone);
    assert_eq!(committed(step(&mut cluster, 1, first, 1, TAKE_LAST)), "left: 9");
    cluster.write(0, "UPDATE stock SET n = 20");
    assert_eq!(begin(&mut cluster, 1, 2), gone);
}

#[test]
fn a_commit_that_changes_nothing_or_too_much_says_so() {
    let mut cluster = cluster(2);
    let guest = begun(&mut cluster, 1, 1);
    let nothing = Ok(Outcome::Unchanged { result: b"10".to_vec() });
    let look = "=>SELECT CAST(n AS TEXT) FROM stock;COMMIT";
    assert_eq!(step(&mut cluster, 1, guest, 1, look), nothing);
    assert_eq!(step(&mut cluster, 1, guest, 1, look), nothing, "and again");
    let guest = begun(&mut cluster, 1, 2);
    let much = format!("=>SELECT hex(zeroblob({}))", RESULT_BYTES_MAX / 2 + 1);
    let failed = step(&mut cluster, 1, guest, 1, &much);
    assert!(matches!(failed, Ok(Outcome::Failed { .. })), "{failed:?}");
    let guest = begun(&mut cluster, 1, 3);
    let long = "x".repeat(PROGRAM_BYTES_MAX + 1);
    let failed = step(&mut cluster, 1, guest, 1, &long);
    assert!(matches!(failed, Err(ForwardError::TooLarge { .. })), "{failed:?}");
}
