//! Runs the checker, prints what it cost, and shows a counterexample step by step.
#![expect(
    clippy::disallowed_methods,
    reason = "how long a run took, and how far a person wants it to go; never for a decision"
)]

use std::{collections::HashMap, env, fmt::Write, time::Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

use super::{
    protocol::{Action, Protocol},
    rules::{Bounds, Rule},
    state::State,
};

/// States, each with the step that was taken from it.
pub(crate) type Steps = Vec<(State, Option<Action>)>;

/// What came of a run.
pub(crate) struct Outcome {
    /// Every state within the bounds was visited.
    pub(crate) exhausted: bool,
    /// A broken invariant with the shortest way there.
    pub(crate) counterexample: Option<(&'static str, Steps)>,
    /// What was reached of that which should be possible.
    pub(crate) reached: Vec<&'static str>,
}

/// Searches breadth first until an invariant breaks, everything was visited, or `states` steps were made.
pub(crate) fn explore(name: &str, bounds: Bounds, without: Option<Rule>, states: usize) -> Outcome {
    let started = Instant::now();
    let limit = env_number("PGHERD_MODEL_STATES").unwrap_or(states);
    let protocol = Protocol { bounds, without };
    let builder = || {
        let threads = env_number("PGHERD_MODEL_THREADS").unwrap_or(1);
        protocol.checker().finish_when(HasDiscoveries::AnyFailures).target_state_count(limit).threads(threads)
    };
    let checker = builder().spawn_bfs().join();
    let mut outcome = observe(&protocol, checker.discoveries());
    outcome.exhausted = outcome.counterexample.is_none() && checker.state_count() < limit;
    // The checker keeps the last of those that it came upon at once.
    while let Some((_, path)) = &outcome.counterexample {
        let shorter = builder().target_max_depth(path.len() - 1).spawn_bfs().join();
        let again = observe(&protocol, shorter.discoveries());
        if again.counterexample.is_none() {
            break;
        }
        outcome.counterexample = again.counterexample;
    }
    let result = match &outcome.counterexample {
        Some((property, path)) => format!("after {} steps: not {property}", path.len() - 1),
        None if outcome.exhausted => "all visited, nothing found".to_owned(),
        None => "nothing found so far".to_owned(),
    };
    let rules = without.map_or_else(|| "all rules".to_owned(), |rule| format!("without {rule:?}"));
    println!(
        "{name}, {rules}: {} states ({} steps), depth {}, {:.1} s: {result}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64(),
    );
    outcome
}

fn observe(protocol: &Protocol, mut discoveries: HashMap<&'static str, Path<State, Action>>) -> Outcome {
    let mut outcome = Outcome { exhausted: false, counterexample: None, reached: Vec::new() };
    for property in protocol.properties() {
        let Some(path) = discoveries.remove(property.name) else { continue };
        let steps = path.into_vec();
        match property.expectation {
            Expectation::Always
                if outcome.counterexample.as_ref().is_none_or(|(_, least)| least.len() > steps.len()) =>
            {
                outcome.counterexample = Some((property.name, steps));
            }
            Expectation::Always => {}
            _ => outcome.reached.push(property.name),
        }
    }
    outcome
}

/// A number from the environment.
pub(crate) fn env_number(name: &str) -> Option<usize> {
    env::var(name).ok()?.parse().ok()
}

/// One line a step: what happened, then what has changed by it.
pub(crate) fn describe(steps: &Steps) -> String {
    let mut text = String::new();
    for (state, action) in steps {
        let _ = write!(text, "{}", line(state));
        if let Some(action) = action {
            let _ = write!(text, "\n  -> {action:?}\n");
        }
    }
    text
}

fn line(state: &State) -> String {
    let mut text = format!(
        "{:?} acked {:b} seen {:b} failed {:b} late {}",
        state.register, state.acked, state.seen, state.failed, state.late
    );
    for member in state.members.iter().filter(|member| member.run != super::state::Run::Absent) {
        let _ = write!(
            text,
            "\n     m{} wal {:?} term {} promoted {} sealed {} {:?}",
            member.id, member.wal, member.term, member.promoted, member.sealed, member.run
        );
    }
    text
}
