//! What an agent answers over its API, and how agents reach each other while the API server is away. The answers are the
//! agent's own, but for the seal, which is restated in [`crate::actions`].

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::StatusCode;
use pgherd_agent::{
    failsafe::{PeerError, PeerTransport},
    lease,
    vouch::{VouchError, vouch},
};
use pgherd_core::{
    failsafe::Promise,
    instance::{AgentError, InstanceStatus, SealRequest, VouchRequest},
};
use tokio::sync::oneshot;

use crate::{actions::seal, instance::Instance, scope::Node, world::World};

/// The status as it is shown.
fn show(on: &Instance) -> InstanceStatus {
    let mut status = on.agent.board.status();
    if on.world.mutant.keeps_promises() {
        status.vouch = on.agent.vouches.show(status.member.as_ref());
    }
    status
}

/// What the operator may ask.
pub(crate) async fn answer(on: &Arc<Instance>, path: &str, body: &Bytes) -> (StatusCode, Bytes) {
    let refuse = |code: u16, error: String| {
        (StatusCode::from_u16(code).unwrap(), Bytes::from(serde_json::to_vec(&AgentError { error }).unwrap()))
    };
    match path {
        "/v1/status" => (StatusCode::OK, Bytes::from(serde_json::to_vec(&show(on)).unwrap())),
        "/v1/seal" => {
            let request: SealRequest = serde_json::from_slice(body).unwrap();
            match seal(on, request.term).await {
                Ok(report) => (StatusCode::OK, Bytes::from(serde_json::to_vec(&report).unwrap())),
                Err((code, error)) => {
                    crate::trace::note(format!("{} does not seal: {error}", on.pod));
                    refuse(code, error)
                }
            }
        }
        "/v1/wake" => match lease::refresh(&on.agent).await {
            Ok(_) => {
                on.agent.wake.notify_one();
                (StatusCode::NO_CONTENT, Bytes::new())
            }
            Err(error) => refuse(503, error.to_string()),
        },
        _ => refuse(404, "no such path".to_owned()),
    }
}

async fn promise(on: &Arc<Instance>, request: &VouchRequest) -> Result<Promise, VouchError> {
    // The agent reads what its data directory knows of itself from disk.
    on.write_local();
    vouch(&on.agent, request).await
}

/// The way from one agent to the others.
pub(crate) struct Peers {
    pub(crate) world: Arc<World>,
    pub(crate) node: Node,
    pub(crate) pod: String,
}

impl PeerTransport for Peers {
    fn vouch<'a>(&'a self, peer: &'a str, request: &'a VouchRequest) -> BoxFuture<'a, Result<Promise, PeerError>> {
        self.ask(peer, request).boxed()
    }
}

impl Peers {
    async fn ask(&self, peer: &str, request: &VouchRequest) -> Result<Promise, PeerError> {
        let world = &self.world;
        world.while_frozen(self.node).await;
        let refused = || PeerError::Connect(io::ErrorKind::ConnectionRefused.into());
        // By the address that it was last found at; a pod that was made again has another.
        let find = || world.running().into_iter().rev().find(|instance| instance.pod == peer);
        let there = find().map(|instance| instance.scope.node).ok_or_else(refused)?;
        let random = world.random.fork(&format!("{} vouch {peer}", self.pod));
        world.net.travel(&random, self.node, there).await;
        let instance = find().ok_or_else(refused)?;
        let (answer, answered) = oneshot::channel();
        let (server, request) = (Arc::clone(&instance), request.clone());
        instance.scope.spawn(async move {
            // Whoever asked may have given up.
            let _ = answer.send(promise(&server, &request).await);
        });
        let outcome = answered.await.map_err(|_| PeerError::Exchange("connection reset".to_owned()))?;
        world.net.travel(&random, there, self.node).await;
        outcome.map_err(|error| PeerError::Refused(error.to_string()))
    }
}
