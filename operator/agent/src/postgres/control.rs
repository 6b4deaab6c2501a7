//! What a stopped data directory says of itself: the output of `pg_controldata`, parsed.

use std::path::Path;

use pgherd_core::{lsn::Lsn, pg::floor::Floor, timeline::TimelineId};

use super::binaries::{Binaries, ProgramError};

/// The parts of pg_control that decisions need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlData {
    /// The database system identifier.
    pub system_id: String,
    /// It was shut down cleanly, as primary or in recovery.
    pub shut_down: bool,
    /// It was shut down cleanly as primary: its last record is the checkpoint at `checkpoint`.
    pub shut_down_as_primary: bool,
    /// The last checkpoint's record.
    pub checkpoint: Lsn,
    /// The newest timeline that is known from the last checkpoint and the minimum recovery point.
    pub timeline: TimelineId,
    /// WAL is known to reach at least here.
    pub lsn: Lsn,
    /// Bytes per WAL segment.
    pub segment_bytes: u64,
    /// What a standby must be set to at least.
    pub floor: Floor,
}

/// Why the control data is not known.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// pg_controldata did not run.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A line is missing or not what it should be.
    #[error("pg_controldata printed no usable \"{0}\"")]
    Field(&'static str),
}

/// Asks pg_controldata.
///
/// # Errors
/// [`ControlError`].
pub async fn observe_control(binaries: &Binaries, pgdata: &Path) -> Result<ControlData, ControlError> {
    let output = binaries.run("pg_controldata", &[pgdata.as_os_str()], &[]).await?;
    parse_control(&output)
}

/// Parses the output of pg_controldata under LC_ALL=C.
///
/// # Errors
/// [`ControlError::Field`].
pub fn parse_control(output: &str) -> Result<ControlData, ControlError> {
    let field = |name: &'static str| {
        let line = output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).ok_or(ControlError::Field(name))
    };
    let lsn = |name| field(name)?.parse::<Lsn>().map_err(|_| ControlError::Field(name));
    let number = |name| field(name)?.parse::<u64>().map_err(|_| ControlError::Field(name));
    let timeline = |name| field(name)?.parse::<u32>().map_err(|_| ControlError::Field(name));
    let checkpoint = (timeline("Latest checkpoint's TimeLineID")?, lsn("Latest checkpoint location")?);
    let minimum = (timeline("Min recovery ending loc's timeline")?, lsn("Minimum recovery ending location")?);
    Ok(ControlData {
        system_id: field("Database system identifier")?.to_owned(),
        shut_down: field("Database cluster state")?.starts_with("shut down"),
        shut_down_as_primary: field("Database cluster state")? == "shut down",
        checkpoint: checkpoint.1,
        timeline: TimelineId(checkpoint.0.max(minimum.0)),
        lsn: checkpoint.1.max(minimum.1),
        segment_bytes: number("Bytes per WAL segment")?,
        floor: Floor::parse(output),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn arbitrary_and_changed_output_never_panics(
            text in "\\PC{0,60}", changes in prop::collection::vec((any::<prop::sample::Index>(), 0u8..128), 1..9),
        ) {
            let _ = parse_control(&text);
            let mut changed = OUTPUT.as_bytes().to_vec();
            for (at, byte) in changes {
                let at = at.index(changed.len());
                changed[at] = byte;
            }
            if let Ok(control) = parse_control(&String::from_utf8_lossy(&changed)) {
                prop_assert!(control.lsn >= control.checkpoint);
            }
        }
    }

    const OUTPUT: &str = "pg_control version number:            1300
Database system identifier:           7123456789012345678
Database cluster state:               shut down in recovery
Latest checkpoint location:           0/3000060
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's TimeLineID:       1
Minimum recovery ending location:     0/4000000
Min recovery ending loc's timeline:   2
Bytes per WAL segment:                16777216
";

    #[test]
    fn the_farther_of_checkpoint_and_minimum_recovery_point_counts() {
        let control = parse_control(OUTPUT).unwrap();
        assert_eq!((control.timeline, control.lsn), (TimelineId(2), Lsn(0x400_0000)));
        assert!(control.shut_down && !control.shut_down_as_primary);
        assert_eq!(control.checkpoint, Lsn(0x300_0060));
        assert_eq!(control.system_id, "7123456789012345678");
        assert_eq!(control.segment_bytes, 16 << 20);
    }

    #[test]
    fn a_missing_line_is_named() {
        let error = parse_control(&OUTPUT.replace("Database system identifier", "x")).unwrap_err();
        assert!(error.to_string().contains("Database system identifier"));
    }
}
