//! A cluster's certificates, configuration and agents under a temporary folder, with the real PostgreSQL of this machine.
#![allow(unreachable_pub, reason = "a test")]

pub mod archive;
pub mod copies;
pub mod minio;
pub mod programs;
pub mod takeover;
pub mod watched;

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use pgherd_agent::{
    agent::Agent,
    board::Board,
    fencer::Fencer,
    layout::{Layout, Peers},
    register_store::MemoryRegister,
    run::run_agent,
    settings::Identity,
    tls::{apply_certificates, build_client_config},
};
use pgherd_core::{
    backup::StoreConfig,
    instance::{Bootstrap, InstanceConfig, ReplicaSourcePolicy, Timings},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    task::JoinHandle,
};

/// The test that runs, found without its path: root's home, where it may lie, is closed to the user `postgres`.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// PostgreSQL refuses to run as root: runs this test again as the user `postgres`; true when that was done. `test` is its whole
/// name, `file::function`.
pub fn ran_as_postgres(test: &str) -> bool {
    ran_as_postgres_with(test, &[])
}

/// [`ran_as_postgres`] with more in the environment.
pub fn ran_as_postgres_with(test: &str, env: &[(&str, String)]) -> bool {
    if std::env::var_os("PGHERD_TEST_LOG").is_some() {
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(std::io::stderr).try_init();
    }
    // With another name nothing would run, and nothing fail.
    let thread = std::thread::current();
    assert!(thread.name().is_none_or(|name| name == "main" || name == test), "{test} is called {:?}", thread.name());
    if !nix::unistd::getuid().is_root() {
        return false;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let fields: Vec<&str> =
        passwd.lines().find(|line| line.starts_with("postgres:")).expect("a user postgres").split(':').collect();
    let (uid, gid): (u32, u32) = (fields[2].parse().unwrap(), fields[3].parse().unwrap());
    let status = Command::new(THIS_PROGRAM)
        .args(["--exact", test, "--nocapture"])
        .current_dir("/")
        .env("TMPDIR", "/tmp")
        .env("HOME", "/tmp")
        .envs(env.iter().map(|(name, value)| (name, value)))
        .uid(uid)
        .gid(gid)
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed as the user postgres");
    true
}

/// A port that nobody listens on now, from below the range that the kernel gives to outgoing connections (32768 and up): from there
/// a connection of another test could take it before the server listens, or while it is restarted.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Tests that run in processes of their own begin far from each other.
    let first = std::process::id().wrapping_mul(97);
    loop {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let port = 18_000 + u16::try_from(offset).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Writes `ca.crt`, `tls.*`, `replication.*` and, for the test, `operator.*`.
pub fn write_certificates(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "pgherd test CA");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    fs::write(folder.join("ca.crt"), authority.pem()).unwrap();
    for (file, name, hosts) in [
        ("tls", "localhost", vec!["localhost".to_owned()]),
        ("replication", "pgherd_replication", Vec::new()),
        ("operator", "pgherd-operator", Vec::new()),
    ] {
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        fs::write(folder.join(format!("{file}.crt")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

/// An object store that nobody serves; there are no credentials for it either.
pub fn unserved_store() -> StoreConfig {
    StoreConfig {
        endpoint: "http://127.0.0.1:9".into(),
        bucket: "b".into(),
        prefix: String::new(),
        region: None,
        path_style: true,
        credentials_dir: "/nowhere".into(),
        ca_file: None,
        encryption: None,
    }
}

/// A cluster `c` of some instances under one folder.
pub struct Cluster {
    pub root: tempfile::TempDir,
    pub register: Arc<MemoryRegister>,
    pub config: InstanceConfig,
    /// What archive_command and restore_command call.
    pub executable: PathBuf,
    /// Of PostgreSQL and of the agent's API.
    ports: BTreeMap<String, (u16, u16)>,
}

/// One running agent.
pub struct Instance {
    pub agent: Arc<Agent>,
    pub task: JoinHandle<()>,
    pub config: watch::Sender<Arc<InstanceConfig>>,
    _certificates: watch::Sender<u64>,
}

impl Cluster {
    pub fn new(register: MemoryRegister, instances: u32) -> Self {
        let root = tempfile::Builder::new().prefix("pgherd").tempdir_in("/tmp").unwrap();
        write_certificates(&root.path().join("certificates"));
        let app = root.path().join("app");
        fs::create_dir(&app).unwrap();
        for (name, content) in [("username", "app"), ("password", "it's \\ secret"), ("dbname", "app")] {
            fs::write(app.join(name), content).unwrap();
        }
        let config = InstanceConfig {
            cluster: "c".into(),
            namespace: "db".into(),
            instances,
            parameters: BTreeMap::from([("shared_buffers".into(), "16MB".into())]),
            hba: Vec::new(),
            bootstrap: Bootstrap::Initdb,
            store: None,
            replica_source: ReplicaSourcePolicy::Auto,
            timings: Timings::default(),
        };
        let ports = (0..instances).map(|ordinal| (format!("c-{ordinal}"), (free_port(), free_port()))).collect();
        Self { root, register: Arc::new(register), config, executable: "/bin/false".into(), ports }
    }

    pub fn layout(&self, pod: &str) -> Layout {
        let home = self.root.path().join(pod);
        let folder = |name: &str| -> PathBuf {
            let path = home.join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let at = |port: u16| ("localhost".to_owned(), port);
        let both = |(pod, (postgres, api)): (&String, &(u16, u16))| {
            [(pod.clone(), at(*postgres)), (format!("{pod}/agent"), at(*api))]
        };
        let peers = self.ports.iter().flat_map(both).collect();
        Layout {
            volume: folder("volume"),
            pgdata: home.join("volume/pgdata"),
            run: folder("run"),
            socket_dir: folder("socket"),
            config: home.join("instance.json"),
            tls_source: self.root.path().join("certificates"),
            app: self.root.path().join("app"),
            passwd: "/etc/passwd".into(),
            postgres_port: self.ports[pod].0,
            api_port: self.ports[pod].1,
            probe_port: free_port(),
            executable: self.executable.clone(),
            peers: Peers::Fixed(peers),
        }
    }

    /// Another one at each call, as at each start.
    pub fn identity(&self, pod: &str, uid: &str) -> Identity {
        let boot_nonce = format!("nonce-{}", free_port());
        let address = Some(std::net::Ipv4Addr::LOCALHOST.into());
        Identity { pod: pod.into(), pod_uid: uid.into(), namespace: "db".into(), boot_nonce, address }
    }

    /// Runs this script where pgherd would be called, and names an object store that nobody serves.
    pub fn stand_in(&mut self, script: &str) {
        self.executable = self.root.path().join("executable");
        fs::write(&self.executable, script).unwrap();
        fs::set_permissions(&self.executable, fs::Permissions::from_mode(0o755)).unwrap();
        self.config.store = Some(unserved_store());
    }

    /// Starts an agent for a pod; `uid` tells a new pod of an old name apart.
    pub fn start(&self, pod: &str, uid: &str) -> Instance {
        self.start_with(pod, uid, Fencer::none())
    }

    /// The same with a fencer.
    pub fn start_with(&self, pod: &str, uid: &str, fencer: Fencer) -> Instance {
        let layout = self.layout(pod);
        apply_certificates(&layout.tls_source, &layout.tls()).unwrap();
        let identity = self.identity(pod, uid);
        let (config_sender, config) = watch::channel(Arc::new(self.config.clone()));
        let (certificates_sender, certificates) = watch::channel(0);
        let board = Board::new(&identity);
        let agent = Arc::new(Agent::new(identity, layout, config, Box::new(Arc::clone(&self.register)), fencer, board));
        let task = tokio::spawn(run_agent(Arc::clone(&agent), certificates));
        Instance { agent, task, config: config_sender, _certificates: certificates_sender }
    }
}

impl Instance {
    /// Asks the agent's API with one of the test's certificates (`replication` or `operator`); the answer's first line
    /// and everything after.
    pub async fn ask(&self, root: &Path, client: &str, method: &str, path: &str, body: &str) -> (String, String) {
        let mut stream = self.begin(root, client, method, path, body).await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (first, rest) = answer.split_once("\r\n").unwrap();
        (first.to_owned(), rest.to_owned())
    }

    /// The same, of which the answer has yet to be read.
    pub async fn begin(
        &self,
        root: &Path,
        client: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let folder = root.join(format!("client-{client}"));
        fs::create_dir_all(&folder).unwrap();
        let source = root.join("certificates");
        fs::copy(source.join("ca.crt"), folder.join("ca.crt")).unwrap();
        for kind in ["crt", "key"] {
            fs::copy(source.join(format!("{client}.{kind}")), folder.join(format!("replication.{kind}"))).unwrap();
        }
        let connector = tokio_rustls::TlsConnector::from(Arc::new(build_client_config(&folder).unwrap()));
        let stream = tokio::net::TcpStream::connect(("localhost", self.agent.layout.api_port)).await.unwrap();
        let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
        );
        stream.write_all(format!("{head}content-length: {length}\r\n\r\n{body}").as_bytes()).await.unwrap();
        stream
    }

    /// Ends as SIGTERM does.
    pub async fn terminate(self) {
        self.agent.shutdown.cancel();
        self.task.await.unwrap();
    }
}
