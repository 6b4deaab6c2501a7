//! The promise not to follow an old term any more.

use std::time::Duration;

use pgherd_agent::{
    actions::seal::{lift_if_released, respect_promise},
    postgres::config::Role,
};
use pgherd_core::{
    instance::{Phase, SealReport},
    register::Term,
};
use tokio::time::{Instant, timeout};

use super::{
    Failed, failed, runs,
    standby::{await_replay_end, change_role, start_as},
    stop_now,
};
use crate::instance::Instance;

pub(super) fn promise(on: &Instance, term: Term) -> Result<(), Failed> {
    let Some(mut state) = on.volume.local() else { return Ok(()) };
    if state.sealed_term < term {
        let vouches = &on.agent.vouches;
        if let Err(vouching) = vouches.begin_seal(term) {
            lift_if_released(&on.agent, vouching);
            let still = vouches.begin_seal(term);
            if on.world.mutant.keeps_promises() {
                still.map_err(failed)?;
            }
        }
        state.sealed_term = term;
        on.volume.put_local(&state);
        on.agent.board.update(|status| status.sealed_term = term);
    }
    Ok(())
}

/// Answers `POST /v1/seal`: the report, or why there is none.
pub(crate) async fn seal(on: &Instance, term: Term) -> Result<SealReport, (u16, String)> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let busy = |_| (503, "the agent is busy".to_owned());
    let _acting = timeout(Duration::from_secs(3), on.agent.acting.lock()).await.map_err(busy)?;
    let known = on.volume.local().ok_or((503, "no data directory".to_owned()))?;
    if known.sealed_term > term || known.term >= term {
        return Err((409, format!("promised {} and followed {}", known.sealed_term, known.term)));
    }
    let unavailable = |error: Failed| (503, error.why);
    if on.world.mutant.seals() {
        let respected = respect_promise(&on.agent, term).await;
        if on.world.mutant.keeps_promises() {
            respected.map_err(|vouching| (409, vouching.to_string()))?;
        }
        if matches!(on.agent.role(), Some(Role::Primary { .. })) {
            stop_now(on, "a failover has begun");
        }
        promise(on, term).map_err(unavailable)?;
        if runs(on) {
            change_role(on, None).map_err(unavailable)?;
        } else {
            start_as(on, None).map_err(unavailable)?;
        }
    }
    let sample = await_replay_end(on, deadline.saturating_duration_since(Instant::now())).await;
    let sample = sample.map_err(|missing| (503, format!("not sealed within 10 s: {missing}")))?;
    on.agent.board.say(Phase::Sealed, "sealed: waiting for the decision");
    let history = on.volume.with(|content| content.data().map(|data| data.history.clone()));
    let history = history.ok_or((503, "its timeline is not known".to_owned()))?;
    Ok(SealReport {
        member: known.member,
        pod: on.pod.clone(),
        sealed_term: term,
        term: known.term,
        history,
        received_lsn: sample.received,
        replayed_lsn: sample.replayed,
    })
}
