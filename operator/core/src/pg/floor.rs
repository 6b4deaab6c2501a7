//! The settings that a standby must have at least as high as the primary had whose WAL it replays: below that it does not start, or
//! pauses its replay where the primary's WAL says so (PostgreSQL, "Hot Standby", administrator's overview). Pure.

use std::collections::BTreeMap;

use super::conf::find_configured;

/// As pg_controldata names it, as postgresql.conf does, and what PostgreSQL has where nobody sets it.
const SETTINGS: [(&str, &str, u64); 5] = [
    ("max_connections setting", "max_connections", 100),
    ("max_worker_processes setting", "max_worker_processes", 8),
    ("max_wal_senders setting", "max_wal_senders", 10),
    ("max_prepared_xacts setting", "max_prepared_transactions", 0),
    ("max_locks_per_xact setting", "max_locks_per_transaction", 64),
];

/// Names of these settings in postgresql.conf.
pub const NAMES: [&str; 5] = [SETTINGS[0].1, SETTINGS[1].1, SETTINGS[2].1, SETTINGS[3].1, SETTINGS[4].1];

/// The least that each must be, by its name in postgresql.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Floor(BTreeMap<&'static str, u64>);

impl Floor {
    /// From what pg_controldata prints. A line that is not there asks for nothing.
    #[must_use]
    pub fn parse(control: &str) -> Self {
        let value =
            |label| control.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(':')?.trim().parse().ok());
        Self(SETTINGS.iter().filter_map(|(label, name, _)| Some((*name, value(*label)?))).collect())
    }

    /// All of it.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, value)| (*name, *value))
    }

    /// What must be raised above the configuration that these parameters of the user's make, with the value that it needs.
    #[must_use]
    pub fn above_configured(&self, parameters: &BTreeMap<String, String>) -> Vec<(&'static str, u64)> {
        let fallback =
            |name: &str| SETTINGS.iter().find(|(_, known, _)| *known == name).map_or(0, |(.., value)| *value);
        self.above(|name| match find_configured(parameters, name) {
            Some(text) => text.trim().parse().ok(),
            None => Some(fallback(name)),
        })
    }

    /// Of [`Self::above_configured`], what a primary needs as long as a transaction may be prepared: with fewer it does not start.
    #[must_use]
    pub fn prepared_above_configured(&self, parameters: &BTreeMap<String, String>) -> Vec<(&'static str, u64)> {
        let above = self.above_configured(parameters).into_iter();
        above.filter(|(name, _)| *name == "max_prepared_transactions").collect()
    }

    /// What is higher here than there; what is not known there counts as too low.
    #[must_use]
    pub fn above(&self, value: impl Fn(&str) -> Option<u64>) -> Vec<(&'static str, u64)> {
        self.iter().filter(|(name, least)| value(name).is_none_or(|value| value < *least)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: &str = "wal_level setting:                    replica\nmax_connections setting:              200\n\
        max_worker_processes setting:         8\nmax_wal_senders setting:              20\n\
        max_prepared_xacts setting:           5\nmax_locks_per_xact setting:           64\n";

    fn above(parameters: &[(&str, &str)]) -> Vec<(&'static str, u64)> {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Floor::parse(CONTROL).above_configured(&parameters)
    }

    #[test]
    fn what_the_primary_had_more_of_is_raised_and_nothing_else() {
        assert_eq!(above(&[]), [("max_connections", 200), ("max_prepared_transactions", 5)]);
        assert_eq!(above(&[("max_connections", "300"), ("Max_Prepared_Transactions", "5")]), []);
        assert_eq!(
            above(&[("max_connections", "150"), ("max_prepared_transactions", "9")]),
            [("max_connections", 200)]
        );
        assert_eq!(
            above(&[("max_connections", "many"), ("max_prepared_transactions", "5")]),
            [("max_connections", 200)]
        );
    }

    #[test]
    fn a_primary_takes_over_the_prepared_transactions_alone() {
        let parameters = |value: &str| BTreeMap::from([("max_prepared_transactions".to_owned(), value.to_owned())]);
        let raised = |value| Floor::parse(CONTROL).prepared_above_configured(&parameters(value));
        assert_eq!(raised("0"), [("max_prepared_transactions", 5)]);
        assert_eq!(raised("7"), []);
    }

    #[test]
    fn without_control_data_nothing_is_asked_for() {
        assert_eq!(Floor::parse("").above(|_| None), []);
    }
}
