//! An instance is to be built anew, because somebody asked for it by annotation. Pure; whether it may begin is decided in
//! `pgherd_core`. The request is dropped before it is carried out: at most once, and never again by an old manifest.

use pgherd_core::failover::decide_rebuild;
use pgherd_crds::names::keys;

use super::{
    Action, Plan,
    handover::{Answer, Request, Scene},
};

/// Adds the step, or the refusal. A plan that has another step comes first: the request waits a round.
pub fn plan_rebuild(scene: &Scene<'_>, plan: &mut Plan) {
    let Some(value) = scene.cluster.requests.rebuild.clone() else { return };
    let request = Request { key: keys::REBUILD, value };
    match decide_rebuild(scene.register, &scene.observed.views(), &request.value) {
        Err(why) => plan.answers.push(Answer { request, refused: Some(why.to_string()) }),
        Ok(()) if plan.action == Action::Nothing && plan.stalled.is_none() => plan.action = Action::Rebuild(request),
        Ok(()) => {}
    }
}
