//! Clients at every node read and write an `origin-strong` table while nodes are killed: one order explains
//! all that they were answered. It is the simulator's checker that looks for the order.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use littoral_sim::{Action, Operation, check_linearizable};
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, Node, batch, stop, until};

const SCHEMA: &str = "
    CREATE TABLE seat (id INTEGER PRIMARY KEY, holder INTEGER NOT NULL);
    CREATE VIEW seated AS SELECT id, holder FROM seat;";
const NAMES: [&str; 3] = ["origin", "edge1", "edge2"];
const SEATS: usize = 2;
const CLIENTS: usize = 6;

/// How many operations each client does.
const ROUNDS: usize = 40;

/// What all clients share.
struct World {
    /// Where the nodes take requests at present.
    addresses: [Mutex<SocketAddr>; 3],
    /// One clock for calls and answers.
    moments: AtomicU64,
    ended: AtomicU64,
    done: AtomicBool,
}

/// How an attempt ended.
enum Told {
    /// It took effect, and gave the first value of each statement.
    Done(Vec<Value>),
    /// It has had no effect.
    Never,
    /// Nobody knows.
    Doubt,
}

impl World {
    fn moment(&self) -> u64 {
        self.moments.fetch_add(1, Ordering::SeqCst)
    }

    fn client(&self, node: usize) -> Option<Client> {
        let address = *self.addresses[node].lock().unwrap_or_else(PoisonError::into_inner);
        Client::connect(address).ok()
    }

    /// Sends statements to a node, with a key if they write.
    fn send(&self, node: usize, key: Option<&str>, statements: &[Value]) -> Told {
        let Some(mut client) = self.client(node) else { return Told::Never };
        let request = match statements {
            [one] => json!({ "type": "execute", "stmt": one }),
            several => batch(several),
        };
        let body = json!({ "requests": [request, { "type": "close" }] }).to_string();
        let key: Vec<(&str, &str)> = key.iter().map(|key| ("idempotency-key", *key)).collect();
        let Ok(answer) = client.send_with("POST", "/v2/pipeline", &key, &body) else {
            return Told::Doubt;
        };
        assert_eq!(answer.status, 200, "{}", answer.body);
        let answer = answer.json();
        let first = &answer["results"][0];
        let result = &first["response"]["result"];
        let failed = first["error"]["code"].as_str().or_else(|| {
            result["step_errors"].as_array()?.iter().find_map(|error| error["code"].as_str())
        });
        match failed {
            None => {}
            Some("LITTORAL_ORIGIN_UNREACHABLE") => return Told::Never,
            Some("LITTORAL_OUTCOME_UNKNOWN") => return Told::Doubt,
            Some(code) => panic!("{code}: {answer}"),
        }
        let value = |result: &Value| result["rows"][0][0].clone();
        match result["step_results"].as_array() {
            // The first step is BEGIN.
            Some(steps) => Told::Done(steps[1..=statements.len()].iter().map(value).collect()),
            None => Told::Done(vec![value(result)]),
        }
    }

    /// Asks whether what was sent under a key was committed, until some node knows.
    fn is_committed(&self, key: &str) -> bool {
        let mut node = 0;
        let mut committed = None;
        until("the outcome of a request", || {
            node = (node + 1) % 3;
            let path = format!("/v1/outcome?key={key}");
            let answer = self.client(node).and_then(|mut it| it.send("POST", &path, "").ok());
            let outcome = answer.map(|answer| answer.json()["outcome"].clone());
            committed = outcome
                .as_ref()
                .and_then(|outcome| outcome.as_str())
                .map(|outcome| outcome == "committed");
            committed.is_some()
        });
        committed.unwrap()
    }
}

fn held(value: &Value) -> Option<i64> {
    match value["type"].as_str() {
        Some("integer") => Some(value["value"].as_str().unwrap().parse().unwrap()),
        Some("null") => None,
        _ => panic!("{value}"),
    }
}

/// One client: an operation after the other, each at another node.
fn act(world: &World, client: usize) -> Vec<(usize, Operation)> {
    let mut history = Vec::new();
    for round in 0..ROUNDS {
        let number = client * ROUNDS + round;
        let (seat, node) = (number % SEATS, (client + round) % 3);
        let new = i64::try_from(number).unwrap();
        let find = json!({ "sql": format!("SELECT (SELECT holder FROM seat WHERE id = {seat})") });
        let seen =
            json!({ "sql": format!("SELECT (SELECT holder FROM seated WHERE id = {seat})") });
        let take = json!({ "sql": format!(
            "INSERT INTO seat VALUES ({seat}, {new}) ON CONFLICT DO UPDATE SET holder = excluded.holder"
        ) });
        let leave = json!({ "sql": format!("DELETE FROM seat WHERE id = {seat}") });
        let (action, statements) = match (number / 2) % 7 {
            0 => (Action::Get, vec![seen]),
            1 | 4 => (Action::Put(new), vec![take]),
            3 => (Action::Swap(new), vec![find, take]),
            5 if number.is_multiple_of(3) => (Action::Clear, vec![leave]),
            _ => (Action::Get, vec![find]),
        };
        let key = format!("client-{client}-{round}");
        let key = (action != Action::Get).then_some(key.as_str());
        let who = format!("client {client} at {}", NAMES[node]);
        let called = world.moment();
        let mut told = world.send(node, key, &statements);
        let sees = matches!(action, Action::Get | Action::Swap(_));
        let mut saw = None;
        if let (Told::Doubt, Some(key)) = (&told, key)
            && round % 3 > 0
        {
            told = match world.is_committed(key) {
                true => Told::Done(Vec::new()),
                false => Told::Never,
            };
        }
        let answered = match told {
            Told::Never => None,
            Told::Doubt if action == Action::Get => None,
            Told::Doubt => Some(None),
            Told::Done(values) => {
                saw = values.first().filter(|_| sees).map(held);
                Some(Some(world.moment()))
            }
        };
        world.ended.fetch_add(1, Ordering::SeqCst);
        history.extend(
            answered.map(|answered| (seat, Operation { who, action, called, answered, saw })),
        );
    }
    history
}

/// Kills one node after the other, whenever some more operations are through, and starts it again.
fn harass(world: &World, cluster: &Cluster, nodes: &mut Vec<Node>) -> usize {
    let mut kills = 0;
    while !world.done.load(Ordering::SeqCst) {
        let next = world.ended.load(Ordering::SeqCst) + 25;
        until("some operations", || {
            world.done.load(Ordering::SeqCst) || world.ended.load(Ordering::SeqCst) >= next
        });
        let victim = [0, 1, 0, 2][kills % 4];
        kills += 1;
        let address = cluster.kill_and_serve_again(nodes, victim);
        *world.addresses[victim].lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
    kills
}

#[test]
fn a_table_that_is_read_at_the_origin_has_one_history_while_nodes_are_killed() {
    let cluster = Cluster::init(SCHEMA, &["seat:policy=origin-strong"], &NAMES);
    let mut nodes = cluster.serve_star(&NAMES);
    let world = World {
        addresses: [0, 1, 2].map(|node| Mutex::new(nodes[node].http())),
        moments: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        done: AtomicBool::new(false),
    };
    let (mut history, kills) = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn({
                    let world = &world;
                    move || act(world, client)
                })
            })
            .collect();
        let harassing = scope.spawn(|| harass(&world, &cluster, &mut nodes));
        let history: Vec<(usize, Operation)> =
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        world.done.store(true, Ordering::SeqCst);
        (history, harassing.join().unwrap())
    });
    nodes.iter().for_each(Node::until_ready);
    let answered = history.iter().filter(|(_, operation)| operation.answered.is_some()).count();
    assert!(kills >= 4 && answered > CLIENTS * ROUNDS / 2, "{kills} kills, {answered} answered");

    for seat in 0..SEATS {
        let find = json!({ "sql": format!("SELECT (SELECT holder FROM seat WHERE id = {seat})") });
        let called = world.moment();
        let mut found = None;
        until("the edge to reach the origin", || {
            if let Told::Done(values) = world.send(1, None, std::slice::from_ref(&find)) {
                found = values.first().map(held);
            }
            found.is_some()
        });
        let answered = Some(world.moment());
        let who = "who comes last".to_owned();
        history.push((seat, Operation { who, action: Action::Get, called, answered, saw: found }));
        let of_it = history.iter().filter(|(of, _)| *of == seat);
        let of_it: Vec<Operation> = of_it.map(|(_, operation)| operation.clone()).collect();
        if let Err(contradiction) = check_linearizable(None, &of_it) {
            panic!("seat {seat}: {contradiction}\n{of_it:#?}");
        }
        // The checker is not blind: a read of what is long gone fits nowhere.
        let stale = of_it.iter().find_map(|operation| match operation.action {
            Action::Put(new) if operation.answered.is_some() && found != Some(Some(new)) => {
                Some(new)
            }
            _ => None,
        });
        let late = world.moment();
        let stale = Operation {
            who: "a stale replica".to_owned(),
            action: Action::Get,
            called: late,
            answered: Some(world.moment()),
            saw: Some(stale),
        };
        assert!(check_linearizable(None, &[of_it, vec![stale]].concat()).is_err());
    }
    stop(nodes);
}
