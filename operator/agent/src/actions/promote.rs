//! Promotion: the term is on disk and the synchronous settings are strict before the first write can be acknowledged.

use std::time::Duration;

use pgherd_core::{instance::Phase, quorum::synchronous_standby_names, register::Register};
use tokio::time::{Instant, sleep};

use super::{ActionError, follow::read_local, primary, timeline_numbers::hold_taken_numbers};
use crate::{
    agent::Agent,
    clock::Boottime,
    lease::{self, Tenure},
    postgres::{
        config::{Role, apply_config, apply_start_config},
        sql::{Session, SqlError},
    },
};

/// A promotion may take this long.
const PROMOTE_SECONDS: u64 = 60;

/// Promotes the running standby in the register's term.
///
/// # Errors
/// [`ActionError`]; a second try goes on where this one stopped.
pub async fn promote(agent: &Agent, register: &Register) -> Result<(), ActionError> {
    lease::renew(agent, register.term).await?;
    agent.tenure.send_replace(Some(Tenure { term: register.term, excused_until: Boottime(0) }));
    let mut local = read_local(agent)?;
    local.term = register.term;
    local.was_primary = true;
    local.write(&agent.layout.pgdata)?;
    crate::status::show_local(agent, Some(&local), agent.board.status().system_id.as_deref());
    make_strict(agent, register).await?;
    // From here on it refuses clients: the Service may lead to it.
    agent.board.say(Phase::Promoting, format!("promotion in term {}", register.term));
    let generation = agent.server.generation();
    agent.gate.begin(generation, register);
    if register.sets().any(|set| set.acks == 0)
        && let Some(history) = agent.board.status().history
    {
        hold_taken_numbers(agent, history.timeline).await;
    }
    run_promotion(agent).await?;
    // A replica that never streamed has replayed all that it needs.
    agent.hold_backup(None);
    local.promoted_term = register.term;
    local.write(&agent.layout.pgdata)?;
    let admits = agent.gate.admits(generation);
    let role = primary::primary_role(register, admits);
    apply_start_config(&agent.layout, &agent.config(), &role, &agent.identity.pod)?;
    agent.server.reload().await;
    agent.set_role(Some(role));
    primary::note_quorum(agent, register);
    start_checkpoint(agent);
    let _ = agent.sample_now().await.map(|sample| crate::status::show_sample(agent, &sample));
    if admits {
        agent.gate.note_open(generation);
        agent.board.say(Phase::Primary, "");
    } else {
        primary::show_closed(agent);
    }
    Ok(())
}

/// Cuts the replication off and puts the synchronous standbys into effect while the server is still a standby.
async fn make_strict(agent: &Agent, register: &Register) -> Result<(), ActionError> {
    let names = synchronous_standby_names(register.quorum_to_apply(), register.term);
    let role = Role::Standby { upstream: None, receiver_name: String::new(), promotion: Some(names.clone()) };
    if apply_config(&agent.layout, &agent.config(), &role, &agent.identity.pod)? {
        agent.server.reload().await;
    }
    agent.set_role(Some(role));
    for _ in 0..150 {
        let sample = agent.sample_now().await?;
        if sample.synchronous_standby_names == names
            && sample.receiver.is_none()
            && (names.is_empty() || sample.checkpointer_idle)
        {
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Err(ActionError::NotYet("the synchronous settings did not take effect within three seconds".to_owned()))
}

async fn run_promotion(agent: &Agent) -> Result<(), ActionError> {
    let patience = Duration::from_secs(PROMOTE_SECONDS + 5);
    let session = Session::connect(&agent.layout.socket_dir, agent.layout.postgres_port, "postgres", patience).await?;
    // pg_promote itself looks only every 100 ms whether it is done.
    let asked = session.query("SELECT pg_is_in_recovery() AND NOT pg_promote(false)", &[]).await?;
    if asked.first().is_none_or(|row| row.get::<_, bool>(0)) {
        return Err(ActionError::Sql(SqlError::Timeout));
    }
    let end = Instant::now() + Duration::from_secs(PROMOTE_SECONDS);
    while Instant::now() < end {
        let recovering = session.query("SELECT pg_is_in_recovery()", &[]).await?;
        if recovering.first().is_some_and(|row| !row.get::<_, bool>(0)) {
            return Ok(());
        }
        sleep(Duration::from_millis(10)).await;
    }
    Err(ActionError::Sql(SqlError::Timeout))
}

/// Writes the new timeline into pg_control, which pg_rewind of the former primary reads. Nobody waits for it.
fn start_checkpoint(agent: &Agent) {
    let layout = agent.layout.clone();
    drop(tokio::spawn(async move {
        let session =
            Session::connect(&layout.socket_dir, layout.postgres_port, "postgres", Duration::from_secs(600)).await;
        if let Ok(session) = session
            && let Err(error) = session.execute("CHECKPOINT").await
        {
            tracing::warn!(error = %error, "the checkpoint after the promotion failed");
        }
    }));
}
