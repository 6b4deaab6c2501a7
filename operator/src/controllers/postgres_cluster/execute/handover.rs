//! A planned change of the primary: the holder is asked by the register to stop, waited for, and followed by the usual
//! failover in the same round, so that clients miss as little as possible. A holder that does not stop goes on.
//!
//! The label of the holder stays until its successor gets one, since the holder is down in between and stays so. Where its
//! acknowledgement is needed it comes back as a standby at once: then its label goes when it is about to stop (ADR 15).

use std::time::Duration;

use kube::runtime::events::EventType;
use pgherd_core::{
    instance::Phase,
    register::{LeaseView, Register},
};
use pgherd_crds::{names::ROLE_REPLICA, v1alpha1::postgres_cluster::SwitchoverStatus};
use tokio::time::{Instant, sleep, timeout};

use super::{AT_ONCE_MS, ExecuteError, Round};
use crate::controllers::postgres_cluster::decide::{HandoverStep, Memory, RoleChange, routing::decide_unrouted};

/// How often the register is read while the holder stops.
const POLL: Duration = Duration::from_millis(50);
/// An answer that takes longer is asked for anew.
const READ_WITHIN: Duration = Duration::from_secs(1);
/// How long one round waits: failure detection must not go blind meanwhile.
const SLICE: Duration = Duration::from_secs(2);

impl Round<'_> {
    /// Carries out one step, and what follows from it.
    pub(super) async fn hand_over(&mut self, step: &HandoverStep, memory: &mut Memory) -> Result<(), ExecuteError> {
        self.done.requeue_after_ms = AT_ONCE_MS;
        let Some(seen) = self.observed.register() else { return Ok(()) };
        match step {
            HandoverStep::Begin { register, request, status } => {
                if let Some(request) = request
                    && !self.request_stands(request).await
                {
                    return Ok(());
                }
                if self.replace_if_same(seen, register).await?.is_none() {
                    return Ok(());
                }
                memory.handover_since_ms = Some(self.context.clock.now().monotonic_ms);
                self.tell_begun(status);
                self.done.switchover = Some(status.clone());
                self.wake_all();
                // The register holds the request now. It must be gone before the role has moved, else it would begin anew.
                if let Some(request) = request
                    && self.drop_request(request).await.is_none()
                {
                    return Ok(());
                }
                self.await_release(SLICE, memory).await
            }
            HandoverStep::Await { left_ms } => {
                self.wake_all();
                self.await_release(Duration::from_millis(*left_ms).min(SLICE), memory).await
            }
            HandoverStep::Withdraw { register, status } => {
                if self.replace_if_same(seen, register).await?.is_some() {
                    self.wake_all();
                    memory.handover_since_ms = None;
                    let message = status.message.clone().unwrap_or_default();
                    tracing::warn!(cluster = self.cluster.name, message, "the switchover is withdrawn");
                    self.tell(EventType::Warning, "SwitchoverWithdrawn", format!("{}: {message}", status.reason));
                    self.done.switchover = Some(status.clone());
                }
                Ok(())
            }
        }
    }

    fn tell_begun(&mut self, status: &SwitchoverStatus) {
        let target = status.target.as_deref().unwrap_or("the best replica");
        let note = format!("the primary role moves to {target}: {}", status.reason);
        tracing::info!(cluster = self.cluster.name, note, "switchover started");
        self.tell(EventType::Normal, "SwitchoverStarted", note);
    }

    /// Waits until the register says released, then goes on with sealing. What can't be read is asked for again.
    async fn await_release(&mut self, within: Duration, memory: &mut Memory) -> Result<(), ExecuteError> {
        let deadline = Instant::now() + within;
        let registers = self.registers();
        while Instant::now() < deadline {
            if let Ok(Ok(Some(stored))) = timeout(READ_WITHIN, registers.read(&self.cluster.name)).await {
                let register = &stored.view.register;
                if register.released || register.is_sealing() {
                    return self.replace_released(stored.view, memory).await;
                }
                if register.handover.is_none() {
                    return Ok(());
                }
                if self.is_about_to_stop().await {
                    self.prepare_routes(register).await?;
                }
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// The holder says so. No answer is none.
    async fn is_about_to_stop(&self) -> bool {
        let Some(address) = self.observed.holder_pod().and_then(|pod| pod.address(self.cluster)) else { return false };
        let asked = timeout(READ_WITHIN, self.agents.status(&address)).await;
        matches!(asked, Ok(Ok(status)) if status.phase == Phase::HandingOver)
    }

    /// The successor leaves the replicas' Service now, and with that the second begins in which nodes change nothing more: at
    /// its end they learn of both changes of the primary's Service at once, and never lead to nobody.
    async fn prepare_routes(&mut self, register: &Register) -> Result<(), ExecuteError> {
        if !register.can_spare_holder() {
            return self.unroute_holder().await;
        }
        let target = register.handover.as_ref().and_then(|handover| handover.target.as_deref());
        let replicas = self.observed.pods.iter().filter(|pod| pod.role.as_deref() == Some(ROLE_REPLICA));
        let successor = replicas
            .filter(|pod| target.is_none_or(|target| target == pod.name))
            .max_by_key(|pod| pod.status().map(|status| status.received_lsn))
            .map(|pod| RoleChange { pod: pod.name.clone(), uid: pod.uid.clone(), role: None });
        match successor {
            Some(change) => self.change_role(&change).await,
            None => Ok(()),
        }
    }

    /// Nobody is led to the holder any more.
    async fn unroute_holder(&mut self) -> Result<(), ExecuteError> {
        let holder = self.observed.holder_pod().map(|pod| pod.name.as_str());
        self.change_roles(&decide_unrouted(self.observed, holder)).await
    }

    /// The holder has stopped, and the failover follows.
    async fn replace_released(&mut self, lease: LeaseView, memory: &mut Memory) -> Result<(), ExecuteError> {
        if !lease.register.can_spare_holder() {
            self.unroute_holder().await?;
        }
        self.done.register = Some(lease.register.clone());
        let step = self.next_step(Some(&lease), None, memory);
        self.fail_over(step, Some(lease), memory).await
    }
}
