//! Wider bounds, for an afternoon: `make model T=deep`. `PGHERD_MODEL_STATES` says how many steps each run makes.

use super::{controls::is_safe, rules::Bounds, scripts, state::Budget};

const STEPS: usize = 10_000_000;
const ONE_EACH: Budget = Budget { crashes: 1, recopies: 1, wishes: 0, pauses: 1 };

#[test]
#[ignore = "takes minutes; make model T=deep"]
fn deep_everything_at_once_in_three_pods() {
    is_safe("everything, W = 1", Bounds { terms: 3, writes: 2, budget: ONE_EACH, ..Bounds::SMALL }, STEPS);
    is_safe("everything, W = 2", Bounds { acks: 2, terms: 3, writes: 2, budget: ONE_EACH, ..Bounds::SMALL }, STEPS);
}

#[test]
#[ignore = "takes minutes; make model T=deep"]
fn deep_three_terms_of_copies_and_of_promotions_that_take_one_number() {
    let copies = Budget { crashes: 0, pauses: 0, ..ONE_EACH };
    is_safe("copies", Bounds { terms: 3, budget: copies, ..Bounds::SMALL }, STEPS);
    is_safe("one number", Bounds { acks: 2, terms: 4, writes: 2, lone_timelines: true, ..Bounds::SMALL }, STEPS);
}

#[test]
#[ignore = "takes minutes; make model T=deep"]
fn deep_four_pods() {
    is_safe("four pods, W = 1", Bounds { pods: 4, terms: 3, ..Bounds::SMALL }, STEPS);
    is_safe("four pods, W = 2", Bounds { pods: 4, acks: 2, terms: 3, lone_timelines: true, ..Bounds::SMALL }, STEPS);
}

#[test]
#[ignore = "takes minutes; make model T=deep"]
fn deep_w_changes_while_the_primary_does() {
    let wishes = Budget { crashes: 0, recopies: 0, pauses: 0, wishes: 2 };
    is_safe("W changes", Bounds { terms: 3, writes: 2, budget: wishes, ..Bounds::SMALL }, STEPS);
}

#[test]
#[ignore = "takes minutes; make model T=deep"]
fn deep_two_timelines_of_one_number() {
    let bounds = Bounds { pods: 5, acks: 2, writes: 2, lone_timelines: true, ..Bounds::SMALL };
    let unrecorded: &[&[_]] = &[scripts::TWO_TIMELINES_OF_ONE_NUMBER];
    is_safe("not recorded", Bounds { terms: 4, script: unrecorded, ..bounds }, STEPS);
    let failed: &[&[_]] = &[scripts::TWO_TIMELINES_OF_ONE_NUMBER, scripts::RECORDED, scripts::A_WINNER_THAT_DIES];
    is_safe("a claim that failed", Bounds { terms: 5, script: failed, ..bounds }, 2 * STEPS);
}
