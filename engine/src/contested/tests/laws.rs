//! The laws of merge, held against random causal histories.

use super::*;

proptest! {
    #[test]
    fn every_causal_order_ends_in_the_same_clocks_and_rows(
        history in history(), one in picks(), other in picks(),
    ) {
        let (one, other) = (in_order(&history, &one), in_order(&history, &other));
        prop_assert_eq!(one.clocks(), other.clocks());
        prop_assert_eq!(&one.rows, &other.rows);
    }

    #[test]
    fn rows_are_what_the_set_of_entries_means(history in history(), order in picks()) {
        prop_assert_eq!(in_order(&history, &order).rows, specified(&history));
    }

    #[test]
    fn counters_lose_no_increment_and_count_none_twice(
        increments in prop::collection::vec((0..AUTHORS, -9i64..9), 1..20), order in picks(),
    ) {
        let mut cluster = Cluster::with_row();
        for (index, count) in &increments {
            cluster.write(*index, put(None, None, *count));
        }
        let sum = increments.iter().map(|(_, count)| count).sum::<i64>();
        let row = in_order(&cluster.history, &order).rows.remove(&Cluster::key()).unwrap();
        prop_assert_eq!(row[&COUNT], sum);
    }

    #[test]
    fn replaying_the_log_of_a_replica_gives_its_clocks_and_rows(steps in prop::collection::vec(step(), 1..60)) {
        for replica in play(&steps).0 {
            let mut again = Replica::default();
            for entry in &replica.log {
                again.take(entry);
            }
            prop_assert_eq!(again.clocks(), replica.clocks());
            prop_assert_eq!(again.rows, replica.rows, "own writes take effect whole");
        }
    }

    #[test]
    fn entries_that_come_again_change_no_clock_but_of_sets(history in history(), order in picks()) {
        // An add that comes again comes after its removal: that entries come once is the log's business.
        let clocks_of = |replica: &Replica| {
            let mut clocks = replica.clocks();
            clocks.values_mut().for_each(|clock| clock.3.clear());
            clocks.retain(|_, clock| *clock != PlainClock::default());
            clocks
        };
        let mut replica = in_order(&history, &order);
        let clocks = clocks_of(&replica);
        for entry in &history {
            for op in &entry.ops {
                replica.apply(op, &entry.header);
            }
        }
        prop_assert_eq!(clocks_of(&replica), clocks);
    }

    #[test]
    fn undo_takes_back_exactly_what_came_after_the_mark(history in history(), at in 0usize..60) {
        let (before, after) = history.split_at(at.min(history.len()));
        let mut replica = Replica::default();
        for entry in before {
            replica.take(entry);
        }
        let marked = exact(&replica.contested);
        replica.contested.mark();
        for entry in after {
            replica.take(entry);
        }
        let kept = replica.clocks();
        replica.contested.undo();
        prop_assert_eq!(exact(&replica.contested), marked);

        replica.contested.mark();
        for entry in after {
            for op in &entry.ops {
                let mut effects = Effects::default();
                let Replica { contested, disk, .. } = &mut replica;
                let taken = with_op(op, false, |op| {
                    contested.taking(disk).apply(op, &entry.header, &ASSIGNED, &mut effects)
                });
                taken.unwrap();
            }
        }
        replica.contested.keep();
        replica.contested.undo();
        prop_assert_eq!(replica.clocks(), kept, "what is kept cannot be undone");
    }

    #[test]
    fn undo_takes_back_local_writes(
        history in history(), wishes in prop::collection::vec((0..keys().len(), wish()), 1..4),
    ) {
        let mut replica = in_order(&history, &[0]);
        let marked = exact(&replica.contested);
        let changes = possible(&replica.rows, &wishes);
        replica.contested.mark();
        replica.write(author(0), 0, &changes);
        replica.contested.undo();
        prop_assert_eq!(exact(&replica.contested), marked);
    }

    #[test]
    fn many_rows_are_written_and_found_in_any_order(
        batches in prop::collection::vec(prop::collection::btree_set(0u16..200, 0..80), 1..4),
        asked in prop::collection::vec(0u16..200, 0..40),
    ) {
        // Long enough for rows to fill several blocks.
        let bytes = |key: u16| [&key.to_be_bytes()[..], &[7; 60]].concat();
        let mut replica = Replica::default();
        for batch in &batches {
            let changes: Vec<(Vec<u8>, Change)> = batch
                .iter()
                .map(|key| bytes(*key))
                .map(|key| {
                    let present = replica.rows.contains_key(&key);
                    (key, if present { name(1) } else { insert(0, 0, 0) })
                })
                .collect();
            replica.write(author(0), 0, &changes);
        }
        let clocks = replica.clocks();
        let last = |key: u16| {
            (1..).zip(&batches).filter(|(_, batch)| batch.contains(&key)).map(|(seq, _)| seq).last()
        };
        let mut cursor = replica.contested.cursor(&replica.disk);
        for key in asked {
            let found = cursor.row(TABLE, &bytes(key)).unwrap();
            let seq = found.as_ref().and_then(|clock| clock.cell(NAME)).map(|stamp| stamp.seq);
            prop_assert_eq!(seq, last(key));
            prop_assert_eq!(found.is_some(), clocks.contains_key(&bytes(key)[..]));
        }
    }
}
