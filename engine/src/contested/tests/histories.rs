//! Random histories: what authors wish, and the orders in which replicas take what they wrote.

use super::*;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Write {
        author: usize,
        wall: u64,
        rows: Vec<(usize, Wish)>,
    },
    /// The next entries of one replica's log go to another.
    Send {
        from: usize,
        to: usize,
        entries: usize,
    },
}

/// What an author would like to do to a row, as far as the row is there.
#[derive(Debug, Clone)]
pub(super) enum Wish {
    Put { name: Option<i64>, note: Option<i64>, count: i64, toggle: i64 },
    Delete,
}

/// Two that are kept in place, and one that is not.
pub(super) fn keys() -> [Vec<u8>; 3] {
    [vec![1], vec![1, 0], vec![2; 60]]
}

pub(super) fn author(index: usize) -> AuthorId {
    AuthorId { term: 1, counter: u32::try_from(index).unwrap() + 1 }
}

pub(super) fn wish() -> impl Strategy<Value = Wish> {
    let value = || prop::option::of(0i64..100);
    prop_oneof![
        3 => (value(), value(), -5i64..=5, 0i64..1 << TAGS_MAX)
            .prop_map(|(name, note, count, toggle)| Wish::Put { name, note, count, toggle }),
        1 => Just(Wish::Delete),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let rows = prop::collection::vec((0..keys().len(), wish()), 1..4);
    prop_oneof![
        (0..AUTHORS, 0u64..40, rows).prop_map(|(author, wall, rows)| Step::Write {
            author,
            wall,
            rows
        }),
        (0..AUTHORS, 0..AUTHORS, 1usize..8).prop_map(|(from, to, entries)| Step::Send {
            from,
            to,
            entries
        }),
    ]
}

pub(super) fn history() -> impl Strategy<Value = Vec<Rc<Written>>> {
    prop::collection::vec(step(), 1..60).prop_map(|steps| play(&steps).1)
}

/// Carries steps out; gives the replicas and every entry, in an order that is causal.
pub(super) fn play(steps: &[Step]) -> (Vec<Replica>, Vec<Rc<Written>>) {
    let mut replicas: Vec<Replica> = (0..AUTHORS).map(|_| Replica::default()).collect();
    let mut history = Vec::new();
    for step in steps {
        match step {
            Step::Write { author: index, wall, rows } => {
                let replica = &mut replicas[*index];
                let changes = possible(&replica.rows, rows);
                if !changes.is_empty() {
                    history.push(replica.write(author(*index), *wall, &changes));
                }
            }
            Step::Send { from, to, entries } => {
                let lacking: Vec<_> = replicas[*from]
                    .log
                    .iter()
                    .filter(|entry| !replicas[*to].vector.covers(entry.header.dot))
                    .take(*entries)
                    .cloned()
                    .collect();
                for entry in &lacking {
                    replicas[*to].take(entry);
                }
            }
        }
    }
    (replicas, history)
}

/// One change per key, in key order, as an entry has them.
pub(super) fn possible(rows: &Rows, wishes: &[(usize, Wish)]) -> Vec<(Vec<u8>, Change)> {
    let wishes: BTreeMap<_, _> =
        wishes.iter().map(|(key, wish)| (keys()[*key].clone(), wish)).collect();
    let change = |(key, wish): (Vec<u8>, &Wish)| {
        let change = match (*wish).clone() {
            Wish::Put { name, note, count, toggle } if rows.contains_key(&key) => {
                let tags = rows[&key][&TAGS];
                let (added, removed) = (toggle & !tags, toggle & tags);
                Change::Update { name, note, count, added, removed }
            }
            Wish::Put { name, note, count, toggle } => {
                let (name, note) = (name.unwrap_or_default(), note.unwrap_or_default());
                Change::Insert { name, note, count, tags: toggle }
            }
            Wish::Delete => Change::Delete,
        };
        let nothing = match change {
            Change::Delete => !rows.contains_key(&key),
            Change::Update { name, note, count, added, removed } => {
                name.or(note).is_none() && count == 0 && added | removed == 0
            }
            Change::Insert { .. } => false,
        };
        (!nothing).then_some((key, change))
    };
    wishes.into_iter().filter_map(change).collect()
}

/// Applies all entries to an empty replica, in the causal order that `picks` chooses.
pub(super) fn in_order(history: &[Rc<Written>], picks: &[usize]) -> Replica {
    let mut replica = Replica::default();
    let mut waiting: Vec<_> = history.to_vec();
    for pick in picks.iter().cycle() {
        let ready: Vec<usize> = (0..waiting.len())
            .filter(|&i| {
                let (stamp, context) = (waiting[i].stamp(), &waiting[i].context);
                replica.vector.covers_all(context)
                    && replica.vector.seq(stamp.author) + 1 == stamp.seq
            })
            .collect();
        let Some(&next) = ready.get(pick % ready.len().max(1)) else { break };
        replica.take(&waiting.remove(next));
    }
    assert!(waiting.is_empty());
    replica
}

pub(super) fn picks() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0usize..16, 1..32)
}
