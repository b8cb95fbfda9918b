//! Interactive transactions: each as if its statements had come in one job, whatever happens between them.

#![expect(clippy::unwrap_used, reason = "a test says by panicking that it failed")]

mod support;

use littoral::{Committed, Input, Ticket, WriteError};

use self::support::{Cluster, explicit, linked};

const SCHEMA: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, v);
    CREATE TABLE own(id INTEGER PRIMARY KEY, v);";

impl Cluster {
    fn begin(&mut self, node: usize) -> Ticket {
        let now = self.now;
        let ticket = self.replica(node).begin(now);
        self.drain(node);
        ticket
    }

    fn step(&mut self, node: usize, ticket: Ticket, sql: &str) -> Result<(), WriteError> {
        let now = self.now;
        let result = self.replica(node).step(now, ticket, |tx| tx.execute_batch(sql));
        self.drain(node);
        result?
    }

    fn count(&mut self, node: usize, ticket: Ticket) -> i64 {
        let now = self.now;
        let count = self
            .replica(node)
            .step(now, ticket, |tx| tx.query_row("SELECT count(*) FROM t", [], |row| row.get(0)));
        count.unwrap().unwrap()
    }

    fn commit(&mut self, node: usize, ticket: Ticket) -> Result<Committed, WriteError> {
        let now = self.now;
        self.replica(node).commit(now, ticket);
        self.drain(node);
        self.done.remove(&(node, ticket)).unwrap()
    }

    fn abandon(&mut self, node: usize, ticket: Ticket) -> WriteError {
        let now = self.now;
        self.replica(node).abandon(now, ticket, WriteError::Aborted("given up".to_owned()));
        self.drain(node);
        self.done.remove(&(node, ticket)).unwrap().unwrap_err()
    }

    fn is_begun(&self, node: usize, ticket: Ticket) -> bool {
        self.begun.contains(&(node, ticket))
    }
}

fn two() -> Cluster {
    linked(2, SCHEMA, &[("t", explicit())])
}

#[test]
fn steps_become_one_entry() {
    let mut cluster = two();
    let ticket = cluster.begin(1);
    assert!(cluster.is_begun(1, ticket));
    cluster.step(1, ticket, "INSERT INTO t VALUES(1, 'a')").unwrap();
    cluster.settle();
    assert_eq!(cluster.count(1, ticket), 1);
    assert_eq!(cluster.rows(1, "SELECT * FROM t"), [""; 0], "nobody else sees it yet");
    cluster
        .step(1, ticket, "INSERT INTO t VALUES(2, 'b'); UPDATE t SET v = 'c' WHERE id = 1")
        .unwrap();
    let committed = cluster.commit(1, ticket).unwrap();
    assert!(committed.dot.is_some());
    cluster.assert_rows("SELECT * FROM t ORDER BY id", &["1|c", "2|b"]);
    assert!(
        matches!(cluster.step(1, ticket, "DELETE FROM t"), Err(WriteError::Aborted(_))),
        "over"
    );
}

#[test]
fn what_comes_meanwhile_waits_and_links_are_served() {
    let mut cluster = two();
    let ticket = cluster.begin(1);
    cluster.step(1, ticket, "INSERT INTO t VALUES(1, 'mine')").unwrap();
    cluster.write(0, "INSERT INTO t VALUES(2, 'theirs')");
    let now = cluster.now;
    let job = Box::new(|tx: &mut littoral::WriteTx<'_>| {
        tx.execute_batch("INSERT INTO t VALUES(3, 'job')")
    });
    let job = cluster.replica(1).write(now, job);
    // Longer than a link lives on which nothing is heard.
    for _ in 0..60 {
        cluster.wait(250);
    }
    assert_eq!(cluster.closed, []);
    assert_eq!(cluster.count(1, ticket), 1, "nothing comes in between");
    assert!(!cluster.done.contains_key(&(1, job)));
    cluster.commit(1, ticket).unwrap();
    assert!(cluster.done.remove(&(1, job)).unwrap().is_ok());
    cluster.assert_rows("SELECT * FROM t ORDER BY id", &["1|mine", "2|theirs", "3|job"]);
}

#[test]
fn what_is_given_up_leaves_nothing() {
    let mut cluster = two();
    let ticket = cluster.begin(1);
    cluster
        .step(1, ticket, "INSERT INTO t VALUES(1, 'a'); SAVEPOINT s; INSERT INTO t VALUES(2, 'b')")
        .unwrap();
    assert!(matches!(cluster.abandon(1, ticket), WriteError::Aborted(why) if why == "given up"));
    cluster.write(1, "INSERT INTO t VALUES(3, 'c')");
    cluster.assert_rows("SELECT * FROM t", &["3|c"]);
}

#[test]
fn a_failed_statement_and_savepoints_are_exact_across_steps() {
    let mut cluster = two();
    let ticket = cluster.begin(1);
    cluster.step(1, ticket, "INSERT INTO t VALUES(1, 'a')").unwrap();
    cluster.step(1, ticket, "SAVEPOINT s").unwrap();
    cluster.step(1, ticket, "INSERT INTO t VALUES(2, 'b')").unwrap();
    cluster.step(1, ticket, "INSERT INTO t VALUES(3, 'c'), (1, 'a')").unwrap_err();
    cluster.step(1, ticket, "ROLLBACK TO s").unwrap();
    cluster.step(1, ticket, "INSERT INTO t VALUES(4, 'd')").unwrap();
    for word in ["BEGIN", "COMMIT", "ROLLBACK"] {
        let refused = cluster.step(1, ticket, word).unwrap_err();
        assert!(matches!(refused, WriteError::Forbidden { .. }), "{refused}");
    }
    let refused = cluster.step(1, ticket, "INSERT INTO own VALUES(1, 1)").unwrap_err();
    assert!(matches!(refused, WriteError::OriginOnly { .. }), "{refused}");
    cluster.commit(1, ticket).unwrap();
    cluster.assert_rows("SELECT * FROM t ORDER BY id", &["1|a", "4|d"]);
}

#[test]
fn a_statement_that_ends_the_transaction_ends_it() {
    let mut cluster = two();
    let ticket = cluster.begin(1);
    cluster.step(1, ticket, "INSERT INTO t VALUES(1, 'a')").unwrap();
    cluster.step(1, ticket, "INSERT OR ROLLBACK INTO t VALUES(1, 'b')").unwrap_err();
    let ended = cluster.done.remove(&(1, ticket)).unwrap();
    assert!(matches!(ended, Err(WriteError::Aborted(_))));
    cluster.write(1, "INSERT INTO t VALUES(3, 'c')");
    cluster.assert_rows("SELECT * FROM t", &["3|c"]);
}

#[test]
fn turns_are_taken_in_order() {
    let mut cluster = two();
    let first = cluster.begin(1);
    let now = cluster.now;
    let job =
        |sql: &'static str| Box::new(move |tx: &mut littoral::WriteTx<'_>| tx.execute_batch(sql));
    let before = cluster.replica(1).write(now, job("INSERT INTO t VALUES(1, 'before')"));
    let second = cluster.begin(1);
    let gone = cluster.begin(1);
    let behind =
        cluster.replica(1).write(now, job("INSERT INTO t(id, v) SELECT 3, count(*) FROM t"));
    cluster.write(0, "INSERT INTO t VALUES(9, 'theirs')");
    assert!(!cluster.is_begun(1, second));
    assert!(
        matches!(cluster.abandon(1, gone), WriteError::Aborted(_)),
        "it need not wait to leave"
    );
    cluster.commit(1, first).unwrap();
    assert!(cluster.done.contains_key(&(1, before)) && cluster.is_begun(1, second));
    assert!(!cluster.done.contains_key(&(1, behind)) && !cluster.is_begun(1, gone));
    assert_eq!(cluster.count(1, second), 2, "others' entries have had their turn");
    cluster.step(1, second, "INSERT INTO t VALUES(2, 'second')").unwrap();
    cluster.commit(1, second).unwrap();
    assert!(cluster.done.contains_key(&(1, behind)));
    let rows = ["1|before", "2|second", "3|3", "9|theirs"];
    cluster.assert_rows("SELECT * FROM t ORDER BY id", &rows);
}

#[test]
fn closing_and_halting_give_it_up() {
    let mut cluster = two();
    let (open, waiting) = (cluster.begin(1), cluster.begin(1));
    cluster.step(1, open, "INSERT INTO t VALUES(1, 'a')").unwrap();
    let (now, replica) = (cluster.now, cluster.replicas[1].take().unwrap());
    let (outputs, closed) = replica.close(now);
    closed.unwrap();
    for ticket in [open, waiting] {
        let answered = outputs.iter().any(|output| {
            matches!(output, littoral::Output::Done { ticket: done, result: Err(WriteError::Unavailable(_)) } if *done == ticket)
        });
        assert!(answered, "{ticket:?}");
    }
    cluster.open(1);
    assert_eq!(cluster.rows(1, "SELECT * FROM t"), [""; 0]);

    let open = cluster.begin(1);
    cluster.step(1, open, "INSERT INTO t VALUES(1, 'a')").unwrap();
    cluster.handle(1, Input::SyncFailed("input/output error".to_owned()));
    assert!(matches!(cluster.done.remove(&(1, open)), Some(Err(WriteError::Unavailable(_)))));
    assert_eq!(cluster.rows(1, "SELECT * FROM t"), [""; 0]);
}

#[test]
fn who_is_no_member_cannot_begin() {
    let mut cluster = two();
    let newcomer = cluster.newcomer();
    let ticket = cluster.begin(newcomer);
    assert!(!cluster.is_begun(newcomer, ticket));
    let refused = cluster.done.remove(&(newcomer, ticket)).unwrap();
    assert!(matches!(refused, Err(WriteError::NotAMember)));
}

#[test]
fn a_change_of_the_schema_is_part_of_it() {
    let mut cluster = two();
    let ticket = cluster.begin(0);
    cluster
        .step(
            0,
            ticket,
            "INSERT INTO t VALUES(1, 'a'); CREATE TABLE more(id INTEGER PRIMARY KEY, v)",
        )
        .unwrap();
    cluster.step(0, ticket, "INSERT INTO more VALUES(1, 'x'); ALTER TABLE t ADD COLUMN w").unwrap();
    cluster.step(0, ticket, "UPDATE t SET w = 5").unwrap();
    cluster.commit(0, ticket).unwrap();
    cluster.assert_rows("SELECT t.w, more.v FROM t, more", &["5|x"]);
    let ticket = cluster.begin(0);
    cluster.step(0, ticket, "DROP TABLE more; INSERT INTO t VALUES(2, 'b', 6)").unwrap();
    cluster.abandon(0, ticket);
    cluster.write(0, "INSERT INTO more VALUES(2, 'y')");
    cluster.assert_rows("SELECT v FROM more ORDER BY id", &["x", "y"]);
}
