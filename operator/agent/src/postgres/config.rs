//! Writes the files that make a server what it is to be: postgresql.conf, pg_hba.conf, pg_ident.conf and the signal
//! files, anew at every start and change of role. Nothing that a person or a restored backup left there survives.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use pgherd_core::{
    instance::{InstanceConfig, RecoveryTarget},
    pg::{
        conf::{ConfInput, StandbyConf, render_conf},
        hba::{SUPERUSER, render_closed_hba, render_hba, render_ident},
        wal_size::parse_segment_bytes,
    },
    quorum::names_of_nobody,
    timeline::TimelineId,
};

use super::{
    upstream::{Upstream, render_upstream_conninfo},
    wal_limits::{observe_size, with_wal_limits},
};
use crate::{
    layout::{Layout, slot_name},
    local_state::{sync_folder, write_durably},
};

/// What the server is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes writes, with these synchronous standbys.
    Primary {
        /// `synchronous_standby_names`.
        synchronous_standby_names: String,
        /// Clients are let in.
        admits_clients: bool,
    },
    /// It follows `upstream`, or waits when there is none.
    Standby {
        /// Whom it follows.
        upstream: Option<Upstream>,
        /// `application_name` of its receiver; empty where none is to run.
        receiver_name: String,
        /// The `synchronous_standby_names` that it is about to be promoted with; then it lets no more clients in. Without
        /// it: commits would wait for nobody that exists, whoever promotes it.
        promotion: Option<String>,
    },
    /// It recovers a restored backup to a target and promotes itself.
    Recovery {
        /// Where recovery stops.
        target: RecoveryTarget,
        /// There is an archive with more WAL than pg_wal holds.
        archived: bool,
        /// Whose history it follows; None for the newest one there is.
        timeline: Option<TimelineId>,
    },
}

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to write {path}")]
pub struct ConfigError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The commands that PostgreSQL calls for its WAL.
#[must_use]
pub fn archive_command(layout: &Layout) -> String {
    format!("{} archive-wal %p %f", layout.executable.display())
}

/// The command that PostgreSQL calls to fetch a file of the archive.
#[must_use]
pub fn restore_command(layout: &Layout) -> String {
    format!("{} restore-wal %f %p", layout.executable.display())
}

fn build_conf_input(layout: &Layout, config: &InstanceConfig, role: &Role, pod: &str) -> ConfInput {
    let tls = |name: &str| layout.tls().join(name).display().to_string();
    let archiving = config.store.is_some();
    let restore = |wanted: bool| if wanted { restore_command(layout) } else { String::new() };
    let (standby, names) = match role {
        Role::Primary { synchronous_standby_names, .. } => (None, synchronous_standby_names.clone()),
        Role::Standby { upstream: None, promotion, .. } => {
            let conf = StandbyConf { is_about_to_end: promotion.is_some(), ..StandbyConf::default() };
            (Some(conf), render_names(promotion.as_ref()))
        }
        Role::Standby { upstream: Some(upstream), receiver_name, promotion } => {
            let conf = StandbyConf {
                primary_conninfo: render_upstream_conninfo(upstream, &layout.tls(), receiver_name, None),
                primary_slot_name: slot_name(pod),
                restore_command: restore(archiving),
                ..StandbyConf::default()
            };
            (Some(conf), render_names(promotion.as_ref()))
        }
        Role::Recovery { target, archived, timeline } => {
            let conf = StandbyConf {
                // PostgreSQL insists on a command; this one says that there is no such file.
                restore_command: if *archived { restore(true) } else { "/bin/false".to_owned() },
                recovery_target: Some(target.clone()),
                recovery_timeline: *timeline,
                is_about_to_end: true,
                ..StandbyConf::default()
            };
            (Some(conf), String::new())
        }
    };
    ConfInput {
        cluster: config.cluster.clone(),
        socket_dir: layout.socket_dir.display().to_string(),
        ssl_cert_file: tls("tls.crt"),
        ssl_key_file: tls("tls.key"),
        ssl_ca_file: tls("ca.crt"),
        hba_file: layout.pgdata.join("pg_hba.conf").display().to_string(),
        ident_file: layout.pgdata.join("pg_ident.conf").display().to_string(),
        archive_command: match role {
            // It would be the archive of a cluster that it is about to leave. What it writes after its promotion stays
            // marked as ready and is archived once the new cluster runs.
            Role::Recovery { .. } if archiving => "/bin/false".to_owned(),
            _ if archiving => archive_command(layout),
            _ => String::new(),
        },
        synchronous_standby_names: names,
        keeps_files: layout.kept_wal().exists(),
        parameters: with_wal_limits(config.parameters.clone(), observe_size(&layout.volume)),
        segment_bytes: observe_segment_bytes(&layout.pgdata),
        standby,
    }
}

/// Fixed when the data directory was made, by whomever. None where there is no control file to read.
fn observe_segment_bytes(pgdata: &Path) -> Option<u64> {
    parse_segment_bytes(&fs::read(pgdata.join("global/pg_control")).ok()?)
}

fn render_names(promotion: Option<&String>) -> String {
    promotion.cloned().unwrap_or_else(names_of_nobody)
}

/// Writes the files that a running server reads again at a reload; true when one changed.
///
/// # Errors
/// [`ConfigError`].
pub fn apply_config(layout: &Layout, config: &InstanceConfig, role: &Role, pod: &str) -> Result<bool, ConfigError> {
    let conf = render_conf(&build_conf_input(layout, config, role, pod));
    let mut changed = write_if_changed(&layout.pgdata.join("postgresql.conf"), &conf)?;
    let hba = if admits_clients(role) { render_hba(&config.hba) } else { render_closed_hba() };
    changed |= write_if_changed(&layout.pgdata.join("pg_hba.conf"), &hba)?;
    changed |= write_if_changed(
        &layout.pgdata.join("pg_ident.conf"),
        &render_ident(&observe_os_user(&layout.passwd), &[SUPERUSER]),
    )?;
    Ok(changed)
}

/// A standby that is promoted must not let anybody in between the end of its recovery and the next look at it.
fn admits_clients(role: &Role) -> bool {
    match role {
        Role::Primary { admits_clients, .. } => *admits_clients,
        Role::Standby { promotion, .. } => promotion.is_none(),
        Role::Recovery { .. } => true,
    }
}

/// Writes everything for a start in this role: also the signal file, and an empty postgresql.auto.conf, since whatever
/// ALTER SYSTEM left there would win over the register.
///
/// # Errors
/// [`ConfigError`].
pub fn apply_start_config(layout: &Layout, config: &InstanceConfig, role: &Role, pod: &str) -> Result<(), ConfigError> {
    apply_config(layout, config, role, pod)?;
    forget_altered_settings(layout)?;
    let wanted = match role {
        Role::Primary { .. } => None,
        Role::Standby { .. } => Some("standby.signal"),
        Role::Recovery { .. } => Some("recovery.signal"),
    };
    apply_signal_file(&layout.pgdata, wanted)
}

/// Empties postgresql.auto.conf: what ALTER SYSTEM left there would win over the register. True when there was something.
///
/// # Errors
/// [`ConfigError`].
pub fn forget_altered_settings(layout: &Layout) -> Result<bool, ConfigError> {
    write_if_changed(&layout.pgdata.join("postgresql.auto.conf"), "")
}

/// Leaves exactly this one of the signal files, or none.
///
/// # Errors
/// [`ConfigError`].
pub fn apply_signal_file(pgdata: &Path, wanted: Option<&str>) -> Result<(), ConfigError> {
    for name in ["standby.signal", "recovery.signal"] {
        let path = pgdata.join(name);
        let done = match (wanted == Some(name), path.exists()) {
            (true, false) => fs::write(&path, ""),
            (false, true) => fs::remove_file(&path),
            _ => Ok(()),
        };
        done.map_err(|source| ConfigError { path, source })?;
    }
    sync_folder(pgdata).map_err(|source| ConfigError { path: pgdata.to_owned(), source })
}

fn write_if_changed(path: &Path, content: &str) -> Result<bool, ConfigError> {
    if fs::read(path).is_ok_and(|present| present == content.as_bytes()) {
        return Ok(false);
    }
    write_durably(path, content.as_bytes())
        .map(|()| true)
        .map_err(|source| ConfigError { path: path.to_owned(), source })
}

/// The name of the operating system user in the passwd file; `postgres` when it is not listed. Not by the C library: the
/// binary is static and must not load name service modules of the image.
#[must_use]
pub fn observe_os_user(passwd: &Path) -> String {
    let uid = nix::unistd::getuid().to_string();
    let text = fs::read_to_string(passwd).unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| "postgres".to_owned())
}
