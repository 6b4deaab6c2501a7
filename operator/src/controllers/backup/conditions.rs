//! Conditions of Backups and BackupSchedules: between the API's form and core's merge. Pure.

use jiff::Timestamp;
use pgherd_core::conditions::{Condition as CoreCondition, merge_conditions};
use pgherd_crds::v1alpha1::shared::Condition;

/// One condition to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said<'a> {
    /// Its type.
    pub type_: &'static str,
    /// `True` or `False`.
    pub holds: bool,
    /// One word in PascalCase.
    pub reason: &'a str,
    /// One sentence.
    pub message: &'a str,
}

/// `said` in its order, each with the transition time of the published condition if its status stays. What can't be
/// parsed of the published ones counts as absent.
#[must_use]
pub fn build_conditions(
    old: &[Condition],
    said: &[Said<'_>],
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let old: Vec<CoreCondition> = old.iter().filter_map(parse_condition).collect();
    let new = said
        .iter()
        .map(|said| CoreCondition {
            type_: said.type_.to_owned(),
            status: if said.holds { "True" } else { "False" }.to_owned(),
            reason: said.reason.to_owned(),
            message: said.message.to_owned(),
            observed_generation: generation,
            last_transition: now,
        })
        .collect();
    merge_conditions(&old, new, now).into_iter().map(render_condition).collect()
}

fn parse_condition(condition: &Condition) -> Option<CoreCondition> {
    Some(CoreCondition {
        type_: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        observed_generation: condition.observed_generation,
        last_transition: condition.last_transition_time.parse().ok()?,
    })
}

fn render_condition(condition: CoreCondition) -> Condition {
    Condition {
        type_: condition.type_,
        status: condition.status,
        reason: condition.reason,
        message: condition.message,
        last_transition_time: render_seconds(condition.last_transition),
        observed_generation: condition.observed_generation,
    }
}

/// RFC 3339 in UTC, whole seconds, as the API server writes times.
#[must_use]
pub fn render_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
