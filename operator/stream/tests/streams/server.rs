//! Real S3 servers in a temporary directory: MinIO, and versitygw on plain files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use pgherd_core::backup::{ClusterLocation, StoreConfig};
use pgherd_stream::store::{ObjectStore, StoreError};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

pub(crate) const BUCKET: &str = "backups";
/// Where buckets are below in virtual-hosted style.
pub(crate) const DOMAIN: &str = "s3.pgherd.test";
pub(crate) const USER: &str = "pgherd-test";
pub(crate) const PASSWORD: &str = "pgherd-test-secret";

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Brand {
    Minio,
    Versity,
}

/// The variable's file, or the newest program in the cache whose name begins so, or that of this name on the PATH.
fn find_program(variable: &str, name: &str) -> PathBuf {
    if let Ok(path) = std::env::var(variable) {
        return path.into();
    }
    let cache = PathBuf::from(std::env::var("HOME").unwrap_or_default()).join(".cache/pgherd");
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_it = |path: &PathBuf| {
        let file = path.file_name().and_then(|file| file.to_str()).unwrap_or_default();
        path.is_file() && (file == name || file.strip_prefix(name).is_some_and(|rest| rest.starts_with("-v")))
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = || std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    let is_bin = |folder: &PathBuf| folder.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"bin-"));
    let cached = entries(cache).filter(is_bin).flat_map(entries).filter(is_it).max();
    cached.or_else(on_path).unwrap_or_else(|| {
        panic!("no {name}: set {variable}, or PGHERD_TEST_WITHOUT_POSTGRES=1 to leave these tests out")
    })
}

impl Brand {
    /// `PGHERD_TEST_STORE`: `minio`, as without it, or `versitygw`.
    pub(crate) fn of_this_run() -> Self {
        match std::env::var("PGHERD_TEST_STORE").as_deref() {
            Err(_) | Ok("minio") => Self::Minio,
            Ok("versitygw") => Self::Versity,
            Ok(other) => panic!("PGHERD_TEST_STORE is {other}: it must be minio or versitygw"),
        }
    }

    /// The variable that says where its program lies.
    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Minio => "PGHERD_MINIO",
            Self::Versity => "PGHERD_VERSITYGW",
        }
    }

    /// Where it lies.
    pub(crate) fn program(self) -> PathBuf {
        let name = match self {
            Self::Minio => "minio",
            Self::Versity => "versitygw",
        };
        find_program(self.variable(), name)
    }

    /// Serves `folder` at `address`, by TLS if there are certificates in `tls`.
    fn spawn(self, address: &str, folder: &Path, tls: Option<&Path>, domain: Option<&str>) -> Child {
        let mut command = Command::new(self.program());
        match self {
            Self::Minio => {
                command.args(["server", "--quiet", "--address", address, "--console-address", "127.0.0.1:0"]);
                command.args(tls.map(|tls| ["--certs-dir".into(), tls.as_os_str().to_owned()]).into_iter().flatten());
                command.envs(domain.map(|domain| ("MINIO_DOMAIN", domain)));
                command.env("MINIO_ROOT_USER", USER).env("MINIO_ROOT_PASSWORD", PASSWORD).env("MINIO_UPDATE", "off");
            }
            Self::Versity => {
                command.args(["--quiet", "--port", address]);
                if let Some(tls) = tls {
                    command.arg("--cert").arg(tls.join("public.crt")).arg("--key").arg(tls.join("private.key"));
                }
                let users = folder.with_extension("users");
                fs::create_dir_all(&users).unwrap();
                command.arg("--iam-cache-disable").arg("--iam-dir").arg(users).arg("posix");
                command.envs(domain.map(|domain| ("VGW_VIRTUAL_DOMAIN", domain)));
                command.env("ROOT_ACCESS_KEY_ID", USER).env("ROOT_SECRET_ACCESS_KEY", PASSWORD);
            }
        }
        command.arg(folder).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }
}

/// A server with one bucket; stopped when dropped.
pub(crate) struct Server {
    brand: Brand,
    child: Child,
    pub(crate) config: StoreConfig,
    folder: PathBuf,
}

impl Server {
    /// What most tests need: without TLS, so that a proxy can stand before it, and MinIO unless `PGHERD_TEST_STORE` says otherwise.
    pub(crate) async fn start_plain(parent: &Path) -> Self {
        Self::start_with(Brand::of_this_run(), parent, None, None).await
    }

    /// By TLS, with a certificate of a private CA.
    pub(crate) async fn start(brand: Brand, parent: &Path) -> Self {
        Self::start_with(brand, parent, Some(&write_certificates(&parent.join("store-tls"), "127.0.0.1")), None).await
    }

    /// The same, with the bucket in the name of the host, for which alone the certificate is.
    pub(crate) async fn start_virtual_hosted(brand: Brand, parent: &Path) -> Self {
        let tls = write_certificates(&parent.join("store-tls"), &format!("{BUCKET}.{DOMAIN}"));
        Self::start_with(brand, parent, Some(&tls), Some(DOMAIN)).await
    }

    async fn start_with(brand: Brand, parent: &Path, tls: Option<&Path>, domain: Option<&str>) -> Self {
        let folder = parent.join("store");
        fs::create_dir_all(&folder).unwrap();
        let port = crate::postgres::free_port();
        let child = brand.spawn(&format!("127.0.0.1:{port}"), &folder, tls, domain);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let config = StoreConfig {
            endpoint: format!("{scheme}://{}:{port}", domain.unwrap_or("127.0.0.1")),
            bucket: BUCKET.to_owned(),
            prefix: "pre/fix".to_owned(),
            region: None,
            path_style: domain.is_none(),
            credentials_dir: write_credentials(&parent.join("credentials"), USER, PASSWORD),
            ca_file: tls.map(|tls| tls.with_extension("ca").to_str().unwrap().to_owned()),
            encryption: None,
        };
        let server = Self { brand, child, config, folder };
        let store = server.store().await;
        crate::wait_until("the store answers", async || {
            matches!(store.probe().await, Err(StoreError::NoSuchBucket(_)))
        })
        .await;
        fs::create_dir(server.folder.join(BUCKET)).unwrap();
        crate::wait_until("the bucket is there", async || store.probe().await.is_ok()).await;
        server
    }

    pub(crate) async fn store(&self) -> ObjectStore {
        ObjectStore::connect(&self.config).await.unwrap()
    }

    /// The place of a cluster whose system id is filled in by the first backup.
    pub(crate) fn location(&self) -> ClusterLocation {
        ClusterLocation { store: self.config.clone(), cluster: "shop".to_owned(), system_id: String::new() }
    }

    /// Multipart uploads that are open, whatever their key: both keep a folder for each, in a folder for the key.
    pub(crate) fn open_uploads(&self) -> usize {
        let all = match self.brand {
            Brand::Minio => self.folder.join(".minio.sys/multipart"),
            Brand::Versity => self.folder.join(BUCKET).join(".sgwtmp/multipart"),
        };
        let keys = fs::read_dir(all).into_iter().flatten().flatten();
        keys.map(|key| fs::read_dir(key.path()).into_iter().flatten().flatten().count()).sum()
    }

    /// Lets another pair of keys do everything. Only without TLS.
    pub(crate) fn add_user(&self, key: &str, secret: &str) {
        match self.brand {
            Brand::Minio => {
                let pair = ["--access-key", key, "--secret-key", secret];
                self.administrate(&[&["user", "svcacct", "add", "store", USER][..], &pair].concat());
            }
            Brand::Versity => {
                self.administrate(&["create-user", "--access", key, "--secret", secret, "--role", "admin"]);
            }
        }
    }

    /// Ends it.
    pub(crate) fn remove_user(&self, key: &str) {
        match self.brand {
            Brand::Minio => self.administrate(&["user", "svcacct", "rm", "store", key]),
            Brand::Versity => self.administrate(&["delete-user", "--access", key]),
        }
    }

    /// The server's own client, with the rights of its owner.
    fn administrate(&self, args: &[&str]) {
        let endpoint = &self.config.endpoint;
        let mut command = match self.brand {
            Brand::Minio => {
                let mut command = Command::new(find_program("PGHERD_MC", "mc"));
                command.arg("--config-dir").arg(self.folder.with_extension("mc")).args(["--quiet", "admin"]);
                let address = endpoint.trim_start_matches("http://");
                command.env("MC_HOST_store", format!("http://{USER}:{PASSWORD}@{address}"));
                command
            }
            Brand::Versity => {
                let mut command = Command::new(self.brand.program());
                command.args(["admin", "--access", USER, "--secret", PASSWORD, "--endpoint-url", endpoint]);
                command
            }
        };
        let output = command.args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
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

/// A certificate for a host and its key under the names that MinIO knows, and beside the folder the CA that signed it.
fn write_certificates(folder: &Path, host: &str) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "CA of the store");
    fs::write(folder.with_extension("ca"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    fs::write(folder.join("public.crt"), certificate.pem()).unwrap();
    fs::write(folder.join("private.key"), key.serialize_pem()).unwrap();
    folder.to_owned()
}
