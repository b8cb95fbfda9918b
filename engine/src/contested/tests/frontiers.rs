//! Frontiers: a replica that forgets what they cover decides like its shadow, which forgets nothing.

use super::*;

/// The origin, and what it has counted of the others.
#[derive(Debug, Default)]
struct Origin {
    acknowledged: Vec<VersionVector>,
    counted: Vec<VersionVector>,
}

#[derive(Debug, Clone)]
enum Event {
    Step(Step),
    Acknowledge(usize),
    Frontier,
    /// The clocks go through the file.
    Reopen(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => step().prop_map(Event::Step),
        2 => (1..AUTHORS).prop_map(Event::Acknowledge),
        2 => Just(Event::Frontier),
        1 => (0..AUTHORS).prop_map(Event::Reopen),
    ]
}

fn send(replicas: &mut [Replica], from: usize, to: usize, entries: usize) {
    let lacking: Vec<_> = replicas[from]
        .log
        .iter()
        .filter(|entry| !replicas[to].vector.covers(entry.header.dot))
        .take(entries)
        .cloned()
        .collect();
    for entry in &lacking {
        replicas[to].take(entry);
    }
}

impl Origin {
    fn frontier(&mut self, origin: &mut Replica) -> bool {
        let mut everywhere = origin.vector.clone();
        for index in 1..AUTHORS {
            let vector = &self.acknowledged[index];
            if origin.vector.seq(author(index)) >= vector.seq(author(index)) {
                self.counted[index].advance_all(vector);
            }
            everywhere.lower_to(&self.counted[index]);
        }
        origin.author_frontier(author(0), &everywhere).is_some()
    }
}

impl Replica {
    /// What opening the file does: the clocks that were saved, and nothing else.
    fn reopen(&mut self) {
        self.contested.save(&self.disk).unwrap();
        self.contested.saved();
        let stable = self.contested.stable().clone();
        self.contested = Contested::open(&self.disk, stable).unwrap();
    }
}

proptest! {
    #[test]
    fn who_forgets_what_frontiers_cover_decides_like_who_forgets_nothing(
        events in prop::collection::vec(event(), 1..150),
    ) {
        let mut replicas: Vec<Replica> = (0..AUTHORS).map(|_| Replica::default()).collect();
        let mut origin = Origin {
            acknowledged: vec![VersionVector::new(); AUTHORS],
            counted: vec![VersionVector::new(); AUTHORS],
        };
        for event in events {
            match event {
                Event::Step(Step::Write { author: index, wall, rows }) => {
                    let changes = possible(&replicas[index].rows, &rows);
                    if !changes.is_empty() {
                        replicas[index].write(author(index), wall, &changes);
                    }
                }
                Event::Step(Step::Send { from, to, entries }) => {
                    send(&mut replicas, from, to, entries);
                }
                Event::Acknowledge(index) => {
                    origin.acknowledged[index] = replicas[index].vector.clone();
                }
                Event::Frontier => drop(origin.frontier(&mut replicas[0])),
                Event::Reopen(index) => {
                    let before = exact(&replicas[index].contested);
                    replicas[index].reopen();
                    prop_assert_eq!(exact(&replicas[index].contested), before);
                }
            }
        }
        for round in 0.. {
            for (from, to) in [(1, 0), (2, 0), (0, 1), (0, 2)] {
                send(&mut replicas, from, to, usize::MAX);
            }
            for (index, replica) in replicas.iter().enumerate() {
                origin.acknowledged[index] = replica.vector.clone();
            }
            if !origin.frontier(&mut replicas[0]) {
                break;
            }
            prop_assert!(round < 5, "frontiers without end");
        }
        for replica in &replicas {
            prop_assert_eq!(&replica.rows, &replicas[0].rows);
            prop_assert_eq!(exact(&replica.contested), vec![], "something is remembered after quiet");
            prop_assert_eq!(replica.contested.shelf.shifts(), 0);
        }
    }
}

#[test]
fn a_frontier_that_goes_back_or_leaves_one_out_is_refused() {
    let mut replica = Replica::default();
    let stamp = replica.header(author(0), 1).stamp();
    let covered = VersionVector::from_iter([Dot { author: author(0), seq: 2 }]);
    let Replica { contested, disk, .. } = &mut replica;
    assert!(contested.frontier(disk, 2, &covered, stamp).is_err());
    contested.frontier(disk, 1, &covered, stamp).unwrap();
    assert!(contested.frontier(disk, 2, &VersionVector::new(), stamp).is_err());
}
