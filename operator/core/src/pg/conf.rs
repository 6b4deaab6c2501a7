//! postgresql.conf, rendered whole at every start: fixed settings, the user's parameters, and what the role needs.
//! Later lines win in PostgreSQL, so the fixed ones stand last. Writes no file.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{quote::quote_conf_value, wal_size::fitting_sizes};
use crate::{instance::RecoveryTarget, timeline::TimelineId};

/// What a standby (or a recovering server) needs; none of it on a primary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StandbyConf {
    /// `primary_conninfo`; empty follows nobody.
    pub primary_conninfo: String,
    /// `primary_slot_name`; empty for none.
    pub primary_slot_name: String,
    /// `restore_command`; empty for none.
    pub restore_command: String,
    /// Where recovery stops and promotes; None for a standby.
    pub recovery_target: Option<RecoveryTarget>,
    /// Whose history a recovery to a target follows; None for the newest one there is.
    pub recovery_timeline: Option<TimelineId>,
    /// The recovery is to a target, or is about to be ended by a promotion.
    pub is_about_to_end: bool,
}

/// What one instance's postgresql.conf is rendered from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfInput {
    /// Becomes `cluster_name`: shown in process titles.
    pub cluster: String,
    /// Folder of the unix socket.
    pub socket_dir: String,
    /// `ssl_cert_file`.
    pub ssl_cert_file: String,
    /// `ssl_key_file`.
    pub ssl_key_file: String,
    /// `ssl_ca_file`.
    pub ssl_ca_file: String,
    /// `hba_file`.
    pub hba_file: String,
    /// `ident_file`.
    pub ident_file: String,
    /// `archive_command`. Empty when nothing is archived: then `/bin/true`, so that a store can be added without a
    /// restart.
    pub archive_command: String,
    /// `synchronous_standby_names` by [`crate::quorum::synchronous_standby_names`].
    pub synchronous_standby_names: String,
    /// Files of pg_wal have another name elsewhere: none may be written anew as another segment.
    pub keeps_files: bool,
    /// The user's parameters, validated.
    pub parameters: BTreeMap<String, String>,
    /// Bytes per WAL segment; None where that is not known.
    pub segment_bytes: Option<u64>,
    /// Set on a standby and while recovering.
    pub standby: Option<StandbyConf>,
}

/// What every instance runs with, whatever the user says.
const FIXED: &[(&str, &str)] = &[
    ("listen_addresses", "*"),
    ("port", "5432"),
    ("wal_level", "replica"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("wal_log_hints", "on"),
    ("synchronous_commit", "on"),
    ("data_sync_retry", "off"),
    // A crashed server comes back through its agent, behind the register; never by itself.
    ("restart_after_crash", "off"),
    ("hot_standby", "on"),
    ("archive_mode", "on"),
    ("recovery_target_timeline", "latest"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("wal_sender_timeout", "5s"),
    ("wal_receiver_timeout", "5s"),
    ("wal_receiver_status_interval", "1s"),
    ("wal_retrieve_retry_interval", "500ms"),
    ("ssl", "on"),
    ("ssl_min_protocol_version", "TLSv1.2"),
    ("password_encryption", "scram-sha-256"),
    // The agent reads the log for a few messages.
    ("lc_messages", "C"),
    ("log_destination", "stderr"),
    ("logging_collector", "off"),
];

/// What holds unless the user says otherwise.
const DEFAULTS: &[(&str, &str)] = &[
    ("archive_timeout", "60s"),
    ("log_line_prefix", "%m [%p] %q%u@%d/%a "),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];

/// A process that notes which blocks the WAL changes, for incremental backups (PostgreSQL 17 and later). The user turns it on.
/// While it is on, the end of a recovery waits for the summaries up to there (`CleanupAfterArchiveRecovery` in `xlog.c`), which
/// was seen to take 12 to 25 s: a promotion goes without.
const SUMMARIZE_WAL: &str = "summarize_wal";

/// A copy holds its source's logical subscriptions. With none of these it runs none of them, even once it has left recovery: they would
/// take the source's replication slots at the publishers and move them on, and the source would never see what it missed.
pub const SUBSCRIPTION_WORKERS: &str = "max_logical_replication_workers";

/// Parameters that are pgherd's, beside [`FIXED`]: name (a `*` at its end stands for anything), why, what to do instead.
const REFUSED: &[(&str, &str, &str)] = &[
    ("archive_command", "the WAL archive is pgherd's", "set backup.objectStore"),
    ("archive_library", "the WAL archive is pgherd's", "set backup.objectStore"),
    ("archive_cleanup_command", "it would run a shell command", "set retention in a BackupSchedule"),
    ("restore_command", "pgherd fetches archived WAL itself", "leave it out"),
    ("recovery_end_command", "it would run a shell command", "leave it out"),
    ("recovery_target*", "recovery is pgherd's", "use bootstrap.recovery.target"),
    ("recovery_min_apply_delay", "a delayed replica could not take over", "leave it out"),
    ("primary_conninfo", "whom a replica follows is decided by failover", "leave it out"),
    ("primary_slot_name", "replication slots are pgherd's", "leave it out"),
    ("synchronous_standby_names", "it is derived from the voters", "set synchronous.mode and synchronous.replicas"),
    ("ssl*", "TLS is pgherd's", "leave it out"),
    ("krb_*", "only scram-sha-256 and certificates are supported", "leave it out"),
    ("data_directory", "the data directory is pgherd's", "leave it out"),
    ("config_file", "the configuration is rendered by pgherd", "set postgresql.parameters"),
    ("hba_file", "pg_hba.conf is rendered by pgherd", "set postgresql.pgHba"),
    ("ident_file", "pg_ident.conf is rendered by pgherd", "leave it out"),
    ("external_pid_file", "the root file system is read-only", "leave it out"),
    ("include*", "there are no other files to include", "set the parameters themselves"),
    ("unix_socket_*", "the socket is where the agent and psql look for it", "leave it out"),
    ("bonjour*", "it does not belong in a pod", "leave it out"),
    ("cluster_name", "it is the cluster's name", "leave it out"),
    ("log_directory", "the log goes to the container's log", "use kubectl logs"),
    ("log_filename", "the log goes to the container's log", "use kubectl logs"),
    ("log_file_mode", "the log goes to the container's log", "use kubectl logs"),
    ("log_rotation_*", "the log goes to the container's log", "use kubectl logs"),
    ("log_truncate_on_rotation", "the log goes to the container's log", "use kubectl logs"),
    ("syslog_*", "the log goes to the container's log", "use kubectl logs"),
    ("event_source", "the log goes to the container's log", "use kubectl logs"),
    ("promote_trigger_file", "promotion is decided by failover", "annotate the cluster with pgherd.dev/switchover"),
    ("zero_damaged_pages", "it destroys data", "restore a backup"),
    ("ignore_checksum_failure", "it hides damaged data", "restore a backup"),
    ("ignore_system_indexes", "it is for single-user repair", "leave it out"),
    ("ignore_invalid_pages", "it hides damaged data", "restore a backup"),
    ("allow_system_table_mods", "it can destroy the catalogue", "leave it out"),
    ("remove_temp_files_after_crash", "it is for debugging", "leave it out"),
];

/// Lists of libraries: restricted to plain names.
const LIBRARIES: &[&str] = &["shared_preload_libraries", "session_preload_libraries", "local_preload_libraries"];

/// A parameter that a user may not set, or not so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("postgresql.parameters.{name}: {why}; {fix}")]
pub struct ParameterError {
    /// The parameter's name.
    pub name: String,
    /// Why it is refused.
    pub why: String,
    /// What to do instead.
    pub fix: String,
}

/// Renders the whole file. A user's parameter that [`validate_parameters`] refuses is left out.
#[must_use]
pub fn render_conf(input: &ConfInput) -> String {
    let allowed = input.parameters.iter().filter(|(name, value)| check_parameter(name, value).is_ok());
    let user: BTreeMap<String, &str> =
        allowed.map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
    let mut text = "# Written by pgherd at every start; changes are lost.\n\n# Defaults\n".to_owned();
    for (name, value) in DEFAULTS.iter().filter(|(name, _)| !user.contains_key(*name)) {
        set(&mut text, name, value);
    }
    let sizes = input.segment_bytes.into_iter().flat_map(fitting_sizes);
    for (name, value) in sizes.filter(|(name, _)| !user.contains_key(*name)) {
        set(&mut text, name, &value);
    }
    text.push_str("\n# spec.postgresql.parameters\n");
    for (name, value) in &user {
        set(&mut text, name, value);
    }
    text.push_str("\n# Fixed\n");
    for (name, value) in FIXED {
        set(&mut text, name, value);
    }
    let archive_command = if input.archive_command.is_empty() { "/bin/true" } else { &input.archive_command };
    for (name, value) in [
        ("cluster_name", input.cluster.as_str()),
        ("unix_socket_directories", &input.socket_dir),
        ("hba_file", &input.hba_file),
        ("ident_file", &input.ident_file),
        ("ssl_cert_file", &input.ssl_cert_file),
        ("ssl_key_file", &input.ssl_key_file),
        ("ssl_ca_file", &input.ssl_ca_file),
        ("archive_command", archive_command),
        ("synchronous_standby_names", &input.synchronous_standby_names),
    ] {
        set(&mut text, name, value);
    }
    if input.keeps_files {
        set(&mut text, "wal_recycle", "off");
    }
    text.push_str("\n# Role\n");
    let standby = input.standby.clone().unwrap_or_default();
    if standby.is_about_to_end && user.contains_key(SUMMARIZE_WAL) {
        set(&mut text, SUMMARIZE_WAL, "off");
    }
    render_standby(&mut text, &standby);
    text
}

/// What [`render_conf`] sets a parameter to: the fixed value, the user's or the default; None where PostgreSQL's own holds.
pub(super) fn find_configured<'a>(parameters: &'a BTreeMap<String, String>, name: &str) -> Option<&'a str> {
    let of = |table: &'static [(&str, &str)]| table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    let user = parameters.iter().find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str());
    of(FIXED).or(user).or_else(|| of(DEFAULTS))
}

/// The lines that depend on the role. Written on a primary too, empty: nothing of an earlier role may be left over.
fn render_standby(text: &mut String, standby: &StandbyConf) {
    set(text, "primary_conninfo", &standby.primary_conninfo);
    set(text, "primary_slot_name", &standby.primary_slot_name);
    set(text, "restore_command", &standby.restore_command);
    let Some(target) = &standby.recovery_target else {
        return;
    };
    text.push_str(&render_recovery(target, standby.recovery_timeline));
    set(text, SUBSCRIPTION_WORKERS, "0");
}

/// The settings of a recovery to a target, along the history of a timeline, after which the server promotes itself. Without a timeline it is
/// the newest one; for the end of the backup that of the backup, which may lie on a branch that was left.
#[must_use]
pub fn render_recovery(target: &RecoveryTarget, timeline: Option<TimelineId>) -> String {
    let mut text = String::new();
    set(&mut text, "recovery_target_action", "promote");
    let timeline = timeline.map(|timeline| timeline.0.to_string());
    if let Some(timeline) = timeline.or_else(|| (*target == RecoveryTarget::Immediate).then(|| "current".to_owned())) {
        set(&mut text, "recovery_target_timeline", &timeline);
    }
    match target {
        RecoveryTarget::Latest => {}
        RecoveryTarget::Immediate => set(&mut text, "recovery_target", "immediate"),
        RecoveryTarget::Time(time) => set(&mut text, "recovery_target_time", &render_target_time(time)),
        RecoveryTarget::Lsn(lsn) => set(&mut text, "recovery_target_lsn", &lsn.to_string()),
        RecoveryTarget::Name(name) => set(&mut text, "recovery_target_name", name),
    }
    text
}

/// A time for `recovery_target_time`, which takes an offset from UTC but neither the `Z` of RFC 3339 nor any other name of a
/// zone. What is no time stays as it is, for PostgreSQL to refuse.
fn render_target_time(time: &str) -> String {
    time.parse::<Timestamp>().map_or_else(|_| time.to_owned(), |time| time.to_string().replace('Z', "+00"))
}

fn set(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push_str(" = ");
    text.push_str(&quote_conf_value(value));
    text.push('\n');
}

/// Lines of a configuration file with these parameters alone, except those that [`validate_parameters`] refuses.
#[must_use]
pub fn render_parameters(parameters: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    for (name, value) in parameters.iter().filter(|(name, value)| check_parameter(name, value).is_ok()) {
        set(&mut text, name, value);
    }
    text
}

/// Checks the user's parameters.
///
/// # Errors
/// Every parameter that is refused, in the order of their names.
pub fn validate_parameters(parameters: &BTreeMap<String, String>) -> Result<(), Vec<ParameterError>> {
    let mut errors: Vec<ParameterError> =
        parameters.iter().filter_map(|(name, value)| check_parameter(name, value).err()).collect();
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for name in parameters.keys() {
        if let Some(other) = seen.insert(name.to_ascii_lowercase(), name) {
            errors.push(refusal(name, format!("it is the same as {other}"), "set it once, in lower case"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn check_parameter(name: &str, value: &str) -> Result<(), ParameterError> {
    if !is_parameter_name(name) {
        return Err(refusal(
            name,
            "it is no parameter's name".to_owned(),
            "write it like work_mem or pg_stat_statements.max",
        ));
    }
    let lower = name.to_ascii_lowercase();
    let matches =
        |pattern: &str| pattern.strip_suffix('*').map_or(lower == pattern, |prefix| lower.starts_with(prefix));
    if let Some((_, why, fix)) = REFUSED.iter().find(|(pattern, _, _)| matches(pattern)) {
        return Err(refusal(name, (*why).to_owned(), fix));
    }
    if let Some((_, fixed)) = FIXED.iter().find(|(known, _)| *known == lower) {
        return Err(refusal(name, format!("pgherd keeps it at \"{fixed}\""), "leave it out"));
    }
    if value.contains('\0') || value.len() > 8192 {
        return Err(refusal(name, "its value is longer than 8192 bytes or holds a NUL".to_owned(), "shorten it"));
    }
    let hides_warnings = ["error", "log", "fatal", "panic"];
    if lower == "log_min_messages" && hides_warnings.contains(&value.trim().to_ascii_lowercase().as_str()) {
        let why = "pgherd counts cancelled synchronous waits, which are warnings in the log".to_owned();
        return Err(refusal(name, why, "set it to warning or below"));
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | ',' | '$' | ' ' | '-');
    if LIBRARIES.contains(&lower.as_str()) && !value.chars().all(plain) {
        return Err(refusal(
            name,
            "only plain library names are allowed".to_owned(),
            "write it like pg_stat_statements,auto_explain",
        ));
    }
    Ok(())
}

/// `work_mem`, or `extension.setting`.
fn is_parameter_name(name: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '$'))
    };
    name.len() <= 63 && name.split('.').count() <= 2 && name.split('.').all(part)
}

fn refusal(name: &str, why: String, fix: &str) -> ParameterError {
    ParameterError { name: name.chars().take(80).collect(), why, fix: fix.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn fixed_settings_stand_after_the_users_and_defaults_give_way() {
        let given = parameters(&[("max_slot_wal_keep_size", "1GB"), ("work_mem", "16MB"), ("fsync", "off")]);
        let text = render_conf(&ConfInput { parameters: given, ..ConfInput::default() });
        assert!(text.contains("work_mem = '16MB'\n"));
        assert_eq!(text.matches("max_slot_wal_keep_size").count(), 1);
        assert!(text.contains("max_slot_wal_keep_size = '1GB'\n"));
        assert!(text.contains("fsync = 'on'\n") && !text.contains("fsync = 'off'"));
        assert!(text.contains("archive_command = '/bin/true'\n"));
        assert!(text.find("work_mem") < text.find("restart_after_crash"));
    }

    #[test]
    fn files_that_are_kept_are_not_recycled_whatever_the_user_says() {
        let given = parameters(&[("wal_recycle", "on")]);
        let render =
            |keeps_files| render_conf(&ConfInput { keeps_files, parameters: given.clone(), ..ConfInput::default() });
        let text = render(true);
        assert!(text.rfind("wal_recycle = 'off'") > text.rfind("wal_recycle = 'on'"), "the last one holds");
        assert!(!render(false).contains("wal_recycle = 'off'"));
    }

    #[test]
    fn a_promotion_waits_for_no_summaries() {
        let render = |is_about_to_end, given: &[(&str, &str)]| {
            let standby = Some(StandbyConf { is_about_to_end, ..StandbyConf::default() });
            render_conf(&ConfInput { standby, parameters: parameters(given), ..ConfInput::default() })
        };
        let on = [("summarize_wal", "on")];
        assert!(!render(false, &on).contains("summarize_wal = 'off'"));
        let text = render(true, &on);
        assert!(text.rfind("summarize_wal = 'off'") > text.rfind("summarize_wal = 'on'"), "the last one holds");
        assert!(!render(true, &[]).contains("summarize_wal"), "PostgreSQL 16 does not start with it");
    }

    #[test]
    fn a_value_cannot_smuggle_in_another_line() {
        let given = parameters(&[("application_name", "x'\nfsync = off\n#")]);
        let text = render_conf(&ConfInput { parameters: given, ..ConfInput::default() });
        assert!(text.contains("application_name = 'x''\\nfsync = off\\n#'\n"), "{text}");
        assert!(text.lines().all(|line| line != "fsync = off"));
    }

    #[test]
    fn parameters_of_pgherd_are_refused_with_what_to_do_instead() {
        for name in [
            "archive_command",
            "restore_command",
            "ssl",
            "SSL_ciphers",
            "fsync",
            "full_page_writes",
            "wal_level",
            "synchronous_standby_names",
            "synchronous_commit",
            "primary_conninfo",
            "primary_slot_name",
            "listen_addresses",
            "port",
            "data_directory",
            "hba_file",
            "ident_file",
            "include_dir",
            "recovery_target_time",
            "log_directory",
            "logging_collector",
            "restart_after_crash",
            "wal_log_hints",
            "unix_socket_directories",
            "hot_standby",
            "cluster_name",
            "archive_mode",
            "max_wal_senders",
            "a b",
            "x;y",
            "",
            "a.b.c",
        ] {
            let errors = validate_parameters(&parameters(&[(name, "x")])).expect_err(name);
            assert!(!errors[0].why.is_empty() && !errors[0].fix.is_empty(), "{name}");
        }
    }

    #[test]
    fn the_log_keeps_the_warnings_that_are_counted() {
        for (name, value) in [("lc_messages", "de_DE.UTF-8"), ("log_min_messages", "ERROR")] {
            assert!(validate_parameters(&parameters(&[(name, value)])).is_err(), "{name}");
        }
        assert_eq!(validate_parameters(&parameters(&[("log_min_messages", "info")])), Ok(()));
        let text = render_conf(&ConfInput::default());
        assert!(text.contains("lc_messages = 'C'\n"));
    }

    #[test]
    fn ordinary_parameters_and_plain_libraries_are_allowed() {
        let fine = [
            ("work_mem", "16MB"),
            ("shared_preload_libraries", "pg_stat_statements,auto_explain"),
            ("pg_stat_statements.max", "1000"),
            ("hot_standby_feedback", "on"),
            ("archive_timeout", "5min"),
        ];
        assert_eq!(validate_parameters(&parameters(&fine)), Ok(()));
        assert!(validate_parameters(&parameters(&[("shared_preload_libraries", "/tmp/evil.so")])).is_err());
        assert!(validate_parameters(&parameters(&[("work_mem", "1MB"), ("WORK_MEM", "2MB")])).is_err());
    }

    #[test]
    fn the_end_of_a_backup_is_reached_without_the_newest_timeline() {
        let follows = |target: &RecoveryTarget, timeline: Option<u32>| {
            let text = render_recovery(target, timeline.map(TimelineId));
            text.lines().find_map(|line| line.strip_prefix("recovery_target_timeline = ").map(str::to_owned))
        };
        assert_eq!(follows(&RecoveryTarget::Immediate, None).as_deref(), Some("'current'"));
        assert_eq!(follows(&RecoveryTarget::Immediate, Some(3)).as_deref(), Some("'3'"));
        assert_eq!(follows(&RecoveryTarget::Latest, None), None);
        let standby = StandbyConf { recovery_target: Some(RecoveryTarget::Immediate), ..StandbyConf::default() };
        let text = render_conf(&ConfInput { standby: Some(standby), ..ConfInput::default() });
        let (latest, own) = ("recovery_target_timeline = 'latest'", "recovery_target_timeline = 'current'");
        assert!(text.contains(latest) && text.rfind(own) > text.rfind(latest), "the last one holds");
    }

    #[test]
    fn a_recovery_has_its_target_and_a_standby_has_none() {
        let target = Some(RecoveryTarget::Time("2026-11-22T02:00:00Z".to_owned()));
        let standby =
            StandbyConf { restore_command: "x %f".to_owned(), recovery_target: target, ..StandbyConf::default() };
        let text = render_conf(&ConfInput { standby: Some(standby), ..ConfInput::default() });
        assert!(text.contains("recovery_target_time = '2026-11-22T02:00:00+00'\n"));
        assert_eq!(render_target_time("2026-11-22T02:00:00.25+02:00"), "2026-11-22T00:00:00.25+00");
        assert_eq!(render_target_time("2026-11-22 02:00"), "2026-11-22 02:00");
        assert!(text.contains("recovery_target_action = 'promote'\n"));
        assert!(text.contains("max_logical_replication_workers = '0'\n"), "the source's subscriptions rest");
        let text = render_conf(&ConfInput { standby: Some(StandbyConf::default()), ..ConfInput::default() });
        assert!(!text.contains("recovery_target_action") && !text.contains(SUBSCRIPTION_WORKERS));
    }

    #[test]
    fn large_segments_have_room_unless_the_user_says_otherwise() {
        let render = |segment_bytes, given: &[(&str, &str)]| {
            render_conf(&ConfInput { segment_bytes, parameters: parameters(given), ..ConfInput::default() })
        };
        assert!(render(Some(64 << 20), &[]).contains("min_wal_size = '320MB'\n"));
        let given = render(Some(64 << 20), &[("Min_WAL_Size", "1GB")]);
        assert!(given.contains("min_wal_size = '1GB'\n") && !given.contains("320MB"));
        assert!(!render(Some(16 << 20), &[]).contains("_wal_size") && !render(None, &[]).contains("_wal_size"));
    }
}
