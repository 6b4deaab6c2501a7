//! A data directory that was something else before comes back.

use std::time::Duration;

use pgherd_agent::{
    actions::branch::{OwnEnd, Standing, decide_standing},
    local_state::LocalState,
    postgres::config::Role,
};
use pgherd_core::{instance::Phase, register::Register};

use super::{
    Failed, failed, local, new_member, runs,
    standby::{await_replay_end, change_role, copy, ensure_slot, meet_primary, resume, start_as},
    stop_server,
};
use crate::{
    data::{Content, DataDir},
    instance::Instance,
    trace::note,
};

/// The end of this data directory's WAL; where only a recovery can tell, a standby does it.
async fn observe_end(on: &Instance) -> Result<OwnEnd, Failed> {
    let segment_bytes = 1 << 24;
    let read = || on.volume.with(|content| content.data().cloned()).ok_or_else(|| failed("nothing to rejoin with"));
    if runs(on) {
        if matches!(on.agent.role(), Some(Role::Standby { upstream: Some(_), .. })) {
            change_role(on, None)?;
        }
        let missing = |what| failed(format!("looking for the end of its WAL: {what}"));
        let lsn = await_replay_end(on, Duration::from_secs(3)).await.map_err(missing)?.replayed;
        return Ok(OwnEnd { history: read()?.history, lsn, known_to: lsn, segment_bytes });
    }
    let data = read()?;
    if let Some(checkpoint) = data.shut_down_at {
        return Ok(OwnEnd::after_clean_stop(data.history, checkpoint, segment_bytes));
    }
    start_as(on, None)?;
    Err(failed("looking for the end of its WAL"))
}

pub(super) async fn rejoin(on: &Instance, register: &Register, pod: &str) -> Result<(), Failed> {
    on.agent.board.say(Phase::Rewinding, format!("comparing with {pod}"));
    let (server, theirs) = match meet_primary(on, register, pod).await {
        Ok(met) => met,
        Err(error) => {
            if !runs(on) {
                start_as(on, None)?;
            }
            return Err(error);
        }
    };
    let own = observe_end(on).await?;
    let state = local(on)?;
    let led = state.was_primary && state.term < register.term;
    let standing = decide_standing(&own, &theirs.history, theirs.flushed_lsn(), led);
    let shared_to = match standing {
        Standing::OnHistory => own.known_to,
        Standing::Diverged { fork, .. } => fork,
    };
    if standing == Standing::OnHistory && own.known_to > theirs.flushed_lsn() {
        return Err(failed(format!("{pod} has not written as much as this instance yet")));
    }
    let mine = on.volume.with(|content| content.data().map(|data| data.page_before(shared_to))).unwrap_or_default();
    let same = mine == theirs.page_before(shared_to);
    note(format!("{} rejoins {pod}: {standing:?}, the same bytes before {shared_to}: {same}", on.pod));
    match (standing, same) {
        (Standing::OnHistory, true) => return resume(on, register, &server, pod),
        (Standing::Diverged { same_number: true, .. }, _) | (_, false) => {
            note(format!("{} moves its data directory aside", on.pod));
            stop_server(on);
            on.agent.set_role(None);
            on.volume.with(|content| *content = Content::Partial);
            on.agent.set_diverged(false);
            on.agent.streaming.note_streaming();
            return Ok(());
        }
        _ => {}
    }
    ensure_slot(on, &server);
    stop_server(on);
    on.agent.set_role(None);
    on.volume.with(|content| *content = Content::Partial);
    let source = copy(on, &server, on.world.random.between(300, 2_000)).await?;
    let state = LocalState { sealed_term: state.sealed_term, ..new_member(on) };
    on.volume.with(|content| *content = Content::Complete(DataDir::copied(&source, state)));
    on.agent.set_diverged(false);
    Ok(())
}
