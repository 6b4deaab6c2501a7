//! The runs. Each is made with all rules, then without one of them within the same bounds: a rule that could be left out
//! without harm, or a model that is too weak to show the harm, would be found by the missing counterexample.

use super::{
    protocol::{BLOCKED, FAILOVER, I1, I2, I4_FAILED, I4_SEEN, REJOIN, VOTERS},
    rules::{Bounds, Rule},
    runs::{describe, explore},
    scripts,
    state::Budget,
};

/// No run that is to visit everything makes more steps.
const ENOUGH: usize = 60_000_000;
/// So many steps of a run that is visited to its end only by `deep`.
const SOME: usize = 500_000;
const NOTHING: Budget = Budget { crashes: 0, recopies: 0, wishes: 0, pauses: 0 };

/// Nothing is found with all rules, and everything was visited. Returns what was reached.
fn holds(name: &str, bounds: Bounds) -> Vec<&'static str> {
    let (reached, exhausted) = is_safe(name, bounds, ENOUGH);
    assert!(exhausted, "{name}: the bounds are too wide for the number of steps");
    reached
}

/// Nothing is found with all rules; the second says whether everything was visited.
pub(crate) fn is_safe(name: &str, bounds: Bounds, steps: usize) -> (Vec<&'static str>, bool) {
    let outcome = explore(name, bounds, None, steps);
    if let Some((property, path)) = &outcome.counterexample {
        panic!("{name}: not {property}\n{}", describe(path));
    }
    (outcome.reached, outcome.exhausted)
}

/// Without the rule one of these invariants breaks.
fn needs(name: &str, bounds: Bounds, rule: Rule, invariants: &[&str]) {
    let Some((property, path)) = explore(name, bounds, Some(rule), ENOUGH).counterexample else {
        panic!("{name}: no counterexample without {rule:?}: the model is too weak");
    };
    assert!(invariants.contains(&property), "{name}: not {property}\n{}", describe(&path));
}

#[track_caller]
fn assert_reached(reached: &[&str], wanted: &[&str]) {
    assert!(wanted.iter().all(|property| reached.contains(property)), "only {reached:?} was reached");
}

#[test]
fn a_failover_needs_the_seal_the_wait_for_the_receiver_and_a_quorum() {
    let (name, bounds) = ("one failover", Bounds::SMALL);
    assert_reached(&holds(name, bounds), &[FAILOVER, BLOCKED]);
    needs(name, bounds, Rule::Seal, &[I1, I2]);
    needs(name, bounds, Rule::ReceiverWait, &[I1, I2]);
    needs(name, bounds, Rule::Quorum, &[I1]);
}

#[test]
fn a_second_failover_needs_the_voters_of_the_first() {
    let (name, bounds) = ("two failovers", Bounds { terms: 3, writes: 2, ..Bounds::SMALL });
    holds(name, bounds);
    needs(name, bounds, Rule::OldVoters, &[I1]);
}

#[test]
fn a_change_of_voters_needs_both_sets() {
    let (name, bounds) = ("a voter joins", Bounds { voters: 0b0_0010, writes: 2, ..Bounds::SMALL });
    assert_reached(&holds(name, bounds), &[FAILOVER, VOTERS, REJOIN]);
    needs(name, bounds, Rule::PendingProven, &[I1, I2]);
}

#[test]
fn a_new_copy_needs_to_be_a_new_member_and_its_voters_the_barrier() {
    let (name, bounds) = ("a new copy", Bounds { budget: Budget { recopies: 1, ..NOTHING }, ..Bounds::SMALL });
    assert_reached(&holds(name, bounds), &[VOTERS, REJOIN]);
    needs(name, bounds, Rule::NewMember, &[I1]);
    needs(name, bounds, Rule::Barrier, &[I1]);
}

#[test]
fn a_restarted_primary_needs_the_gate() {
    let bounds = Bounds { terms: 3, budget: Budget { crashes: 1, ..NOTHING }, ..Bounds::SMALL };
    let name = "a crash";
    holds(name, bounds);
    needs(name, bounds, Rule::Gate, &[I4_SEEN, I4_FAILED]);
}

#[test]
fn a_promotion_needs_strict_settings_before_it() {
    let (name, bounds) = ("W = 2 of N = 2", Bounds { acks: 2, terms: 3, ..Bounds::SMALL });
    holds(name, bounds);
    needs(name, bounds, Rule::StrictSettings, &[I1, I2]);
}

#[test]
fn a_second_operator_that_is_slow_needs_the_compare_and_swap() {
    let bounds = Bounds { terms: 3, budget: Budget { pauses: 1, ..NOTHING }, ..Bounds::SMALL };
    let name = "a slow operator";
    holds(name, bounds);
    needs(name, bounds, Rule::CompareAndSwap, &[I1, I2, I4_FAILED]);
}

#[test]
fn the_user_may_change_w_at_any_time() {
    let bounds = Bounds { writes: 2, budget: Budget { wishes: 2, ..NOTHING }, ..Bounds::SMALL };
    holds("W changes", bounds);
    // Between what a primary applies and what the register says of it, in either order.
    let crash = Bounds { budget: Budget { crashes: 1, ..bounds.budget }, ..bounds };
    holds("W changes, and a crash", crash);
    needs("W changes, and a crash", crash, Rule::Barrier, &[I1]);
    needs("W changes, and a crash", crash, Rule::PendingProven, &[I1, I2]);
}

#[test]
fn two_timelines_of_one_number_need_the_comparison_of_terms() {
    let bounds = Bounds { pods: 5, acks: 2, terms: 4, writes: 2, lone_timelines: true, ..Bounds::SMALL };
    let name = "two timelines of one number, recorded";
    let recorded: &[&[_]] = &[scripts::TWO_TIMELINES_OF_ONE_NUMBER, scripts::RECORDED];
    holds(name, Bounds { script: recorded, ..bounds });
    needs(name, Bounds { script: recorded, ..bounds }, Rule::TermComparison, &[I1]);
    let name = "two timelines of one number, not recorded";
    let unrecorded = Bounds { script: &[scripts::TWO_TIMELINES_OF_ONE_NUMBER], ..bounds };
    is_safe(name, unrecorded, SOME);
    needs(name, unrecorded, Rule::TermComparison, &[I1]);
    let name = "two timelines of one number, and a claim that failed";
    let script: &[&[_]] = &[scripts::TWO_TIMELINES_OF_ONE_NUMBER, scripts::RECORDED, scripts::A_WINNER_THAT_DIES];
    is_safe(name, Bounds { terms: 5, script, ..bounds }, SOME);
    needs(name, Bounds { terms: 5, script, ..bounds }, Rule::TermComparison, &[I1]);
}

#[test]
fn a_follower_of_a_failed_promotion_needs_the_comparison_of_terms_before_it_follows_another() {
    let script: &[&[_]] = &[scripts::A_FOLLOWER_OF_THE_FAILED_PROMOTION];
    let bounds = Bounds { acks: 2, terms: 4, writes: 2, lone_timelines: true, script, ..Bounds::SMALL };
    let name = "a follower of a failed promotion";
    holds(name, bounds);
    needs(name, bounds, Rule::TermBeforeFollowing, &[I1, I4_FAILED]);
}

#[test]
fn a_role_that_returns_to_its_pod_needs_the_term_before_the_wal() {
    let script: &[&[_]] = &[scripts::THE_SAME_POD_AGAIN];
    let bounds = Bounds { terms: 3, budget: Budget { crashes: 2, ..NOTHING }, script, ..Bounds::SMALL };
    let name = "the same pod again";
    holds(name, bounds);
    needs(name, bounds, Rule::TermBeforeWal, &[I1]);
}
