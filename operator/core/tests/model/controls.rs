//! The runs. A rule that can be left out without harm would be found here by its missing counterexample.

use super::{
    protocol::{BLOCKED, FAILOVER, I1, I2, I4_FAILED, I4_SEEN, REJOIN, VOTERS},
    rules::{Bounds, Rule},
    runs::{describe, explore},
    scripts,
    state::Budget,
};

const CAP: usize = 40_000_000;
const NOTHING: Budget = Budget { crashes: 0, recopies: 0, wishes: 0, pauses: 0 };

/// Nothing is found with all rules, and everything was visited.
fn holds(name: &str, bounds: Bounds) -> Vec<&'static str> {
    let outcome = explore(name, bounds, None, CAP);
    if let Some((property, path)) = &outcome.counterexample {
        panic!("not {property}\n{}", describe(path));
    }
    assert!(outcome.exhausted, "{name}: the bounds are too wide for the number of states");
    outcome.reached
}

/// Without the rule one of these invariants breaks.
fn needs(name: &str, bounds: Bounds, rule: Rule, invariants: &[&str]) {
    let Some((property, path)) = explore(name, bounds, Some(rule), CAP).counterexample else {
        panic!("{name}: no counterexample without {rule:?}: the model is too weak");
    };
    assert!(invariants.contains(&property), "{name}: not {property}\n{}", describe(&path));
}

const ONE_FAILOVER: Bounds = Bounds::SMALL;
const TWO_FAILOVERS: Bounds = Bounds { terms: 3, ..Bounds::SMALL };
const JOINING: Bounds = Bounds { voters: 0b0010, ..Bounds::SMALL };
const RECOPIED: Bounds = Bounds { budget: Budget { recopies: 1, ..NOTHING }, ..Bounds::SMALL };
const RESTARTED: Bounds = Bounds { budget: Budget { crashes: 1, ..NOTHING }, ..Bounds::SMALL };
const BOTH_ACKNOWLEDGE: Bounds = Bounds { acks: 2, terms: 3, ..Bounds::SMALL };

#[test]
fn one_failover() {
    let reached = holds("one failover", ONE_FAILOVER);
    assert!([FAILOVER, BLOCKED].iter().all(|property| reached.contains(property)), "{reached:?}");
    needs("one failover", ONE_FAILOVER, Rule::Seal, &[I1, I2]);
    needs("one failover", ONE_FAILOVER, Rule::ReceiverWait, &[I1, I2]);
    needs("one failover", ONE_FAILOVER, Rule::Quorum, &[I1]);
}

#[test]
fn two_failovers() {
    holds("two failovers", TWO_FAILOVERS);
    needs("two failovers", TWO_FAILOVERS, Rule::OldVoters, &[I1]);
}

#[test]
fn joining() {
    let reached = holds("joining", JOINING);
    needs("joining", JOINING, Rule::PendingProven, &[I1]);
    println!("{reached:?}");
}

#[test]
fn recopied() {
    let reached = holds("recopied", RECOPIED);
    assert!([VOTERS, REJOIN].iter().all(|property| reached.contains(property)), "{reached:?}");
    needs("recopied", RECOPIED, Rule::NewMember, &[I1]);
    needs("recopied", RECOPIED, Rule::Barrier, &[I1]);
}

#[test]
fn restarted() {
    holds("restarted", RESTARTED);
    needs("restarted", RESTARTED, Rule::Gate, &[I4_SEEN, I4_FAILED]);
}

#[test]
fn both_acknowledge() {
    holds("both acknowledge", BOTH_ACKNOWLEDGE);
    needs("both acknowledge", BOTH_ACKNOWLEDGE, Rule::StrictSettings, &[I1, I2]);
}

const COLLIDED: Bounds = Bounds {
    pods: 5,
    acks: 2,
    terms: 4,
    writes: 2,
    lone_timelines: true,
    script: scripts::TWO_TIMELINES_OF_ONE_NUMBER,
    ..Bounds::SMALL
};

#[test]
fn collided() {
    holds("two timelines of one number", COLLIDED);
    needs("two timelines of one number", COLLIDED, Rule::TermComparison, &[I1]);
}

const FOLLOWED_THE_FAILED_ONE: Bounds = Bounds {
    acks: 2,
    terms: 4,
    writes: 2,
    lone_timelines: true,
    script: scripts::A_FOLLOWER_OF_THE_FAILED_PROMOTION,
    ..Bounds::SMALL
};

#[test]
fn followed_the_failed_one() {
    holds("a follower of the failed promotion", FOLLOWED_THE_FAILED_ONE);
    needs("a follower of the failed promotion", FOLLOWED_THE_FAILED_ONE, Rule::TermBeforeFollowing, &[I1, I4_FAILED]);
}

const SAME_POD_AGAIN: Bounds =
    Bounds { terms: 3, budget: Budget { crashes: 2, ..NOTHING }, script: scripts::THE_SAME_POD_AGAIN, ..Bounds::SMALL };

#[test]
fn same_pod_again() {
    holds("the same pod again", SAME_POD_AGAIN);
    needs("the same pod again", SAME_POD_AGAIN, Rule::TermBeforeWal, &[I1]);
}

const SLOW: Bounds = Bounds { terms: 3, budget: Budget { pauses: 1, ..NOTHING }, ..Bounds::SMALL };

#[test]
fn slow() {
    holds("a slow operator", SLOW);
    needs("a slow operator", SLOW, Rule::CompareAndSwap, &[I1, I2]);
}

const WISHES: Bounds = Bounds { writes: 2, budget: Budget { wishes: 2, ..NOTHING }, ..Bounds::SMALL };

#[test]
fn wishes() {
    holds("the user changes W", WISHES);
}

const WIDE: Bounds = Bounds {
    terms: 3, writes: 2, budget: Budget { crashes: 1, recopies: 1, pauses: 1, wishes: 0 }, ..Bounds::SMALL };

#[test]
#[ignore]
fn wide() {
    holds("wide", WIDE);
}

#[test]
#[ignore]
fn a() {
    holds("a", Bounds { terms: 3, writes: 2, ..Bounds::SMALL });
    holds("a crash", Bounds { terms: 3, writes: 1, budget: Budget { crashes: 1, ..NOTHING }, ..Bounds::SMALL });
    holds("a recopy", Bounds { terms: 3, writes: 1, budget: Budget { recopies: 1, ..NOTHING }, ..Bounds::SMALL });
    holds("w2 crash", Bounds { terms: 3, acks: 2, writes: 1, budget: Budget { crashes: 1, ..NOTHING }, ..Bounds::SMALL });
    holds("w2 lone", Bounds { terms: 3, acks: 2, writes: 2, lone_timelines: true, ..Bounds::SMALL });
    holds("four", Bounds { pods: 4, terms: 2, acks: 2, writes: 1, ..Bounds::SMALL });
}
#[test]
#[ignore]
fn b() {
    holds("collided 5", Bounds { terms: 5, ..COLLIDED });
}
