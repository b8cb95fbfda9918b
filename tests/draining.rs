//! SIGTERM under load: what is under way ends, nothing new begins, and nothing that was answered is lost.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::harness::{Client, Cluster, until};

const SCHEMA: &str = "CREATE TABLE items (id TEXT PRIMARY KEY NOT NULL, n INTEGER);";

#[test]
fn a_node_that_is_told_to_stop_answers_what_is_under_way_and_loses_nothing() {
    let cluster = Cluster::init(SCHEMA, &["items:writers=any"], &["origin", "edge1"]);
    let origin = cluster.serve("origin", &[]);
    let edge = cluster.serve("edge1", &[&origin]);
    edge.until_ready();
    let address = origin.http();

    // A read that takes a while, and writers that never pause.
    let slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500000) \
                SELECT count(*), (SELECT count(*) FROM items) FROM n";
    let begun = Arc::new(AtomicBool::new(false));
    let reader = {
        let begun = Arc::clone(&begun);
        thread::spawn(move || {
            let mut client = Client::connect(address).unwrap();
            begun.store(true, Ordering::Release);
            let step = json!({ "type": "execute", "stmt": { "sql": slow } });
            client.pipeline(&json!([step, { "type": "close" }])).unwrap()
        })
    };
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let acknowledged = Arc::clone(&acknowledged);
            thread::spawn(move || {
                let mut done = Vec::new();
                let mut client = Client::connect(address).unwrap();
                for n in 0.. {
                    let id = format!("w{writer}-{n}");
                    let sql = format!("INSERT INTO items VALUES ('{id}', {n})");
                    let step = json!({ "type": "execute", "stmt": { "sql": sql } });
                    let asked = client.pipeline(&json!([step, { "type": "close" }]));
                    let Ok(results) = asked else { break };
                    if results[0]["type"] != "ok" {
                        break;
                    }
                    done.push(id);
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                done
            })
        })
        .collect();
    until("some writes", || {
        acknowledged.load(Ordering::Relaxed) > 50 && begun.load(Ordering::Acquire)
    });
    thread::sleep(Duration::from_millis(50));
    let began = Instant::now();
    origin.stop();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let answer = reader.join().unwrap();
    assert_eq!(answer[0]["response"]["result"]["rows"][0][0]["value"], "1500000", "{answer:?}");
    let done: Vec<String> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    assert!(done.len() > 50);
    assert!(Client::connect(address).is_err(), "nobody listens any more");
    // The link was closed with a word, not lost.
    until("the edge to be alone", || edge.status()["peers"].as_array().unwrap().is_empty());
    let log = fs::read_to_string(cluster.home().join("edge1.log")).unwrap();
    assert!(log.contains("link lost") && log.contains("code 0"), "{log}");
    edge.stop();

    let origin = cluster.serve("origin", &[]);
    origin.until_ready();
    let count = origin.run(&["SELECT count(*) FROM items"]);
    let there: usize = count["rows"][0][0]["value"].as_str().unwrap().parse().unwrap();
    // One more of each writer may have been committed whose answer was cut off.
    assert!((done.len()..=done.len() + 4).contains(&there), "{there} rows of {}", done.len());
    for id in &done {
        let found = origin.run(&[&format!("SELECT count(*) FROM items WHERE id = '{id}'")]);
        assert_eq!(found["rows"][0][0]["value"], "1", "{id}");
    }
    origin.stop();
}

#[test]
fn a_peer_that_was_killed_is_not_waited_for() {
    let cluster = Cluster::init(SCHEMA, &["items:writers=any"], &["origin", "edge1"]);
    let origin = cluster.serve("origin", &[]);
    let edge = cluster.serve("edge1", &[&origin]);
    edge.until_ready();
    drop(origin);
    edge.stop();
    let log = fs::read_to_string(cluster.home().join("edge1.log")).unwrap();
    assert!(log.contains("the peer does not answer: it is not waited for"), "{log}");
    assert!(!log.contains("links did not close in time"), "{log}");
}
