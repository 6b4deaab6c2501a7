//! The small tasks that feed the agent: sampling PostgreSQL, proving the disk, copying certificates. They observe and
//! publish; none of them changes what the server is.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

use crate::{
    agent::Agent,
    clock::Boottime,
    file_work,
    postgres::{
        probe::{self, Sample},
        sql::Session,
    },
    status,
    tls::apply_certificates,
};

/// PostgreSQL is asked this often.
const SAMPLE_EVERY: Duration = Duration::from_millis(400);
/// While it starts: who waits for it is told at once.
const SAMPLE_STARTING: Duration = Duration::from_millis(100);
/// A start that takes longer than so many questions is a recovery.
const STARTING_TRIES: u32 = 50;

/// Samples PostgreSQL and keeps the status current; never ends.
pub async fn keep_sampling(agent: Arc<Agent>) {
    let mut session: Option<(u64, Session)> = None;
    let (mut answered, mut tries) = (0, (0, 0_u32));
    loop {
        let generation = agent.server.generation();
        let mut pause = SAMPLE_EVERY;
        if session.as_ref().is_some_and(|(of, _)| *of != generation) {
            session = None;
        }
        match sample(&agent, &mut session, generation).await {
            Some(sample) => {
                status::show_sample(&agent, &sample);
                agent.publish_sample(sample);
                if answered != generation {
                    answered = generation;
                    agent.wake.notify_one();
                }
            }
            None => {
                session = None;
                if agent.sample().is_none() {
                    status::show_silence(&agent);
                }
                tries = if tries.0 == generation { (generation, tries.1.saturating_add(1)) } else { (generation, 0) };
                if answered != generation && agent.role().is_some() && tries.1 < STARTING_TRIES {
                    pause = SAMPLE_STARTING;
                }
            }
        }
        sleep(pause).await;
    }
}

async fn sample(agent: &Agent, session: &mut Option<(u64, Session)>, generation: u64) -> Option<Sample> {
    agent.role()?;
    if session.is_none() {
        *session = Some((generation, probe::connect(&agent.layout).await.ok()?));
    }
    let (_, open) = session.as_ref()?;
    probe::observe_sample(open, generation).await.inspect_err(|error| tracing::debug!(error = %error, "no sample")).ok()
}

/// Proves once a second that the volume takes a write to the platter; never ends. A write that hangs is not joined by
/// another one.
pub async fn keep_proving_the_disk(agent: Arc<Agent>) {
    let path = agent.layout.volume.join("pgherd.probe");
    loop {
        let started = Boottime::now();
        let target = path.clone();
        match file_work::run(move || prove_disk(&target)).await {
            Ok(Ok(())) => agent.note_disk_proof(started),
            Ok(Err(error)) => tracing::warn!(error = %error, "the volume did not take a write"),
            Err(error) => tracing::warn!(error = %error, "the disk's proof was cut short"),
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Overwrites the same 4 KiB, so that a full disk is not taken for a dead one.
fn prove_disk(path: &Path) -> io::Result<()> {
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&[0x5A; 4096])?;
    file.sync_data()
}

/// Copies changed certificates, tells PostgreSQL and whoever watches `changed`; never ends.
pub async fn keep_certificates(agent: Arc<Agent>, changed: watch::Sender<u64>) {
    loop {
        sleep(Duration::from_secs(5)).await;
        match apply_certificates(&agent.layout.tls_source, &agent.layout.tls()) {
            Ok(true) => {
                tracing::info!("the certificates changed");
                agent.server.reload().await;
                changed.send_modify(|version| *version += 1);
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(error = %error, "keeping the last certificates"),
        }
    }
}
