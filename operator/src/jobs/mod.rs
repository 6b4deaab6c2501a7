//! What runs inside Job pods, and the same by hand.

pub mod backup;
pub mod prune;
pub mod standalone;
pub mod termination;
pub mod verification;

use std::process::ExitCode;

/// Runs `pgherd backup --config FILE`. Builds its own runtime.
///
/// # Errors
/// What failed, for the Job's log.
pub fn run_backup(config: &std::path::Path) -> Result<ExitCode, Box<dyn std::error::Error>> {
    backup::run(config)
}
