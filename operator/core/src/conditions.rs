//! Conditions of an object's status: merging keeps the transition time where the status did not change. Plain structs,
//! no Kubernetes types.

use jiff::Timestamp;

/// One condition, as in metav1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `Ready`, `Archiving`…
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word in PascalCase.
    pub reason: String,
    /// A sentence for people; may be empty.
    pub message: String,
    /// The generation that this was concluded from.
    pub observed_generation: Option<i64>,
    /// When `status` changed last.
    pub last_transition: Timestamp,
}

/// `new` in its order, each with the old transition time if the status is the same, else `now`. Old conditions of types
/// that `new` does not have are dropped: the controller that writes them names all of its types each time.
#[must_use]
pub fn merge_conditions(old: &[Condition], new: Vec<Condition>, now: Timestamp) -> Vec<Condition> {
    new.into_iter()
        .map(|mut condition| {
            let before = old.iter().find(|o| o.type_ == condition.type_ && o.status == condition.status);
            condition.last_transition = before.map_or(now, |o| o.last_transition);
            condition
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(status: &str, reason: &str, second: i64) -> Condition {
        Condition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: String::new(),
            observed_generation: Some(1),
            last_transition: Timestamp::from_second(second).expect("a time"),
        }
    }

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let now = Timestamp::from_second(100).expect("a time");
        let old = [condition("True", "Serving", 7)];
        assert_eq!(merge_conditions(&old, vec![condition("True", "Other", 0)], now), [condition("True", "Other", 7)]);
        assert_eq!(merge_conditions(&old, vec![condition("False", "Down", 0)], now), [condition("False", "Down", 100)]);
        assert_eq!(merge_conditions(&[], vec![condition("True", "New", 0)], now), [condition("True", "New", 100)]);
    }
}
