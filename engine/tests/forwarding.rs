//! Requests that are carried to the origin: run once, wherever they come from and whatever is lost.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use std::time::Duration;

use littoral::{
    ForwardError, Outcome, Request, RequestId,
    limits::{OUTCOME_RESULT_BYTES, PROGRAM_BYTES_MAX, REQUESTS_PER_LINK, RESULT_BYTES_MAX},
};

use self::support::{Cluster, any, linked};

const SCHEMA: &str = "
    CREATE TABLE stock(item TEXT PRIMARY KEY NOT NULL, n INTEGER NOT NULL CHECK (n >= 0));
    CREATE TABLE note(id TEXT PRIMARY KEY NOT NULL, words TEXT);";

const TAKE: &str = "UPDATE stock SET n = n - 1 WHERE item = 'tea'=>SELECT 'left: ' || n FROM stock";

/// Nodes in a line, the origin first; everybody may write notes.
fn cluster(nodes: usize) -> Cluster {
    let mut cluster = linked(nodes, SCHEMA, &[("note", any())]);
    cluster.write(0, "INSERT INTO stock VALUES('tea', 10)");
    cluster.settle();
    cluster
}

fn committed(cluster: &mut Cluster, ticket: (usize, littoral::Ticket)) -> Option<String> {
    match cluster.answered.remove(&ticket).unwrap() {
        Ok(Outcome::Committed { result, .. }) => {
            result.map(|bytes| String::from_utf8(bytes).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

fn left(cluster: &mut Cluster) -> Vec<String> {
    cluster.rows(0, "SELECT n FROM stock")
}

#[test]
fn a_request_is_carried_over_relays_and_answered_once_its_entry_is_applied() {
    let mut cluster = cluster(4);
    assert_eq!(cluster.replica(3).status().distance, Some(3));
    let ticket = cluster.forward(3, 1, TAKE);
    cluster.settle();
    // That the entry is applied when the answer comes, the loop checks itself.
    assert_eq!(committed(&mut cluster, ticket).as_deref(), Some("left: 9"));
    assert_eq!(cluster.rows(3, "SELECT n FROM stock"), ["9"]);
    assert_eq!(cluster.ran.len(), 1);
    cluster.assert_equal();
    // At the origin it is the same.
    let ticket = cluster.forward(0, 2, TAKE);
    cluster.settle();
    assert_eq!(committed(&mut cluster, ticket).as_deref(), Some("left: 8"));
}

#[test]
fn a_retry_gets_the_outcome_of_the_first_run_also_after_a_restart() {
    let mut cluster = cluster(3);
    let first = cluster.forward(2, 1, TAKE);
    cluster.settle();
    assert_eq!(committed(&mut cluster, first).as_deref(), Some("left: 9"));
    for node in 0..3 {
        cluster.cut();
        let now = cluster.now;
        cluster.replicas[node].take().unwrap().close(now).1.unwrap();
        cluster.open(node);
        cluster.link(1, 0);
        cluster.link(2, 1);
        cluster.settle();
        let again = cluster.forward(node, 1, TAKE);
        cluster.settle();
        assert_eq!(committed(&mut cluster, again).as_deref(), Some("left: 9"));
    }
    assert_eq!(cluster.ran.len(), 1);
    // Every node keeps it, so any of them could be origin.
    let kept = "SELECT hex(request), author, seq, hex(program), hex(result) FROM littoral_outcomes";
    let rows = cluster.rows(0, kept);
    assert_eq!(rows.len(), 1);
    assert_eq!([cluster.rows(1, kept), cluster.rows(2, kept)], [rows.clone(), rows]);
}

#[test]
fn an_id_stands_for_one_program() {
    let mut cluster = cluster(2);
    cluster.forward(1, 1, TAKE);
    cluster.settle();
    let other = cluster.forward(1, 1, "DELETE FROM stock");
    cluster.settle();
    let id = RequestId(1);
    assert_eq!(cluster.answered[&other], Err(ForwardError::OtherProgram { id }));
    assert_eq!(left(&mut cluster), ["9"]);
}

#[test]
fn two_tries_at_the_same_time_are_one_run() {
    let mut cluster = cluster(3);
    cluster.link(2, 0);
    cluster.held_runs = Some(Vec::new());
    let tries = [cluster.forward(1, 1, TAKE), cluster.forward(2, 1, TAKE)];
    let other = cluster.forward(2, 1, "DELETE FROM stock");
    cluster.settle();
    assert_eq!(cluster.held_runs.as_ref().unwrap().len(), 1);
    let id = RequestId(1);
    assert_eq!(cluster.answered[&other], Err(ForwardError::OtherProgram { id }));
    cluster.run_held(0);
    cluster.settle();
    for ticket in tries {
        assert_eq!(committed(&mut cluster, ticket).as_deref(), Some("left: 9"));
    }
    assert_eq!(cluster.ran.len(), 1);
}

#[test]
fn what_fails_or_changes_nothing_leaves_no_trace() {
    let mut cluster = cluster(2);
    let failing = "UPDATE stock SET n = n - 100";
    let failed = cluster.forward(1, 1, failing);
    let reading = cluster.forward(1, 2, "SELECT 1=>SELECT item FROM stock");
    cluster.settle();
    match &cluster.answered[&failed] {
        Ok(Outcome::Failed { answer }) => {
            assert_eq!(answer, b"CHECK constraint failed: n >= 0");
        }
        other => panic!("{other:?}"),
    }
    let result = b"tea".to_vec();
    assert_eq!(cluster.answered[&reading], Ok(Outcome::Unchanged { result }));
    assert_eq!(cluster.rows(0, "SELECT count(*) FROM littoral_outcomes"), ["0"]);
    // So the same ids may be used again.
    cluster.write(0, "UPDATE stock SET n = 200");
    let again = cluster.forward(1, 1, failing);
    cluster.settle();
    committed(&mut cluster, again);
    assert_eq!(left(&mut cluster), ["100"]);
}

#[test]
fn an_outcome_is_told_and_a_request_that_is_not_known_never_runs() {
    let mut cluster = cluster(3);
    cluster.forward(2, 1, TAKE);
    cluster.settle();
    let known = cluster.ask(2, 1);
    let unknown = cluster.ask(2, 2);
    cluster.settle();
    assert_eq!(committed(&mut cluster, known).as_deref(), Some("left: 9"));
    assert_eq!(cluster.answered[&unknown], Ok(Outcome::Refused));
    // The request that was asked about arrives late.
    let late = cluster.forward(1, 2, TAKE);
    cluster.settle();
    assert_eq!(cluster.answered[&late], Ok(Outcome::Refused));
    assert_eq!(cluster.ran.len(), 1);
    assert_eq!(left(&mut cluster), ["9"]);
}

#[test]
fn a_question_waits_for_the_run_that_is_under_way() {
    let mut cluster = cluster(2);
    cluster.held_runs = Some(Vec::new());
    cluster.forward(1, 1, TAKE);
    let question = cluster.ask(1, 1);
    cluster.settle();
    assert!(!cluster.answered.contains_key(&question));
    cluster.run_held(0);
    cluster.settle();
    assert_eq!(committed(&mut cluster, question).as_deref(), Some("left: 9"));
}

#[test]
fn without_a_way_to_the_origin_nothing_is_sent() {
    let mut cluster = cluster(3);
    cluster.cut();
    cluster.link(2, 1);
    cluster.settle();
    assert_eq!(cluster.replica(2).status().distance, None);
    let ticket = cluster.forward(2, 1, TAKE);
    cluster.settle();
    assert!(!cluster.answered.contains_key(&ticket));
    cluster.wait(5000);
    let origin = Some(cluster.names[0].clone());
    assert_eq!(cluster.answered[&ticket], Err(ForwardError::OriginUnreachable { origin }));
    // One that waits is sent as soon as there is a way.
    let ticket = cluster.forward(2, 2, TAKE);
    cluster.link(1, 0);
    cluster.settle();
    assert_eq!(committed(&mut cluster, ticket).as_deref(), Some("left: 9"));
}

#[test]
fn what_was_sent_and_not_answered_may_have_run() {
    let mut cluster = cluster(2);
    cluster.held_runs = Some(Vec::new());
    let ticket = cluster.forward(1, 1, TAKE);
    cluster.cut();
    cluster.run_held(0);
    cluster.wait(5500);
    let id = RequestId(1);
    assert_eq!(cluster.answered[&ticket], Err(ForwardError::Unknown { id }));
    cluster.link(1, 0);
    cluster.settle();
    let question = cluster.ask(1, 1);
    cluster.settle();
    assert_eq!(committed(&mut cluster, question).as_deref(), Some("left: 9"));
    assert_eq!(cluster.ran.len(), 1);
}

#[test]
fn a_lost_reply_is_asked_for_again() {
    let mut cluster = cluster(3);
    cluster.held_runs = Some(Vec::new());
    let ticket = cluster.forward(2, 1, TAKE);
    cluster.cut();
    cluster.run_held(0);
    cluster.link(2, 1);
    cluster.link(1, 0);
    cluster.settle();
    assert_eq!(committed(&mut cluster, ticket).as_deref(), Some("left: 9"));
    assert_eq!(cluster.ran.len(), 1);
}

#[test]
fn the_origin_waits_for_what_the_sender_had_written() {
    let mut cluster = cluster(2);
    cluster.held_frames = Some(Vec::new());
    cluster.write(1, "INSERT INTO note VALUES('a', 'seen')");
    let ticket = cluster.forward(
        1,
        1,
        "UPDATE stock SET n = (SELECT count(*) FROM note)=>SELECT words FROM note",
    );
    cluster.settle();
    assert_eq!(cluster.ran.len(), 0);
    cluster.deliver_held();
    cluster.settle();
    assert_eq!(committed(&mut cluster, ticket).as_deref(), Some("seen"));
    assert_eq!(left(&mut cluster), ["1"]);
    // What never comes is not waited for without end, and surely did not run.
    cluster.held_frames = Some(Vec::new());
    cluster.write(1, "INSERT INTO note VALUES('b', 'too late')");
    let ticket = cluster.forward(1, 2, TAKE);
    (0..30).for_each(|_| cluster.wait(200));
    let origin = Some(cluster.names[0].clone());
    assert_eq!(cluster.answered[&ticket], Err(ForwardError::OriginUnreachable { origin }));
    assert_eq!(cluster.ran.len(), 1);
}

#[test]
fn nothing_is_told_before_it_is_on_stable_storage() {
    let mut cluster = cluster(2);
    cluster.held_syncs = true;
    // A decree is synced later than it is committed.
    let question = cluster.ask(1, 7);
    cluster.settle();
    assert!(!cluster.answered.contains_key(&question));
    cluster.held_syncs = false;
    let synced = cluster.replica(0).status().applied;
    cluster.handle(0, littoral::Input::Synced(synced));
    cluster.settle();
    assert_eq!(cluster.answered[&question], Ok(Outcome::Refused));

    // What has come from elsewhere is synced later, too, and a power cut would take it.
    cluster.held_syncs = true;
    cluster.write(1, "INSERT INTO note VALUES('shown', 'here')");
    cluster.settle();
    assert_eq!(cluster.rows(0, "SELECT count(*) FROM note WHERE id = 'shown'"), ["1"]);
    let now = cluster.now_at(1);
    let ticket = cluster.replica(1).meet_origin(now, Duration::from_secs(5));
    cluster.drain(1);
    cluster.settle();
    assert!(!cluster.answered.contains_key(&(1, ticket)));
    cluster.held_syncs = false;
    let synced = cluster.replica(0).status().applied;
    cluster.handle(0, littoral::Input::Synced(synced));
    assert!(matches!(cluster.answered[&(1, ticket)], Ok(Outcome::Read { .. })));
}

#[test]
fn a_link_carries_so_many_requests_at_a_time_and_the_others_wait() {
    let mut cluster = cluster(3);
    cluster.held_runs = Some(Vec::new());
    let count = REQUESTS_PER_LINK as u64 + 5;
    let tickets: Vec<_> = (1..=count)
        .map(|id| cluster.forward(2, id.into(), "UPDATE stock SET n = n + 1=>SELECT 'done'"))
        .collect();
    cluster.settle();
    assert_eq!(cluster.held_runs.as_ref().unwrap().len(), REQUESTS_PER_LINK);
    assert_eq!(cluster.replica(2).status().requests_waiting, count);
    assert_eq!(cluster.replica(0).status().requests_here, REQUESTS_PER_LINK as u64);
    cluster.run_held(0);
    cluster.settle();
    for ticket in tickets {
        assert_eq!(committed(&mut cluster, ticket).as_deref(), Some("done"));
    }
    assert_eq!(left(&mut cluster), [(10 + count).to_string()]);
    assert_eq!(cluster.replica(2).status().requests_waiting, 0);
    assert_eq!(cluster.replica(0).status().requests_here, 0);
}

#[test]
fn large_results_are_told_once_and_too_large_ones_take_the_program_back() {
    let mut cluster = cluster(2);
    let giving = |bytes: usize| {
        format!("UPDATE stock SET n = n - 1=>SELECT hex(zeroblob({}))", bytes.div_ceil(2))
    };
    for (id, bytes, kept) in [(1, OUTCOME_RESULT_BYTES, true), (2, OUTCOME_RESULT_BYTES + 2, false)]
    {
        let first = cluster.forward(1, id, &giving(bytes));
        cluster.settle();
        assert_eq!(committed(&mut cluster, first).map(|text| text.len()), Some(bytes));
        let again = cluster.forward(1, id, &giving(bytes));
        cluster.settle();
        assert_eq!(committed(&mut cluster, again).is_some(), kept);
    }
    let too_much = cluster.forward(1, 3, &giving(RESULT_BYTES_MAX + 2));
    cluster.settle();
    assert!(matches!(cluster.answered[&too_much], Ok(Outcome::Failed { .. })));
    assert_eq!(left(&mut cluster), ["8"]);
    let too_long = cluster.forward(1, 4, &" ".repeat(PROGRAM_BYTES_MAX + 1));
    let bytes = PROGRAM_BYTES_MAX + 1;
    assert_eq!(cluster.answered[&too_long], Err(ForwardError::TooLarge { bytes }));
}

#[test]
fn a_request_that_is_older_than_outcomes_are_kept_is_not_run() {
    let mut cluster = cluster(2);
    let now = cluster.now;
    let request = Request {
        id: RequestId(1),
        issued: littoral::WallTime(now.wall.0 - 24 * 3_600_000 - 1),
        program: TAKE.as_bytes().to_vec(),
        patience: Duration::from_secs(1),
    };
    let ticket = cluster.replica(1).forward(now, request);
    cluster.settle();
    let id = RequestId(1);
    assert_eq!(cluster.answered[&(1, ticket)], Err(ForwardError::Expired { id }));
    assert_eq!(cluster.ran.len(), 0);
}

#[test]
fn the_way_to_the_origin_follows_the_links() {
    // A ring: 0 - 1 - 2 - 3 - 0.
    let mut cluster = cluster(4);
    cluster.link(3, 0);
    cluster.settle();
    let distances =
        |cluster: &mut Cluster| [0, 1, 2, 3].map(|node| cluster.replica(node).status().distance);
    assert_eq!(distances(&mut cluster), [Some(0), Some(1), Some(2), Some(1)]);
    cluster.cut();
    cluster.link(1, 2);
    cluster.link(2, 3);
    cluster.link(3, 0);
    cluster.settle();
    assert_eq!(distances(&mut cluster), [Some(0), Some(3), Some(2), Some(1)]);
    let ticket = cluster.forward(1, 1, TAKE);
    cluster.settle();
    assert_eq!(committed(&mut cluster, ticket).as_deref(), Some("left: 9"));
    // Where there is no origin, nobody believes in a way for long.
    cluster.cut();
    cluster.link(1, 2);
    cluster.link(2, 3);
    cluster.link(3, 1);
    cluster.settle();
    assert_eq!(distances(&mut cluster), [Some(0), None, None, None]);
}

#[test]
fn a_request_does_not_wait_for_a_link_that_has_died_unnoticed() {
    let mut cluster = cluster(2);
    // Nothing of this link arrives any more, and nobody says so.
    cluster.links.clear();
    let ticket = cluster.forward(1, 1, TAKE);
    cluster.settle();
    assert!(!cluster.answered.contains_key(&ticket));
    cluster.link(1, 0);
    cluster.settle();
    assert_eq!(committed(&mut cluster, ticket).as_deref(), Some("left: 9"));
}

#[test]
fn a_node_that_stops_says_so() {
    let mut cluster = cluster(2);
    cluster.held_runs = Some(Vec::new());
    let (_, ticket) = cluster.forward(1, 1, TAKE);
    let now = cluster.now;
    let (outputs, closed) = cluster.replicas[1].take().unwrap().close(now);
    closed.unwrap();
    assert!(outputs.iter().any(|output| matches!(
        output,
        littoral::Output::Answered { ticket: answered, result: Err(ForwardError::Stopping { .. }) }
            if *answered == ticket
    )));
}

#[test]
fn what_a_program_has_seen_is_here_when_its_answer_is() {
    let mut cluster = cluster(2);
    cluster.held_frames = Some(Vec::new());
    cluster.write(0, "UPDATE stock SET n = 77");
    let reading = cluster.forward(1, 1, "SELECT 1=>SELECT CAST(n AS TEXT) FROM stock");
    cluster.settle();
    assert_eq!(cluster.ran.len(), 1);
    assert!(!cluster.answered.contains_key(&reading));
    cluster.deliver_held();
    cluster.settle();
    let result = b"77".to_vec();
    assert_eq!(cluster.answered[&reading], Ok(Outcome::Unchanged { result }));
    assert_eq!(cluster.rows(1, "SELECT n FROM stock"), ["77"]);
}

#[test]
fn a_read_at_the_origin_is_answered_before_what_it_saw_has_come() {
    let mut cluster = cluster(3);
    cluster.held_frames = Some(Vec::new());
    cluster.write(0, "UPDATE stock SET n = 77");
    let reading = cluster.read_there(1, 1, "=>SELECT CAST(n AS TEXT) FROM stock");
    cluster.settle();
    let Ok(Outcome::Read { result, seen }) = cluster.answered[&reading].clone() else {
        panic!("{:?}", cluster.answered[&reading]);
    };
    assert_eq!(result, b"77");
    // Its bookmark says what to wait for, at whichever node.
    for node in [1, 2] {
        assert!(cluster.replica(node).db().reached(&seen).is_err());
    }
    cluster.deliver_held();
    cluster.settle();
    for node in [1, 2] {
        assert_eq!(cluster.replica(node).db().reached(&seen), Ok(()));
        assert_eq!(cluster.rows(node, "SELECT n FROM stock"), ["77"]);
    }
}

#[test]
fn a_read_there_waits_for_the_bookmark_that_its_node_has_not_reached() {
    let mut cluster = cluster(3);
    cluster.held_frames = Some(Vec::new());
    // Neither the node that is asked nor the origin has it.
    cluster.write(2, "INSERT INTO note VALUES ('a', 'tea')");
    let carried = cluster.replica(2).bookmark();
    assert!(cluster.replica(1).db().reached(&carried).is_err());
    let program = "=>SELECT words FROM note";
    let early = cluster.read_there_after(1, 1, program, Some(&carried));
    cluster.settle();
    assert_eq!(cluster.ran.len(), 0);
    cluster.wait(5000);
    assert!(matches!(cluster.answered[&early], Err(ForwardError::OriginUnreachable { .. })));
    let reading = cluster.read_there_after(1, 2, program, Some(&carried));
    cluster.settle();
    assert!(!cluster.answered.contains_key(&reading));
    cluster.deliver_held();
    cluster.settle();
    let Ok(Outcome::Read { result, .. }) = &cluster.answered[&reading] else {
        panic!("{:?}", cluster.answered[&reading]);
    };
    assert_eq!(result, b"tea");
}

#[test]
fn what_a_program_has_seen_that_failed_is_here_when_its_answer_is() {
    let mut cluster = cluster(2);
    cluster.held_frames = Some(Vec::new());
    cluster.write(0, "UPDATE stock SET n = 77");
    let failing = cluster.forward(1, 1, "UPDATE stock SET n = -1=>SELECT 1");
    cluster.settle();
    assert_eq!(cluster.ran.len(), 1);
    assert!(!cluster.answered.contains_key(&failing));
    cluster.deliver_held();
    cluster.settle();
    assert!(matches!(cluster.answered[&failing], Ok(Outcome::Failed { .. })));
    assert_eq!(cluster.rows(1, "SELECT n FROM stock"), ["77"]);
}

#[test]
fn a_read_that_is_not_answered_leaves_no_doubt() {
    let mut cluster = cluster(2);
    cluster.held_runs = Some(Vec::new());
    let reading = cluster.read_there(1, 1, "=>SELECT CAST(n AS TEXT) FROM stock");
    let writing = cluster.forward(1, 2, TAKE);
    cluster.settle();
    cluster.wait(5000);
    assert!(matches!(
        cluster.answered[&reading],
        Err(ForwardError::OriginUnreachable { origin: Some(_) })
    ));
    assert!(!cluster.answered.contains_key(&writing));
    cluster.wait(1000);
    assert!(matches!(cluster.answered[&writing], Err(ForwardError::Unknown { .. })));
    // The reply that comes late is nobody's.
    cluster.run_held(0);
    cluster.settle();
}

#[test]
fn who_meets_the_origin_hears_of_all_that_others_had_shown_before_they_met_it() {
    let mut cluster = cluster(3);
    let meet = |cluster: &mut Cluster, node: usize| {
        let now = cluster.now_at(node);
        let ticket = cluster.replica(node).meet_origin(now, Duration::from_secs(5));
        cluster.drain(node);
        (node, ticket)
    };
    // What the first has written has not come to the origin: it waits for that.
    cluster.held_frames = Some(Vec::new());
    cluster.write(1, "INSERT INTO note VALUES ('a', 'tea')");
    let first = meet(&mut cluster, 1);
    cluster.settle();
    assert!(!cluster.answered.contains_key(&first));
    cluster.deliver_held();
    cluster.settle();
    assert!(matches!(cluster.answered[&first], Ok(Outcome::Read { .. })));
    // The second one meets it then, and is told what to wait for.
    cluster.held_frames = Some(Vec::new());
    cluster.write(0, "UPDATE stock SET n = 77");
    let second = meet(&mut cluster, 2);
    cluster.settle();
    let Ok(Outcome::Read { seen, .. }) = cluster.answered[&second].clone() else {
        panic!("{:?}", cluster.answered[&second]);
    };
    assert!(cluster.replica(2).db().reached(&seen).is_err());
    cluster.deliver_held();
    cluster.settle();
    assert_eq!(cluster.replica(2).db().reached(&seen), Ok(()));
    assert_eq!(cluster.rows(2, "SELECT n FROM stock"), ["77"]);
    assert_eq!(cluster.rows(2, "SELECT count(*) FROM note"), ["1"]);
}
