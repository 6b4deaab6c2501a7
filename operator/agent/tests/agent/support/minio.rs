//! A real MinIO beside the instances, run by the same user.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use pgherd_core::backup::StoreConfig;
use pgherd_stream::store::ObjectStore;
use tokio::time::{Instant, sleep};

use super::free_port;

const BUCKET: &str = "backups";
const SECRET: &str = "pgherd-test-secret";

/// Where the program is: `PGHERD_MINIO`, `~/.cache/pgherd/bin-*/minio`, or the PATH.
fn find() -> PathBuf {
    if let Ok(path) = std::env::var("PGHERD_MINIO") {
        return path.into();
    }
    let cache = PathBuf::from(std::env::var("HOME").unwrap_or_default()).join(".cache/pgherd");
    let folders = fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path());
    let cached = folders.map(|folder| folder.join("minio")).find(|path| path.is_file());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || std::env::split_paths(&path).map(|folder| folder.join("minio")).find(|path| path.is_file());
    cached.or_else(on_path).expect("no MinIO: set PGHERD_MINIO")
}

/// [`super::ran_as_postgres`] for a test that starts MinIO.
pub fn ran_as_postgres(test: &str) -> bool {
    let shared = tempfile::tempdir_in("/tmp").unwrap();
    let env = if nix::unistd::getuid().is_root() { vec![share(shared.path())] } else { Vec::new() };
    super::ran_as_postgres_with(test, &env)
}

/// For [`super::ran_as_postgres_with`]: a copy of the program where another user may run it. Removed with the folder.
pub fn share(folder: &Path) -> (&'static str, String) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.join("minio");
    fs::copy(find(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    ("PGHERD_MINIO", copy.to_str().unwrap().to_owned())
}

/// A server with one bucket; stopped when dropped.
pub struct Minio {
    child: Child,
    folder: PathBuf,
    address: String,
    pub config: StoreConfig,
}

fn spawn(folder: &Path, address: &str) -> Child {
    Command::new(find())
        .args(["server", "--quiet", "--address", address, "--console-address", "127.0.0.1:0"])
        .arg(folder)
        .env("MINIO_ROOT_USER", "pgherd-test")
        .env("MINIO_ROOT_PASSWORD", SECRET)
        .env("MINIO_UPDATE", "off")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Minio {
    pub async fn start(parent: &Path) -> Self {
        let (folder, credentials) = (parent.join("minio"), parent.join("credentials"));
        fs::create_dir_all(folder.join(BUCKET)).unwrap();
        fs::create_dir_all(&credentials).unwrap();
        fs::write(credentials.join("accessKeyId"), "pgherd-test").unwrap();
        fs::write(credentials.join("secretAccessKey"), SECRET).unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let child = spawn(&folder, &address);
        let config = StoreConfig {
            endpoint: format!("http://{address}"),
            bucket: BUCKET.to_owned(),
            prefix: "pre".to_owned(),
            region: None,
            path_style: true,
            credentials_dir: credentials.to_str().unwrap().to_owned(),
            ca_file: None,
            encryption: None,
        };
        let minio = Self { child, folder, address, config };
        minio.wait_up().await;
        minio
    }

    async fn wait_up(&self) {
        let store = self.store().await;
        let end = Instant::now() + Duration::from_secs(60);
        while store.probe().await.is_err() {
            assert!(Instant::now() < end, "MinIO does not answer: {:?}", store.probe().await);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// From now on nobody answers.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The same server again, with what it had.
    pub async fn start_again(&mut self) {
        self.child = spawn(&self.folder, &self.address);
        self.wait_up().await;
    }

    pub async fn store(&self) -> ObjectStore {
        ObjectStore::connect(&self.config).await.unwrap()
    }
}

impl Drop for Minio {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
