//! Runs the checker, prints what it cost, and shows a counterexample step by step.

use std::{env, fmt::Write, time::Instant};

use stateright::{Checker, Expectation, HasDiscoveries, Model, Path};

use super::{
    protocol::{Action, Protocol},
    rules::{Bounds, Rule},
    state::State,
};

/// What came of a run.
pub(crate) struct Outcome {
    /// Every state within the bounds was visited.
    pub(crate) exhausted: bool,
    /// The broken invariant and the steps that lead to it.
    pub(crate) counterexample: Option<(String, String)>,
    /// What was reached of that which should be possible.
    pub(crate) reached: Vec<&'static str>,
}

/// Searches breadth first until an invariant breaks, everything was visited, or `states` were.
pub(crate) fn explore(name: &str, bounds: Bounds, without: Option<Rule>, states: usize) -> Outcome {
    let started = Instant::now();
    let protocol = Protocol { bounds, without };
    let checker = protocol
        .checker()
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(env_number("PGHERD_MODEL_STATES").unwrap_or(states))
        .threads(env_number("PGHERD_MODEL_THREADS").unwrap_or(1))
        .spawn_bfs()
        .join();
    let discoveries = checker.discoveries();
    let properties = protocol.properties();
    let (mut counterexample, mut reached) = (None, Vec::new());
    for property in &properties {
        let Some(path) = discoveries.get(property.name) else { continue };
        match property.expectation {
            Expectation::Always => counterexample = Some((property.name.to_owned(), describe(path))),
            _ => reached.push(property.name),
        }
    }
    let exhausted = counterexample.is_none() && checker.state_count() < env_number("PGHERD_MODEL_STATES").unwrap_or(states);
    println!(
        "model {name}, without {without:?}: {} states ({} generated), depth {}, {:.1} s, {}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64(),
        match &counterexample {
            Some((property, path)) => format!("counterexample to {property} in {} steps", path.lines().count() - 1),
            None if exhausted => "all visited, no counterexample".to_owned(),
            None => "no counterexample so far".to_owned(),
        }
    );
    Outcome { exhausted, counterexample, reached }
}

/// A number from the environment.
pub(crate) fn env_number(name: &str) -> Option<usize> {
    env::var(name).ok()?.parse().ok()
}

/// One line a step: what happened, then what has changed by it.
fn describe(path: &Path<State, Action>) -> String {
    let mut text = String::new();
    let steps = path.clone().into_vec();
    for (state, action) in &steps {
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
