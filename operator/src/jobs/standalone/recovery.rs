//! What makes PostgreSQL recover from the archive after a restore by hand: recovery.signal and settings. Writes no secret: the
//! location names folders only.

use std::{
    error::Error,
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
};

use pgherd_core::{
    backup::BackupLocation,
    instance::RecoveryTarget,
    pg::{conf::render_recovery, quote::quote_conf_value},
    timeline::TimelineId,
};

/// Name of the file in the data directory that `pgherd fetch-wal` reads.
const LOCATION_FILE: &str = "pgherd-location.json";

/// Takes the source's own role away from the directory; with a target, has PostgreSQL recover to it and then promote.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn write_recovery(
    data: &Path,
    location: &BackupLocation,
    target: Option<&RecoveryTarget>,
    timeline: Option<TimelineId>,
) -> Result<(), Box<dyn Error>> {
    let standby = data.join("standby.signal");
    if standby.exists() {
        fs::remove_file(standby)?;
    }
    let Some(target) = target else { return Ok(()) };
    let program = std::env::current_exe()?;
    let mut location = location.clone();
    // PostgreSQL runs the command in the data directory.
    let absolute = |path: &str| fs::canonicalize(path).map(|path| path.display().to_string());
    location.cluster.store.credentials_dir = absolute(&location.cluster.store.credentials_dir)?;
    location.cluster.store.ca_file = location.cluster.store.ca_file.as_deref().map(absolute).transpose()?;
    if let Some(encryption) = &mut location.cluster.store.encryption {
        encryption.identity_file = encryption.identity_file.as_deref().map(absolute).transpose()?;
    }
    fs::write(data.join(LOCATION_FILE), serde_json::to_vec_pretty(&location)?)?;
    let mut settings = OpenOptions::new().append(true).create(true).open(data.join("postgresql.auto.conf"))?;
    settings.write_all(render_settings(&program.display().to_string(), target, timeline).as_bytes())?;
    settings.sync_all()?;
    fs::write(data.join("recovery.signal"), "")?;
    Ok(())
}

fn render_settings(program: &str, target: &RecoveryTarget, timeline: Option<TimelineId>) -> String {
    let along = timeline.map_or(String::new(), |timeline| format!(" --timeline {}", timeline.0));
    let command = format!("\"{program}\" fetch-wal --location {LOCATION_FILE}{along} \"%f\" \"%p\"");
    format!("restore_command = {}\n{}", quote_conf_value(&command), render_recovery(target, timeline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_cannot_leave_its_quotes() {
        let named = RecoveryTarget::Name("a' b".to_owned());
        let text = render_settings("/bin/pgherd", &named, Some(TimelineId(3)));
        assert!(text.contains("recovery_target_name = 'a'' b'\n"), "{text}");
        assert!(
            text.starts_with(
                "restore_command = '\"/bin/pgherd\" fetch-wal --location pgherd-location.json --timeline 3 "
            )
        );
        assert!(text.contains("recovery_target_timeline = '3'\n"), "{text}");
        assert!(!render_settings("/bin/pgherd", &RecoveryTarget::Latest, None).contains("recovery_target_time"));
        let end = render_settings("/bin/pgherd", &RecoveryTarget::Immediate, None);
        assert!(!end.contains("--timeline"), "{end}");
        assert!(end.contains("recovery_target_timeline = 'current'\n"), "{end}");
    }
}
