//! What a backup Job asks the agent beside a data directory for, and what the agent tells the process that does it. Names no secret.

use serde::{Deserialize, Serialize};

use crate::backup::{ClusterLocation, StoreConfig};

/// Path of the agent's API; its answer is a row of lines, each a JSON value, for as long as the backup takes.
pub const LOCAL_BACKUP_PATH: &str = "/v1/backup";

/// `POST /v1/backup`: back up the instance from its own files. The backup lasts as long as the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalBackupRequest {
    /// The UID of the Backup.
    pub backup_uid: String,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Where it is to go; the instance's own archive must be there too.
    pub location: ClusterLocation,
    /// The lowest level of zstd, as far as the user says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_level: Option<i32>,
    /// The highest level of zstd, as far as the user says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_level: Option<i32>,
    /// Kilobytes per second that are read at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u32>,
}

/// What the process of one such backup reads from its standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalBackupOrder {
    /// What was asked for, with the instance's own location.
    pub request: LocalBackupRequest,
    /// The data directory.
    pub data: String,
    /// Folder of the server's unix socket.
    pub socket_dir: String,
    /// Number in the socket's name.
    pub port: u16,
    /// A local superuser.
    pub user: String,
}

/// Whether a backup that is asked for goes where the instance has its own archive: its credentials and its keys are for nothing else.
///
/// # Errors
/// What differs, in words.
pub fn validate_place(own: &ClusterLocation, asked: &ClusterLocation) -> Result<(), &'static str> {
    let place = |store: &StoreConfig| {
        let prefix = store.prefix.trim_matches('/').to_owned();
        (store.endpoint.clone(), store.bucket.clone(), prefix, store.region.clone(), store.path_style)
    };
    let recipients =
        |store: &StoreConfig| store.encryption.as_ref().map(|keys| keys.recipients.clone()).unwrap_or_default();
    if own.cluster != asked.cluster || own.system_id != asked.system_id {
        Err("it is another cluster, or another database system")
    } else if place(&own.store) != place(&asked.store) {
        Err("its object store is another one; a change of spec.backup may not have reached it yet")
    } else if recipients(&own.store) != recipients(&asked.store) {
        Err("it encrypts for other recipients; a change of spec.backup may not have reached it yet")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::EncryptionConfig;

    fn location() -> ClusterLocation {
        ClusterLocation {
            store: StoreConfig {
                endpoint: "https://m:9000".into(),
                bucket: "b".into(),
                prefix: "p".into(),
                region: None,
                path_style: true,
                credentials_dir: "/here".into(),
                ca_file: None,
                encryption: Some(EncryptionConfig {
                    recipients: vec!["age1x".into()],
                    identity_file: Some("/id".into()),
                }),
            },
            cluster: "shop".into(),
            system_id: "7".into(),
        }
    }

    #[test]
    fn a_backup_goes_where_the_archive_is_and_nowhere_else() {
        let own = location();
        let mut asked = location();
        (asked.store.credentials_dir, asked.store.ca_file, asked.store.prefix) =
            ("/there".into(), Some("/ca".into()), "/p/".into());
        asked.store.encryption.as_mut().unwrap().identity_file = None;
        assert_eq!(validate_place(&own, &asked), Ok(()), "each has its own files");
        let refused = |change: fn(&mut ClusterLocation)| {
            let mut asked = location();
            change(&mut asked);
            validate_place(&own, &asked).unwrap_err()
        };
        assert!(refused(|asked| asked.system_id = "8".into()).contains("database system"));
        assert!(refused(|asked| asked.cluster = "other".into()).contains("another cluster"));
        assert!(refused(|asked| asked.store.bucket = "c".into()).contains("object store"));
        assert!(refused(|asked| asked.store.endpoint = "https://n:9000".into()).contains("object store"));
        assert!(refused(|asked| asked.store.encryption = None).contains("recipients"));
    }
}
