//! Where an instance's files and peers are. In a pod these are the fixed paths of [`pgherd_core::instance::paths`]; a
//! test moves them under a temporary folder. Decides names only, touches no file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use pgherd_core::instance::{AGENT_PORT, PROBE_PORT, paths};

/// How another instance is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// `<pod>.<cluster>-pods.<namespace>.svc`, port 5432.
    Dns,
    /// By name, for tests: host and port of PostgreSQL, and under `<pod>/agent` those of the agent's API.
    Fixed(BTreeMap<String, (String, u16)>),
}

/// Paths and ports of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The volume.
    pub volume: PathBuf,
    /// The data directory on it.
    pub pgdata: PathBuf,
    /// Sockets and copies of the certificates; emptied when the pod goes.
    pub run: PathBuf,
    /// PostgreSQL's unix socket directory.
    pub socket_dir: PathBuf,
    /// `instance.json`.
    pub config: PathBuf,
    /// The mounted certificates.
    pub tls_source: PathBuf,
    /// `username`, `password`, `dbname`.
    pub app: PathBuf,
    /// The file that names the operating system user.
    pub passwd: PathBuf,
    /// PostgreSQL's port, on TCP and in the socket's name.
    pub postgres_port: u16,
    /// Port of the agent's HTTPS API.
    pub api_port: u16,
    /// Port of the kubelet's probes.
    pub probe_port: u16,
    /// The executable that archive_command and restore_command call.
    pub executable: PathBuf,
    /// How other instances are reached.
    pub peers: Peers,
}

impl Layout {
    /// The layout of a pod.
    #[must_use]
    pub fn pod() -> Self {
        Self {
            volume: paths::VOLUME.into(),
            pgdata: paths::PGDATA.into(),
            run: paths::RUN.into(),
            socket_dir: paths::POSTGRES_SOCKET.into(),
            config: paths::CONFIG.into(),
            tls_source: paths::TLS.into(),
            app: paths::APP.into(),
            passwd: "/etc/passwd".into(),
            postgres_port: 5432,
            api_port: AGENT_PORT,
            probe_port: PROBE_PORT,
            executable: Path::new(paths::RUN).join("bin/pgherd"),
            peers: Peers::Dns,
        }
    }

    /// Copies of the certificates with the owner and mode that PostgreSQL and libpq demand.
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.run.join("tls")
    }

    /// The socket on which archive_command and restore_command reach the agent.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// The socket of the fencer.
    #[must_use]
    pub fn fencer_socket(&self) -> PathBuf {
        self.run.join("fencer.sock")
    }

    /// Present while PGDATA is being filled: what is in it must not be started.
    #[must_use]
    pub fn building_marker(&self) -> PathBuf {
        self.volume.join("pgdata.building")
    }

    /// What was last found beyond the history, for as long as nothing newer is.
    #[must_use]
    pub fn divergent_record(&self) -> PathBuf {
        self.volume.join("pgherd.divergent.json")
    }

    /// WAL of this instance's time as primary that the archive has yet to get, for as long as there is any.
    #[must_use]
    pub fn kept_wal(&self) -> PathBuf {
        self.volume.join("pgherd.unarchived")
    }

    /// The user's parameters that the server last ran, or was about to run, with.
    #[must_use]
    pub fn accepted_parameters(&self) -> PathBuf {
        self.volume.join("pgherd.parameters.json")
    }

    /// Why the data directory was replaced when its recovery had failed over and over, until its successor has proven itself.
    #[must_use]
    pub fn replaced_record(&self) -> PathBuf {
        self.volume.join("pgherd.replaced")
    }

    /// Host and port of another instance's PostgreSQL.
    #[must_use]
    pub fn peer(&self, cluster: &str, namespace: &str, pod: &str) -> (String, u16) {
        let by_dns = || (format!("{pod}.{cluster}-pods.{namespace}.svc"), 5432);
        match &self.peers {
            Peers::Dns => by_dns(),
            Peers::Fixed(known) => known.get(pod).cloned().unwrap_or_else(by_dns),
        }
    }

    /// Host and port of another instance's agent.
    #[must_use]
    pub fn peer_agent(&self, cluster: &str, namespace: &str, pod: &str) -> (String, u16) {
        let (host, _) = self.peer(cluster, namespace, pod);
        match &self.peers {
            Peers::Dns => (host, AGENT_PORT),
            Peers::Fixed(known) => known.get(&format!("{pod}/agent")).cloned().unwrap_or((host, AGENT_PORT)),
        }
    }
}

/// The physical slot of a pod on its upstream: `pgherd_<pod name with - as _>`. Dots, which a pod's name may hold and a
/// slot's may not, become `_` as well.
#[must_use]
pub fn slot_name(pod: &str) -> String {
    let mapped: String =
        pod.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' }).collect();
    format!("pgherd_{mapped}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_named_after_its_pod() {
        assert_eq!(slot_name("shop-eu-2"), "pgherd_shop_eu_2");
    }

    #[test]
    fn a_peer_is_found_under_the_headless_service() {
        let (host, port) = Layout::pod().peer("shop", "db", "shop-1");
        assert_eq!((host.as_str(), port), ("shop-1.shop-pods.db.svc", 5432));
    }
}
