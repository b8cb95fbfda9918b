//! [`check_linearizable`]: whether a history of operations on one register has an order in which each took
//! effect at one moment between its call and its answer.
//!
//! The search is Wing and Gong's with Lowe's memory of what was tried: it goes on from what has taken effect
//! so far, tries whichever operation can be next, and never tries twice to go on from the same operations
//! with the same value in the register. Rows are independent of each other, so each has its own history.
//!
//! An operation whose answer never came may have taken effect at any time after its call, or never. If it
//! explains anything, then what the next operation saw: so it is tried right before those that saw its value,
//! and nowhere else. One that is known not to have taken effect does not belong into the history.

use std::{collections::BTreeSet, fmt, mem};

/// What an operation does to the register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It reads the value.
    Get,
    /// It writes this value.
    Put(i64),
    /// It reads the value and writes this one, in one.
    Swap(i64),
    /// It takes the value out.
    Clear,
}

/// One operation of a history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who called it, for people.
    pub who: String,
    /// What it does.
    pub action: Action,
    /// When it was called: moments of one clock, of which no two operations share one.
    pub called: u64,
    /// When its answer came; `None` if none ever did.
    pub answered: Option<u64>,
    /// The value that it has read; `None` if it reads none, or if what it read was not told.
    pub saw: Option<Option<i64>>,
}

/// A history that nothing explains.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contradiction {
    /// The longest order that was found.
    explained: Vec<Operation>,
    /// The value after that.
    value: Option<i64>,
    /// Those of which one would have to be next.
    stuck: Vec<Operation>,
}

impl Operation {
    /// The value after it, if it can follow where the register holds `value`.
    fn apply(&self, value: Option<i64>) -> Option<Option<i64>> {
        if self.saw.is_some_and(|saw| saw != value)
            && !matches!(self.action, Action::Put(_) | Action::Clear)
        {
            return None;
        }
        Some(match self.action {
            Action::Get => value,
            Action::Put(new) | Action::Swap(new) => Some(new),
            Action::Clear => None,
        })
    }
}

/// Whether operations on a register that holds `initial` before the first of them can have taken effect one
/// after the other.
///
/// # Errors
/// How far an order can be found, and what does not fit then.
pub fn check_linearizable(
    initial: Option<i64>,
    history: &[Operation],
) -> Result<(), Box<Contradiction>> {
    let seen: BTreeSet<i64> = history.iter().filter_map(|operation| operation.saw?).collect();
    // What nobody has heard of, and nobody has seen, explains nothing.
    let explains = |operation: &&Operation| match operation.action {
        _ if operation.answered.is_some() => true,
        Action::Get => false,
        Action::Put(new) | Action::Swap(new) => seen.contains(&new),
        Action::Clear => true,
    };
    let mut history: Vec<&Operation> = history.iter().filter(explains).collect();
    history.sort_by_key(|operation| operation.called);
    Search {
        left: history.iter().filter(|operation| operation.answered.is_some()).count(),
        done: vec![false; history.len()],
        tried: BTreeSet::new(),
        history,
    }
    .run(initial)
}

struct Search<'h> {
    /// By the time of the call.
    history: Vec<&'h Operation>,
    /// Which have taken effect.
    done: Vec<bool>,
    /// How many have not, and must.
    left: usize,
    /// After which of them, with which value, and whether somebody had to see that next, was it tried to go on?
    tried: BTreeSet<(Vec<bool>, Option<i64>, bool)>,
}

/// An operation that has taken effect.
struct Step {
    operation: usize,
    /// The value before it.
    before: Option<i64>,
    /// What else could have been next.
    others: Vec<usize>,
}

impl Search<'_> {
    fn run(mut self, initial: Option<i64>) -> Result<(), Box<Contradiction>> {
        let mut value = initial;
        let mut path: Vec<Step> = Vec::new();
        let mut choices = self.choices();
        let mut farthest = (Vec::new(), value, choices.clone());
        while self.left > 0 {
            if let Some(operation) = choices.pop() {
                let Some(after) = self.history[operation].apply(value) else { continue };
                let guessed = self.history[operation].answered.is_none();
                self.done[operation] = true;
                if !self.tried.insert((self.done.clone(), after, guessed)) {
                    self.done[operation] = false;
                    continue;
                }
                self.left -= usize::from(!guessed);
                path.push(Step { operation, before: value, others: mem::take(&mut choices) });
                value = after;
                choices = self.choices();
                if guessed {
                    choices.retain(|place| self.history[*place].saw == Some(value));
                }
                if path.len() > farthest.0.len() {
                    let order = path.iter().map(|step| step.operation).collect();
                    farthest = (order, value, choices.clone());
                }
            } else if let Some(step) = path.pop() {
                self.done[step.operation] = false;
                self.left += usize::from(self.history[step.operation].answered.is_some());
                value = step.before;
                choices = step.others;
            } else {
                let (order, value, stuck) = farthest;
                let told = |operations: Vec<usize>| {
                    operations.into_iter().map(|place| self.history[place].clone()).collect()
                };
                let (explained, stuck) = (told(order), told(stuck));
                return Err(Box::new(Contradiction { explained, value, stuck }));
            }
        }
        Ok(())
    }

    /// What can be next: whatever was called before any of those that are left was answered. The last one is
    /// to be tried first.
    fn choices(&self) -> Vec<usize> {
        let mut choices = Vec::new();
        let mut first_answer = u64::MAX;
        for (place, operation) in self.history.iter().enumerate() {
            if operation.called > first_answer {
                break;
            }
            if !self.done[place] {
                choices.push(place);
                first_answer = first_answer.min(operation.answered.unwrap_or(u64::MAX));
            }
        }
        let last = |place: &usize| self.history[*place].answered.unwrap_or(u64::MAX);
        choices.sort_by_key(|place| std::cmp::Reverse(last(place)));
        choices
    }
}

fn tell(value: Option<i64>) -> String {
    value.map_or_else(|| "nothing".to_owned(), |n| n.to_string())
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.who)?;
        match self.action {
            Action::Get => write!(f, "reads")?,
            Action::Put(new) => write!(f, "writes {new}")?,
            Action::Swap(new) => write!(f, "swaps for {new}")?,
            Action::Clear => write!(f, "clears")?,
        }
        if let Some(saw) = self.saw {
            write!(f, " and sees {}", tell(saw))?;
        }
        let answered = self.answered.map_or_else(|| "no answer".to_owned(), |at| at.to_string());
        write!(f, " ({} to {answered})", self.called)
    }
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const TOLD: usize = 4;
        let value = tell(self.value);
        let told = |operations: &[Operation]| {
            operations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        let last = &self.explained[self.explained.len().saturating_sub(TOLD)..];
        write!(
            f,
            "no order explains what was answered: after {} operations (at last: {}) the value is {value}, and \
             none of these can be next: {}",
            self.explained.len(),
            told(last),
            told(&self.stuck)
        )
    }
}

impl std::error::Error for Contradiction {}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(action: Action, called: u64, answered: impl Into<Option<u64>>) -> Operation {
        Operation { who: "c".to_owned(), action, called, answered: answered.into(), saw: None }
    }

    fn get(called: u64, answered: u64, saw: Option<i64>) -> Operation {
        Operation { saw: Some(saw), ..op(Action::Get, called, answered) }
    }

    fn put(new: i64, called: u64, answered: impl Into<Option<u64>>) -> Operation {
        op(Action::Put(new), called, answered)
    }

    fn swap(new: i64, called: u64, answered: u64, saw: Option<i64>) -> Operation {
        Operation { saw: Some(saw), ..op(Action::Swap(new), called, answered) }
    }

    fn holds(history: &[Operation]) -> bool {
        check_linearizable(None, history).is_ok()
    }

    #[test]
    fn one_after_the_other() {
        assert!(holds(&[]));
        assert!(holds(&[
            put(1, 0, 1),
            get(2, 3, Some(1)),
            op(Action::Clear, 4, 5),
            get(6, 7, None)
        ]));
        assert!(!holds(&[put(1, 0, 1), get(2, 3, None)]));
        assert!(!holds(&[put(1, 0, 1), put(2, 2, 3), get(4, 5, Some(1))]));
        assert!(check_linearizable(Some(7), &[get(0, 1, Some(7))]).is_ok());
    }

    #[test]
    fn at_the_same_time_in_any_order() {
        let writes = [put(1, 0, 10), put(2, 1, 9)];
        for last in [1, 2] {
            assert!(holds(&[&writes[..], &[get(11, 12, Some(last))]].concat()));
        }
        // Who reads sees one order, and everybody the same.
        let both =
            |a, b| holds(&[&writes[..], &[get(11, 12, Some(a)), get(13, 14, Some(b))]].concat());
        assert!(both(1, 1) && both(2, 2) && !both(1, 2) && !both(2, 1));
    }

    #[test]
    fn a_read_never_goes_back() {
        // While the write is under way both values may be seen, the new one first by nobody who later sees
        // the old one.
        let write = put(1, 0, 20);
        assert!(holds(&[write.clone(), get(1, 2, None), get(3, 4, Some(1)), get(5, 6, Some(1))]));
        assert!(!holds(&[write.clone(), get(1, 2, Some(1)), get(3, 4, None)]));
        // They overlap: each may be first.
        assert!(holds(&[write, get(1, 4, Some(1)), get(2, 3, None)]));
    }

    #[test]
    fn swaps_form_one_chain() {
        assert!(holds(&[swap(1, 0, 9, None), swap(2, 1, 8, Some(1)), swap(3, 2, 7, Some(2))]));
        assert!(!holds(&[swap(1, 0, 9, None), swap(2, 1, 8, None)]), "both were the first");
        assert!(!holds(&[swap(1, 0, 9, Some(2)), swap(2, 1, 8, Some(1))]), "a circle");
        // The one in between has told nobody what it saw.
        let silent = Operation { saw: None, ..swap(2, 3, 4, None) };
        assert!(holds(&[swap(1, 0, 1, None), silent.clone(), swap(3, 5, 6, Some(2))]));
        assert!(!holds(&[swap(1, 0, 1, None), silent, swap(3, 5, 6, Some(1))]));
    }

    #[test]
    fn what_was_not_answered_took_effect_some_time_or_never() {
        let lost = put(9, 2, None);
        for saw in [1, 9] {
            assert!(holds(&[put(1, 0, 1), lost.clone(), get(10, 11, Some(saw))]));
        }
        // Late, once, and not before it was called.
        assert!(holds(&[put(1, 0, 1), lost.clone(), get(3, 4, Some(1)), get(5, 6, Some(9))]));
        let back =
            [put(1, 0, 1), lost.clone(), get(3, 4, Some(9)), put(2, 5, 6), get(7, 8, Some(9))];
        assert!(!holds(&back));
        assert!(!holds(&[get(0, 1, Some(9)), lost]));
        let cleared = [put(1, 0, 1), op(Action::Clear, 2, None), get(3, 4, None), get(5, 6, None)];
        assert!(holds(&cleared));
        assert!(!holds(&[&cleared[..], &[get(7, 8, Some(1))]].concat()));
    }

    #[test]
    fn what_was_answered_late_took_effect_at_last() {
        // An outcome query has told that it was committed.
        assert!(holds(&[put(1, 0, 1), put(2, 2, 20), get(3, 4, Some(1)), get(21, 22, Some(2))]));
        assert!(!holds(&[put(1, 0, 1), put(2, 2, 20), get(21, 22, Some(1))]));
    }

    #[test]
    fn many_that_were_never_answered_are_searched_in_time() {
        let mut history: Vec<Operation> =
            (0..24).map(|n| put(n, 2 * n.cast_unsigned(), None)).collect();
        for n in 0..24_i64 {
            let at = 1000 + 2 * n.cast_unsigned();
            history.push(get(at, at + 1, Some(23 - n)));
        }
        assert!(holds(&history));
        history.push(get(2000, 2001, Some(23)));
        assert!(!holds(&history));
    }

    /// Every history that a register with operations at random moments gives is linearizable, and one in
    /// which a read is changed to a value of long before is not.
    #[test]
    fn histories_of_a_real_register() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        for _ in 0..300 {
            let mut value = None;
            let mut history = Vec::new();
            let mut at = 100;
            for n in 0..40_i64 {
                // It takes effect at `at`, which is unique; its ends lie around that.
                at += 10;
                let called = at - draw(60) / 10 * 10 - 1 - draw(4);
                let answered = at + draw(60) / 10 * 10 + 1 + draw(4);
                // What the last read goes back to was answered: else it might come so late.
                let answered = (n == 0 || draw(10) > 0).then_some(answered);
                let mut operation = match draw(4) {
                    _ if n == 0 => put(0, called, answered),
                    0 => op(Action::Put(n), called, answered),
                    1 => Operation { saw: Some(value), ..op(Action::Swap(n), called, answered) },
                    2 if n > 5 => op(Action::Clear, called, answered),
                    _ => Operation { saw: Some(value), ..op(Action::Get, called, answered) },
                };
                if answered.is_none() {
                    operation.saw = None;
                }
                value = operation.apply(value).unwrap();
                history.push(operation);
            }
            assert!(holds(&history), "{history:?}");
            let end = at + 1000;
            history.push(put(1000, end, end + 1));
            history.push(get(end + 2, end + 3, Some(0)));
            assert!(!holds(&history), "{history:?}");
        }
    }
}
