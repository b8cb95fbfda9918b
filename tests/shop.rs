//! A shop that knows nothing of replication, at two edges and the origin.
//!
//! The shop is an application for Hono 4 on `@libsql/client` 0.18.0: products of the origin's with a greatest
//! lag, users read after write, `origin-strong` orders, a cart that counts on any node, a cache that expires, and
//! a checkout by `transaction("write")`. What its client sent and was answered is in `fixtures/shop-http.json`
//! and, over WebSockets, in `fixtures/shop-ws.json`: step by step, some at once, and the last of them after the
//! origin was killed. Here it is replayed; only batons, durations, the numbers of orders that are made at
//! once and rowids that are no keys may be others.

use std::{collections::BTreeMap, thread};

use serde_json::{Value, json};

use crate::harness::{Client, Cluster, Node, Socket, assert_converge, rows_of, stop};

const SCHEMA: &str = "
    CREATE TABLE products(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,
        price_cents INTEGER NOT NULL);
    CREATE TABLE users(id INTEGER PRIMARY KEY AUTOINCREMENT, email TEXT NOT NULL UNIQUE, name TEXT);
    CREATE TABLE orders(id INTEGER PRIMARY KEY AUTOINCREMENT,
        user_id INTEGER NOT NULL REFERENCES users(id), total_cents INTEGER NOT NULL,
        created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);
    CREATE TABLE order_items(order_id INTEGER NOT NULL REFERENCES orders(id),
        product_id INTEGER NOT NULL, quantity INTEGER NOT NULL, PRIMARY KEY(order_id, product_id));
    CREATE TABLE cache(key TEXT PRIMARY KEY NOT NULL, value TEXT,
        expires_at INTEGER NOT NULL DEFAULT 0);
    CREATE TABLE cart(user_id INTEGER NOT NULL, product_id INTEGER NOT NULL,
        quantity INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(user_id, product_id));";

const POLICIES: &[&str] = &[
    "products:policy=eventual,max_lag_ms=5000,on_stale=serve",
    "users:policy=read-after-write",
    "orders:policy=origin-strong",
    "order_items:policy=origin-strong",
    "cart:policy=read-after-write,writers=any,quantity=counter",
    "cache:policy=read-after-write,writers=any",
];

const NODES: [&str; 3] = ["origin", "edge1", "edge2"];

#[test]
fn a_shop_runs_on_any_edge_over_http() {
    replay(include_str!("fixtures/shop-http.json"), Wire::http);
}

#[test]
fn a_shop_runs_on_any_edge_over_websockets() {
    replay(include_str!("fixtures/shop-ws.json"), Wire::socket);
}

/// Between what was recorded and what is here.
#[derive(Default)]
struct Differences {
    batons: BTreeMap<String, Value>,
    /// The number of the order that this conversation makes: as recorded, and as given now.
    order: Option<(Value, Value)>,
    /// Others make orders at the same time.
    at_once: bool,
}

/// How the shop talks to a node.
enum Wire {
    Http(Client),
    Socket(Socket),
}

impl Wire {
    fn http(node: &Node) -> Self {
        Self::Http(node.client())
    }

    fn socket(node: &Node) -> Self {
        Self::Socket(Socket::connect(node, "hrana3, hrana2"))
    }

    /// Sends what was sent, and is to be answered what was answered.
    fn replay(&mut self, exchanges: &[Value], differ: &mut Differences, what: &str) {
        assert!(!exchanges.is_empty(), "{what}");
        for exchange in exchanges {
            match self {
                Self::Http(client) => {
                    let request = differ.request(&exchange["request"]);
                    let path = exchange["path"].as_str().unwrap();
                    let answer = client.send("POST", path, &request.to_string()).unwrap();
                    assert_eq!(exchange["status"], answer.status, "{what}: {}", answer.body);
                    differ.compare(&exchange["answer"], answer.json(), what);
                }
                Self::Socket(socket) => match &exchange["send"] {
                    Value::Null => {
                        let expected = &exchange["receive"];
                        // Streams do not wait for each other.
                        let given = socket.receive_of(&expected["request_id"]);
                        differ.compare(expected, given, what);
                    }
                    message => socket.send(&differ.request(message)),
                },
            }
        }
    }
}

impl Differences {
    /// A request as it is to be sent now.
    fn request(&self, recorded: &Value) -> Value {
        let mut request = recorded.clone();
        if let Some(baton) = recorded.get("baton").and_then(Value::as_str) {
            request["baton"] = self.batons[baton].clone();
        }
        if let Some((recorded, given)) = &self.order {
            of_order(&mut request, recorded, given);
        }
        request
    }

    fn compare(&mut self, recorded: &Value, mut given: Value, what: &str) {
        let mut expected = recorded.clone();
        if let Some(baton) = expected.get_mut("baton") {
            let now = given["baton"].take();
            assert_eq!(baton.is_null(), now.is_null(), "{what}");
            if let Value::String(baton) = baton.take() {
                self.batons.insert(baton, now);
            }
        }
        let mut orders = (None, None);
        settle(&mut expected, self.at_once, &mut orders.0);
        settle(&mut given, self.at_once, &mut orders.1);
        if let (Some(recorded), Some(given)) = orders {
            self.order = Some((recorded, given));
        }
        assert_eq!(expected, given, "{what}");
    }
}

/// Has the items of an order be of the one that is here: the number is the first argument, a float.
fn of_order(value: &mut Value, recorded: &Value, given: &Value) {
    let float = |id: &Value| {
        let id: i32 = id.as_str().unwrap().parse().unwrap();
        json!({ "type": "float", "value": id })
    };
    match value {
        Value::Object(fields) => {
            if let Some(first) = fields.get_mut("args").and_then(|args| args.get_mut(0))
                && *first == float(recorded)
            {
                *first = float(given);
            }
            fields.values_mut().for_each(|value| of_order(value, recorded, given));
        }
        Value::Array(values) => {
            values.iter_mut().for_each(|value| of_order(value, recorded, given));
        }
        _ => {}
    }
}

/// Takes out what is another one in every run, and the number of an order that others make at once.
fn settle(value: &mut Value, at_once: bool, order: &mut Option<Value>) {
    match value {
        Value::Object(fields) => {
            fields.remove("query_duration_ms");
            // The rowids of a table with another key are each node's own.
            let makes_id = fields.get("cols").is_some_and(|cols| cols[0]["name"] == "id");
            if !makes_id || at_once {
                fields.remove("last_insert_rowid");
            }
            if makes_id && at_once {
                *order = Some(fields["rows"][0][0]["value"].take());
            }
            fields.values_mut().for_each(|value| settle(value, at_once, order));
        }
        Value::Array(values) => {
            values.iter_mut().for_each(|value| settle(value, at_once, order));
        }
        _ => {}
    }
}

fn replay(recorded: &str, connect: fn(&Node) -> Wire) {
    let cluster = Cluster::init(SCHEMA, POLICIES, &NODES);
    let mut nodes = cluster.serve_star(&NODES);
    let mut wires: BTreeMap<String, Wire> =
        nodes.iter().map(|node| (node.name.clone(), connect(node))).collect();
    let steps: Vec<Value> = serde_json::from_str(recorded).unwrap();
    let mut checkouts = 0;
    for step in &steps {
        if step["settle"] == json!(true) {
            assert_converge(&nodes, &[]);
        } else if step["kill"].is_string() {
            let tables = ["products", "users", "orders", "order_items", "cache", "cart"];
            let tables = tables.map(|table| format!("SELECT * FROM {table}"));
            assert_converge(&nodes, &tables.each_ref().map(String::as_str));
            let items = "SELECT count(*) FROM orders o JOIN order_items i ON i.order_id = o.id";
            assert_eq!(rows_of(nodes[0].database(), items), [[12.into()]]);
            let origin = nodes.remove(0);
            assert_eq!(step["kill"], *origin.name);
            wires.remove(&origin.name);
            origin.kill();
        } else if let Some(conversations) = step["at_once"].as_array() {
            checkouts += conversations.len();
            thread::scope(|scope| {
                for conversation in conversations {
                    let node = nodes.iter().find(|node| conversation["at"] == *node.name).unwrap();
                    scope.spawn(move || {
                        let mut differ = Differences { at_once: true, ..Differences::default() };
                        converse(&mut connect(node), conversation, &mut differ);
                    });
                }
            });
        } else {
            let wire = wires.get_mut(step["at"].as_str().unwrap()).unwrap();
            converse(wire, step, &mut Differences::default());
        }
    }
    assert_eq!(checkouts, 14, "ten checkouts and four additions to one cart");
    assert_eq!(nodes.len(), 2, "the origin was killed");
    drop(wires);
    stop(nodes);
}

fn converse(wire: &mut Wire, step: &Value, differ: &mut Differences) {
    let what = format!("{} at {}", step["step"], step["at"]);
    wire.replay(step["exchanges"].as_array().unwrap(), differ, &what);
}
