//! A real MinIO in a temporary directory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use pgherd_core::backup::{ClusterLocation, StoreConfig};
use pgherd_stream::store::{ObjectStore, StoreError};

pub(crate) const BUCKET: &str = "backups";
const USER: &str = "pgherd-test";
const PASSWORD: &str = "pgherd-test-secret";

fn binary() -> PathBuf {
    if let Ok(path) = std::env::var("PGHERD_MINIO") {
        return path.into();
    }
    let cache = PathBuf::from(std::env::var("HOME").unwrap_or_default()).join(".cache/pgherd");
    let folders = fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path());
    let cached = folders.map(|folder| folder.join("minio")).find(|path| path.is_file());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || std::env::split_paths(&path).map(|folder| folder.join("minio")).find(|path| path.is_file());
    cached
        .or_else(on_path)
        .expect("no MinIO: set PGHERD_MINIO, or PGHERD_TEST_WITHOUT_POSTGRES=1 to leave these tests out")
}

/// A server with one bucket; stopped when dropped.
pub(crate) struct Minio {
    child: Child,
    pub(crate) config: StoreConfig,
    folder: PathBuf,
}

impl Minio {
    pub(crate) async fn start(parent: &Path) -> Self {
        let folder = parent.join("minio");
        fs::create_dir_all(&folder).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let child = Command::new(binary())
            .args(["server", "--quiet", "--address", &address.to_string(), "--console-address", "127.0.0.1:0"])
            .arg(&folder)
            .env("MINIO_ROOT_USER", USER)
            .env("MINIO_ROOT_PASSWORD", PASSWORD)
            .env("MINIO_UPDATE", "off")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let config = StoreConfig {
            endpoint: format!("http://{address}"),
            bucket: BUCKET.to_owned(),
            prefix: "pre/fix".to_owned(),
            region: None,
            path_style: true,
            credentials_dir: write_credentials(&parent.join("credentials"), USER, PASSWORD),
            ca_file: None,
        };
        let minio = Self { child, config, folder };
        let store = minio.store().await;
        crate::wait_until("MinIO answers", async || matches!(store.probe().await, Err(StoreError::NoSuchBucket(_))))
            .await;
        fs::create_dir(minio.folder.join(BUCKET)).unwrap();
        crate::wait_until("the bucket is there", async || store.probe().await.is_ok()).await;
        minio
    }

    pub(crate) async fn store(&self) -> ObjectStore {
        ObjectStore::connect(&self.config).await.unwrap()
    }

    /// The place of a cluster whose system id is filled in by the first backup.
    pub(crate) fn location(&self) -> ClusterLocation {
        ClusterLocation { store: self.config.clone(), cluster: "shop".to_owned(), system_id: String::new() }
    }

    /// Multipart uploads that are open, whatever their key: MinIO keeps a folder for each.
    pub(crate) fn open_uploads(&self) -> usize {
        let keys = fs::read_dir(self.folder.join(".minio.sys/multipart")).into_iter().flatten().flatten();
        keys.map(|key| fs::read_dir(key.path()).into_iter().flatten().flatten().count()).sum()
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes the files of a credentials Secret.
pub(crate) fn write_credentials(folder: &Path, user: &str, password: &str) -> String {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("accessKeyId"), user).unwrap();
    fs::write(folder.join("secretAccessKey"), format!("{password}\n")).unwrap();
    folder.to_str().unwrap().to_owned()
}
