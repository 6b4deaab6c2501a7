//! The flags of the commands by hand. What is not given and has no default is asked for by name.

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use pgherd_agent::postgres::binaries::Binaries;
use pgherd_core::{
    backup::{BackupLocation, ClusterLocation, EncryptionConfig, StoreConfig},
    chain::{DEFAULT_MAX_CHAIN, ParentChoice},
    compression::{LevelBounds, LevelError},
    instance::RecoveryTarget,
};
use pgherd_stream::{
    backup::IncrementalOptions,
    encryption::parse_recipient,
    local::{DEFAULT_READERS, LocalOptions, find_socket},
    replication::ConnectOptions,
    restore::TablespacePlaces,
    tls::PostgresTls,
};

/// PostgreSQL's own.
const DEFAULT_PORT: u16 = 5432;

/// Where backups lie: a file, or all of it by flags.
#[derive(Clone, Debug, Args)]
pub struct LocationArgs {
    /// JSON file with store (and in it encryption), cluster, systemId and backupId; a flag overrides what it says of the cluster,
    /// the system, the backup or the keys.
    #[arg(long, value_name = "FILE")]
    pub location: Option<PathBuf>,
    /// https://host:port of the object store.
    #[arg(long, required_unless_present = "location")]
    pub endpoint: Option<String>,
    /// The bucket.
    #[arg(long, required_unless_present = "location")]
    pub bucket: Option<String>,
    /// Prefix of every key.
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// Region for signing.
    #[arg(long)]
    pub region: Option<String>,
    /// https://bucket.host/key instead of https://host/bucket/key.
    #[arg(long)]
    pub virtual_hosted: bool,
    /// Folder with the files accessKeyId, secretAccessKey and optionally sessionToken.
    #[arg(long, value_name = "DIR", required_unless_present = "location")]
    pub credentials_dir: Option<String>,
    /// PEM bundle to trust instead of the public roots.
    #[arg(long, value_name = "FILE")]
    pub store_ca: Option<String>,
    /// age1… that what is written is encrypted for; the store never sees plain data. May be given again.
    #[arg(long, value_name = "age1…")]
    pub age_recipient: Vec<String>,
    /// File with more of them, one a line; a line that begins with # is a comment.
    #[arg(long, value_name = "FILE")]
    pub age_recipients_file: Option<PathBuf>,
    /// File with AGE-SECRET-KEY-1… lines that open what is encrypted; a backup alone does not need it.
    #[arg(long, value_name = "FILE")]
    pub age_identity_file: Option<PathBuf>,
    /// The cluster's name in the store; list-backups alone can do without, and lists all clusters below the prefix.
    #[arg(long)]
    pub cluster: Option<String>,
    /// The database system identifier; not needed where the store has only one of this name.
    #[arg(long, default_value = "")]
    pub system_id: String,
    /// The backup's id; the newest one when absent.
    #[arg(long, default_value = "")]
    pub backup_id: String,
}

impl LocationArgs {
    /// The location by file and flags.
    ///
    /// # Errors
    /// When the file cannot be read or is not a location, or no cluster is named.
    pub fn read(&self) -> Result<BackupLocation, Box<dyn Error>> {
        let location = self.read_open()?;
        if location.cluster.cluster.is_empty() {
            return Err("which cluster? --cluster, or cluster in the file of --location, names it".into());
        }
        Ok(location)
    }

    /// As [`Self::read`], where the cluster may be left open.
    ///
    /// # Errors
    /// When the file cannot be read or is not a location.
    pub fn read_open(&self) -> Result<BackupLocation, Box<dyn Error>> {
        let mut location = match &self.location {
            Some(path) => {
                let text = std::fs::read(path).map_err(|error| format!("reading {}: {error}", path.display()))?;
                serde_json::from_slice(&text).map_err(|error| format!("reading {}: {error}", path.display()))?
            }
            None => BackupLocation { cluster: self.build_cluster(), backup_id: String::new() },
        };
        if let Some(cluster) = &self.cluster {
            location.cluster.cluster.clone_from(cluster);
        }
        if !self.system_id.is_empty() {
            location.cluster.system_id.clone_from(&self.system_id);
        }
        if !self.backup_id.is_empty() {
            location.backup_id.clone_from(&self.backup_id);
        }
        let store = &mut location.cluster.store;
        store.encryption = self.read_encryption(store.encryption.take())?;
        Ok(location)
    }

    /// The keys by file and flags. Every recipient is checked here: nothing is to begin with a mistyped one.
    fn read_encryption(&self, stated: Option<EncryptionConfig>) -> Result<Option<EncryptionConfig>, Box<dyn Error>> {
        let mut encryption = stated.unwrap_or_default();
        let mut recipients = self.age_recipient.clone();
        if let Some(path) = &self.age_recipients_file {
            let text = std::fs::read_to_string(path).map_err(|error| format!("reading {}: {error}", path.display()))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let before = recipients.len();
            recipients.extend(lines.map(str::to_owned));
            if recipients.len() == before {
                return Err(format!("{} names no recipient", path.display()).into());
            }
        }
        if !recipients.is_empty() {
            encryption.recipients = recipients;
        }
        for recipient in &encryption.recipients {
            parse_recipient(recipient)?;
        }
        if let Some(path) = &self.age_identity_file {
            encryption.identity_file = Some(path.display().to_string());
        }
        Ok(Some(encryption).filter(|encryption| *encryption != EncryptionConfig::default()))
    }

    fn build_cluster(&self) -> ClusterLocation {
        ClusterLocation {
            store: StoreConfig {
                endpoint: self.endpoint.clone().unwrap_or_default(),
                bucket: self.bucket.clone().unwrap_or_default(),
                prefix: self.prefix.clone(),
                region: self.region.clone(),
                path_style: !self.virtual_hosted,
                credentials_dir: self.credentials_dir.clone().unwrap_or_default(),
                ca_file: self.store_ca.clone(),
                encryption: None,
            },
            cluster: self.cluster.clone().unwrap_or_default(),
            system_id: self.system_id.clone(),
        }
    }
}

/// Flags of `pgherd backup`.
#[derive(Clone, Debug, Args)]
pub struct BackupArgs {
    /// JSON file of a Job that says what to back up and where to; goes with no other flag.
    #[arg(long, value_name = "FILE", exclusive = true)]
    pub config: Option<PathBuf>,
    /// Where to.
    #[command(flatten)]
    pub location: LocationArgs,
    /// Host of the PostgreSQL instance; the folder of its unix socket when it begins with a slash. With --local that of the server
    /// which runs on the folder.
    #[arg(long, required_unless_present_any = ["config", "local"])]
    pub host: Option<String>,
    /// Its port; 5432, or with --local the port of the server which runs on the folder.
    #[arg(long)]
    pub port: Option<u16>,
    /// A role with REPLICATION; with --local a superuser, or a role that may run pg_backup_start and pg_backup_stop as well.
    #[arg(long, default_value = "postgres")]
    pub user: String,
    /// File with the role's password.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// PEM bundle that the instance's certificate is verified by; without it the connection is in the clear.
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Client certificate.
    #[arg(long, value_name = "FILE", requires = "tls_key", requires = "tls_ca")]
    pub tls_cert: Option<PathBuf>,
    /// Key of the client certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// One level of zstd for all, -50 to 19 and not 0, instead of one between --min-level and --max-level.
    #[arg(long, allow_hyphen_values = true, conflicts_with_all = ["min_level", "max_level"])]
    pub level: Option<i32>,
    /// Lowest level of zstd: taken when there is too little processor time to compress as fast as the server sends. 1 by default.
    #[arg(long, allow_hyphen_values = true)]
    pub min_level: Option<i32>,
    /// Highest level of zstd: taken when the store is slower than the server. 6 by default; above it more memory is taken.
    #[arg(long, allow_hyphen_values = true)]
    pub max_level: Option<i32>,
    /// Frames compressed at the same time.
    #[arg(long, default_value_t = 2)]
    pub workers: usize,
    /// Parts uploaded at the same time.
    #[arg(long, default_value_t = 3)]
    pub concurrency: usize,
    /// Size of a part in MiB; at least 5.
    #[arg(long, default_value_t = 5)]
    pub part_mebibytes: usize,
    /// Parts of an object at most, 1 to 10000: what follows goes into the next object.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub object_parts: u64,
    /// Kilobytes per second that the server sends, or that are read, at most.
    #[arg(long)]
    pub max_rate: Option<u32>,
    /// Waits for a spread checkpoint instead of an immediate one.
    #[arg(long)]
    pub spread_checkpoint: bool,
    /// Reads the files of this data directory, on the machine where its server runs, instead of having the server send them. What
    /// is stored is the same.
    #[arg(long, value_name = "DIR", conflicts_with = "incremental_from")]
    pub local: Option<PathBuf>,
    /// Pieces of 256 KiB that are read at the same time.
    #[arg(long, requires = "local", default_value_t = DEFAULT_READERS)]
    pub readers: usize,
    /// Only what changed since this backup, or since the newest one with "latest" (PostgreSQL 17 and later, with summarize_wal);
    /// where that is not possible it becomes a full backup, and the output says why.
    #[arg(long, value_name = "ID|latest")]
    pub incremental_from: Option<String>,
    /// A full backup once the chain has so many members.
    #[arg(long, requires = "incremental_from", default_value_t = DEFAULT_MAX_CHAIN)]
    pub max_chain: u32,
}

impl BackupArgs {
    /// What an incremental backup is to be made of; none for a full one.
    #[must_use]
    pub fn incremental(&self) -> Option<IncrementalOptions> {
        let parent = match self.incremental_from.as_deref()? {
            "latest" => ParentChoice::Newest,
            id => ParentChoice::Id(id.to_owned()),
        };
        Some(IncrementalOptions { parent, max_chain: self.max_chain, damaged: Vec::new() })
    }

    /// Which files are to be read; none where the server sends them.
    #[must_use]
    pub fn local_options(&self) -> Option<LocalOptions> {
        self.local.clone().map(|data| LocalOptions { data, readers: self.readers })
    }

    /// The levels of compression.
    ///
    /// # Errors
    /// [`LevelError`].
    pub fn levels(&self) -> Result<LevelBounds, LevelError> {
        LevelBounds::of(self.level.or(self.min_level), self.level.or(self.max_level))
    }

    /// How to connect.
    ///
    /// # Errors
    /// When a host other than a unix socket is to be reached with a password in the clear, or no server runs on the folder of --local.
    pub fn connect_options(&self) -> Result<ConnectOptions, Box<dyn Error>> {
        let (host, port) = match (&self.host, &self.local) {
            (None, Some(data)) => find_socket(data).map(|(host, port)| (host, self.port.unwrap_or(port)))?,
            (host, _) => (host.clone().unwrap_or_default(), self.port.unwrap_or(DEFAULT_PORT)),
        };
        let tls = self.tls_ca.clone().map(|ca_file| PostgresTls {
            ca_file,
            cert_file: self.tls_cert.clone(),
            key_file: self.tls_key.clone(),
        });
        if tls.is_none() && self.password_file.is_some() && !host.starts_with('/') {
            return Err("--password-file needs --tls-ca, or a unix socket as --host".into());
        }
        Ok(ConnectOptions {
            host: host.clone(),
            port,
            server_name: host,
            user: self.user.clone(),
            database: None,
            tls,
            password_file: self.password_file.clone(),
            application_name: "pgherd-backup".to_owned(),
            connect_timeout: Duration::from_secs(15),
        })
    }
}

/// Flags of `pgherd restore`.
#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// Where from.
    #[command(flatten)]
    pub location: LocationArgs,
    /// The data directory: absent or empty.
    #[arg(long, value_name = "DIR")]
    pub target: PathBuf,
    /// PostgreSQL's pg_combinebackup of the backup's major version, which an incremental backup needs; looked for beside the
    /// installed server by default.
    #[arg(long, value_name = "FILE")]
    pub pg_combinebackup: Option<PathBuf>,
    /// Puts tablespaces below pg_tblspc of the data directory.
    #[arg(long, conflicts_with = "tablespace")]
    pub tablespaces_in_place: bool,
    /// OID=DIR: puts a tablespace there. May be given again.
    #[arg(long, value_name = "OID=DIR")]
    pub tablespace: Vec<String>,
    /// Recover up to this time, such as 2026-11-22T02:00:00Z or '2026-11-22 02:00:00+00'.
    #[arg(long, group = "until")]
    pub target_time: Option<String>,
    /// Recover up to this position.
    #[arg(long, group = "until")]
    pub target_lsn: Option<String>,
    /// Recover up to this restore point.
    #[arg(long, group = "until")]
    pub target_name: Option<String>,
    /// Recover to the end of the archive.
    #[arg(long, group = "until")]
    pub target_latest: bool,
    /// End recovery as soon as the backup is consistent.
    #[arg(long, group = "until")]
    pub target_immediate: bool,
}

impl RestoreArgs {
    /// The program for a chain of backups of this major version, if there is one.
    #[must_use]
    pub fn find_combine(&self, major: u32) -> Option<PathBuf> {
        const NAME: &str = "pg_combinebackup";
        let packaged = [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")];
        let packaged = packaged.into_iter().map(|folder| Path::new(&folder).join(NAME)).find(|path| path.is_file());
        let beside_server = || Some(Binaries::observe().ok()?.program(NAME));
        self.pg_combinebackup.clone().or(packaged).or_else(beside_server)
    }

    /// Where tablespaces go.
    ///
    /// # Errors
    /// When a mapping is not OID=DIR.
    pub fn places(&self) -> Result<TablespacePlaces, Box<dyn Error>> {
        if self.tablespaces_in_place {
            return Ok(TablespacePlaces::InPlace);
        }
        let mut places = BTreeMap::new();
        for mapping in &self.tablespace {
            let (oid, place) = mapping
                .split_once('=')
                .filter(|(oid, _)| oid.parse::<u32>().is_ok())
                .ok_or_else(|| format!("\"{mapping}\" is not OID=DIR"))?;
            places.insert(oid.to_owned(), PathBuf::from(place));
        }
        Ok(if places.is_empty() { TablespacePlaces::Refuse } else { TablespacePlaces::At(places) })
    }

    /// Where recovery is to end; `None` leaves the directory as the backup has it.
    ///
    /// # Errors
    /// When a value cannot stand in a configuration file, or is no position.
    pub fn recovery_target(&self) -> Result<Option<RecoveryTarget>, Box<dyn Error>> {
        let target = match self {
            Self { target_time: Some(time), .. } => RecoveryTarget::Time(time.clone()),
            Self { target_lsn: Some(lsn), .. } => RecoveryTarget::Lsn(lsn.parse()?),
            Self { target_name: Some(name), .. } => RecoveryTarget::Name(name.clone()),
            Self { target_immediate: true, .. } => RecoveryTarget::Immediate,
            Self { target_latest: true, .. } => RecoveryTarget::Latest,
            _ => return Ok(None),
        };
        match &target {
            RecoveryTarget::Name(name) if name.contains(['\n', '\r', '\0']) => Err("a target is one line".into()),
            _ => Ok(Some(target)),
        }
    }
}

/// Flags of `pgherd verify`.
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// JSON file of a Job that says what to verify; goes with no other flag.
    #[arg(long, value_name = "FILE", exclusive = true)]
    pub config: Option<PathBuf>,
    /// Which backup.
    #[command(flatten)]
    pub location: LocationArgs,
    /// Restore it into this empty or absent folder, start PostgreSQL on it (from PATH or /usr/lib/postgresql, not as root) with the
    /// archive's WAL and without a network, and run pg_amcheck and the statements. The folder stays.
    #[arg(long, value_name = "DIR")]
    pub start: Option<PathBuf>,
    /// The database for the statements; `app` if there is one, else `postgres`.
    #[arg(long, requires = "start")]
    pub database: Option<String>,
    /// A statement that must return a single true. May be given again.
    #[arg(long, value_name = "STATEMENT", requires = "start")]
    pub sql: Vec<String>,
    /// shared_preload_libraries, where replaying needs them.
    #[arg(long, value_name = "LIBRARIES", requires = "start")]
    pub preload: Option<String>,
}

/// Flags of `pgherd prune`.
#[derive(Clone, Debug, Args)]
pub struct PruneArgs {
    /// JSON file of a Job that says what to delete; goes with no other flag.
    #[arg(long, value_name = "FILE", exclusive = true)]
    pub config: Option<PathBuf>,
    /// Where.
    #[command(flatten)]
    pub location: LocationArgs,
    /// Keep this many backups, the newest ones.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep_last: Option<u32>,
    /// Keep what is needed to restore to any time of so many hours.
    #[arg(long)]
    pub keep_for_hours: Option<u32>,
    /// Keep this backup whatever else is said. May be given again.
    #[arg(long, value_name = "ID")]
    pub pin: Vec<String>,
    /// Delete. Without it, it is only said what would be deleted.
    #[arg(long)]
    pub apply: bool,
}

/// Arguments of `pgherd fetch-wal`.
#[derive(Clone, Debug, Args)]
pub struct FetchWalArgs {
    /// Where from.
    #[command(flatten)]
    pub location: LocationArgs,
    /// The file's name (%f).
    pub name: String,
    /// Where to put it, relative to the data directory (%p).
    pub path: PathBuf,
    /// The number of the timeline whose history is followed: what an older one wrote after it was left does not count then. As in
    /// recovery_target_timeline.
    #[arg(long, value_name = "NUMBER")]
    pub timeline: Option<u32>,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const ONE: &str = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj";
    const TWO: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        location: LocationArgs,
    }

    fn read(more: &[&str]) -> Result<Option<EncryptionConfig>, String> {
        let line = ["x", "--endpoint=http://m", "--bucket=b", "--credentials-dir=/c", "--cluster=c"];
        let line = Line::try_parse_from(line.iter().chain(more).copied()).unwrap();
        line.location.read().map(|location| location.cluster.store.encryption).map_err(|error| error.to_string())
    }

    #[test]
    fn keys_come_from_flags_a_file_of_recipients_and_the_location_and_none_is_taken_unread() {
        assert_eq!(read(&[]).unwrap(), None);
        let dir = std::env::temp_dir().join(format!("pgherd-args-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let (team, location) = (dir.join("team"), dir.join("location.json"));
        std::fs::write(&team, format!("# the team\n\n{TWO}\n")).unwrap();
        let team = format!("--age-recipients-file={}", team.display());
        let both = read(&["--age-recipient", ONE, &team, "--age-identity-file=/id"]).unwrap().unwrap();
        assert_eq!((both.recipients, both.identity_file.as_deref()), (vec![ONE.into(), TWO.into()], Some("/id")));
        let mistyped = ONE.replace("zvkyg", "zvkyq");
        assert!(read(&["--age-recipient", &mistyped]).unwrap_err().contains(&mistyped));
        std::fs::write(dir.join("team"), "# nobody\n").unwrap();
        assert!(read(&[&team]).unwrap_err().contains("names no recipient"));

        let stated = format!(
            r#"{{"store": {{"endpoint": "http://m", "bucket": "b", "pathStyle": true, "credentialsDir": "/c",
            "encryption": {{"recipients": ["{ONE}"], "identityFile": "/id"}}}}, "cluster": "c", "systemId": ""}}"#
        );
        std::fs::write(&location, stated).unwrap();
        let location = format!("--location={}", location.display());
        let read = |more: &[&str]| {
            let line = Line::try_parse_from(["x", location.as_str()].iter().chain(more).copied()).unwrap();
            line.location.read().unwrap().cluster.store.encryption.unwrap()
        };
        assert_eq!(read(&[]).recipients, [ONE]);
        let other = read(&["--age-recipient", TWO]);
        assert_eq!((other.recipients, other.identity_file.as_deref()), (vec![TWO.into()], Some("/id")));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
