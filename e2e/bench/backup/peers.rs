//! Who is compared. What each of them runs stands in `peers/<name>.sh`.

use pgherd_e2e::Result;

use crate::{
    meter::{Cost, measure},
    place::{Place, Side},
};

/// One way to do it, or a ceiling that no way can pass.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// The program that must be there.
    program: &'static str,
    pub(crate) backs_up: bool,
    pub(crate) restores: bool,
    /// Whether it is measured beside a load.
    pub(crate) loaded: bool,
    /// What it is held back by there.
    pub(crate) limit: &'static str,
}

const fn peer(name: &'static str, program: &'static str) -> Peer {
    Peer { name, program, backs_up: true, restores: true, loaded: false, limit: "" }
}

const fn ceiling(name: &'static str, program: &'static str, restores: bool) -> Peer {
    Peer { backs_up: !restores, restores, ..peer(name, program) }
}

const fn loaded(peer: Peer, limit: &'static str) -> Peer {
    Peer { loaded: true, limit, ..peer }
}

pub(crate) const PGHERD: &str = "pgherd";
/// The same, by another way to read.
pub(crate) const PGHERD_LOCAL: &str = "pgherd-local";

/// In the order in which they take turns; pgherd is first, since a ceiling takes the size of its backup.
pub(crate) const PEERS: [Peer; 12] = [
    loaded(peer(PGHERD, "pgherd"), "the server (MAX_RATE)"),
    loaded(peer(PGHERD_LOCAL, "pgherd"), "itself, while it reads"),
    peer("basebackup-gzip", "pg_basebackup"),
    peer("basebackup-server-zstd", "pg_basebackup"),
    loaded(peer("basebackup-zstd", "pg_basebackup"), "the server (MAX_RATE)"),
    loaded(peer("pgbackrest", "pgbackrest"), "nothing: it knows no limit"),
    loaded(peer("barman", "barman-cloud-backup"), "the upload, of compressed bytes"),
    loaded(peer("wal-rus", "walrus"), "nothing"),
    ceiling("ceiling-stream", "pg_basebackup", false),
    ceiling("ceiling-codec", "zstd", false),
    ceiling("ceiling-store", "mc", false),
    ceiling("ceiling-disk", "cp", true),
];

/// Who would belong here and is not measured, and why.
pub(crate) const NOT_MEASURED: [(&str, &str); 1] = [(
    "wal-g",
    "`go install` refuses its module, which replaces dependencies; building it by other means is not done here",
)];

impl Peer {
    pub(crate) fn is_ceiling(&self) -> bool {
        self.name.starts_with("ceiling-")
    }

    /// The version, or why it is not here.
    pub(crate) async fn observe(&self, place: &Place) -> std::result::Result<String, String> {
        let found = place.run(Side::Other, &["sh", "-c", &format!("command -v {}", self.program)]).await;
        if found.is_err() {
            let why = place.absent(self.name);
            return Err(why.unwrap_or_else(|| format!("{} is not in the root file system", self.program)));
        }
        let version = self.call(place, "version").await.map_err(|error| error.to_string())?;
        Ok(version.lines().next().unwrap_or_default().to_owned())
    }

    /// Runs one of its functions, on nobody's account.
    pub(crate) async fn call(&self, place: &Place, function: &str) -> Result<String> {
        place.run(Side::Other, &["bash", "/opt/peers/call.sh", self.name, function]).await
    }

    /// Runs one of its functions on the client's account.
    pub(crate) async fn measure(&self, place: &Place, function: &str, variables: &[String]) -> Result<Cost> {
        let mut program = vec!["env"];
        program.extend(variables.iter().map(String::as_str));
        program.extend(["bash", "/opt/peers/call.sh", self.name, function]);
        measure(place, &program).await
    }

    /// Bytes that it has in the store.
    pub(crate) async fn stored_bytes(&self, place: &Place) -> Result<u64> {
        let folder = format!("store/backups/{}/", self.name);
        let text = mc(place, &["du", "--json", &folder]).await?;
        let answer: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
        answer["size"].as_u64().ok_or_else(|| format!("mc du answers {answer}").into())
    }

    /// Deletes what it has in the store.
    pub(crate) async fn forget(&self, place: &Place) -> Result<()> {
        mc(place, &["rm", "--recursive", "--force", "--quiet", &format!("store/backups/{}/", self.name)])
            .await
            .map(drop)
    }
}

/// Runs mc.
pub(crate) async fn mc(place: &Place, arguments: &[&str]) -> Result<String> {
    let mut program = vec!["mc", "--config-dir", "/work/mc"];
    program.extend(arguments);
    place.run(Side::Other, &program).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_file_with_what_is_called() {
        let folder = pgherd_e2e::kubectl::root().join("e2e/bench/backup/peers");
        for peer in &PEERS {
            let text = std::fs::read_to_string(folder.join(format!("{}.sh", peer.name))).unwrap();
            let has = |function: &str| text.contains(&format!("\n{function}() "));
            assert_eq!(
                (has("backup"), has("restore"), has("version")),
                (peer.backs_up, peer.restores, true),
                "{}",
                peer.name
            );
        }
    }
}
