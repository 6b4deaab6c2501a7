//! When what failed is tried again. To make the first data directory from a backup reads all of it and its WAL each time, and whether
//! it can succeed may show at the end alone: so that is tried less and less often, until somebody changes something. It decides by
//! what it is told; it reads no clock.

use std::{sync::Arc, time::Duration};

use pgherd_core::instance::{Bootstrap, InstanceConfig};
use tokio::time::Instant;

use crate::{actions::ActionError, machine::LocalAction};

/// The first pause after a restore that failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const MAX_PAUSE: Duration = Duration::from_secs(600);
/// The longest where nothing was read yet: somebody may just be mending what is missing.
const MAX_PLANNING_PAUSE: Duration = Duration::from_secs(15);

/// What failed, since it last went well.
#[derive(Debug, Default)]
pub struct Retries {
    /// Steps that failed in a row, of whatever kind.
    pub failures: u32,
    restore: Option<FailedRestore>,
}

#[derive(Debug)]
struct FailedRestore {
    action: LocalAction,
    config: Arc<InstanceConfig>,
    cause: &'static str,
    pause: Duration,
    again_at: Instant,
}

impl FailedRestore {
    fn is_of(&self, action: &LocalAction, config: &InstanceConfig) -> bool {
        self.action == *action && *self.config == *config
    }
}

/// Reads a backup or an archive from end to end.
fn is_restore(action: &LocalAction, config: &InstanceConfig) -> bool {
    match action {
        LocalAction::Restore(_) => true,
        LocalAction::Bootstrap => config.bootstrap != Bootstrap::Initdb,
        _ => false,
    }
}

impl Retries {
    /// Whether it is too early for this step. A new configuration, or another order, is tried at once.
    #[must_use]
    pub fn holds_off(&self, action: &LocalAction, config: &InstanceConfig, now: Instant) -> bool {
        self.restore.as_ref().is_some_and(|failed| failed.is_of(action, config) && now < failed.again_at)
    }

    /// Notes how a step ended; the pause until it is tried again, where that is a restore.
    pub fn note(
        &mut self,
        action: LocalAction,
        config: Arc<InstanceConfig>,
        error: Option<&ActionError>,
        now: Instant,
    ) -> Option<Duration> {
        // What passes soon, such as a Lease that can't be renewed, comes before anything is read.
        if !is_restore(&action, &config) || error.is_some_and(ActionError::passes_soon) {
            return None;
        }
        let before = self.restore.take();
        let error = error?;
        let longest = if matches!(error, ActionError::Plan { .. }) { MAX_PLANNING_PAUSE } else { MAX_PAUSE };
        let cause = error.name_cause();
        let same = before.filter(|failed| failed.is_of(&action, &config) && failed.cause == cause);
        let pause = same.map_or(FIRST_PAUSE, |failed| failed.pause.saturating_mul(2).min(longest));
        self.restore = Some(FailedRestore { action, config, cause, pause, again_at: now + pause });
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pgherd_core::{
        backup::StoreConfig,
        instance::{RecoveryTarget, Timings},
    };

    use super::*;

    fn config(bootstrap: Bootstrap) -> Arc<InstanceConfig> {
        Arc::new(InstanceConfig {
            cluster: "c".into(),
            namespace: "db".into(),
            instances: 1,
            parameters: BTreeMap::new(),
            hba: Vec::new(),
            bootstrap,
            store: None,
            replica_source: Default::default(),
            timings: Timings::default(),
        })
    }

    fn import(key: &str) -> Arc<InstanceConfig> {
        let store = StoreConfig {
            endpoint: "http://127.0.0.1:9".into(),
            bucket: "b".into(),
            prefix: String::new(),
            region: None,
            path_style: true,
            credentials_dir: "/nowhere".into(),
            ca_file: None,
            encryption: None,
        };
        config(Bootstrap::Import { store, key: key.into(), target: RecoveryTarget::Latest })
    }

    fn failed(what: &'static str) -> ActionError {
        ActionError::Bootstrap { what, why: "it is told each time in other words".to_owned() }
    }

    #[test]
    fn a_restore_that_fails_is_tried_less_and_less_often_until_something_changes() {
        let (mut retries, mut now, config) = (Retries::default(), Instant::now(), import("a"));
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert!(!retries.holds_off(&LocalAction::Bootstrap, &config, now));
            let error = failed("recovery failed");
            let pause = retries.note(LocalAction::Bootstrap, Arc::clone(&config), Some(&error), now).unwrap();
            assert!(retries.holds_off(&LocalAction::Bootstrap, &config, now + pause - Duration::from_millis(1)));
            now += pause;
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        let mut note = |error: Option<ActionError>| {
            retries.note(LocalAction::Bootstrap, Arc::clone(&config), error.as_ref(), now).map(|pause| pause.as_secs())
        };
        assert_eq!(note(Some(ActionError::NotYet(String::new()))), None);
        assert_eq!(note(Some(failed("recovery failed"))), Some(600), "that was nothing");
        assert_eq!(note(Some(failed("failed to restore the backup"))), Some(1), "another cause");
        assert_eq!(note(Some(failed("failed to restore the backup"))), Some(2));
        let unplanned = || ActionError::Plan { what: "this recovery is not possible", why: String::new() };
        let pauses: Vec<_> = (0..6).filter_map(|_| note(Some(unplanned()))).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 15, 15], "nothing was read");
        assert!(!retries.holds_off(&LocalAction::Bootstrap, &import("b"), now), "another configuration");
        assert!(!retries.holds_off(&LocalAction::StartPrimary, &config, now));
        retries.note(LocalAction::Bootstrap, Arc::clone(&config), None, now);
        assert!(!retries.holds_off(&LocalAction::Bootstrap, &config, now), "it went well");
    }

    #[test]
    fn nothing_else_is_held_off() {
        let (mut retries, now, config) = (Retries::default(), Instant::now(), config(Bootstrap::Initdb));
        for action in [LocalAction::Bootstrap, LocalAction::StartPrimary] {
            assert_eq!(retries.note(action.clone(), Arc::clone(&config), Some(&failed("initdb")), now), None);
            assert!(!retries.holds_off(&action, &config, now));
        }
    }
}
