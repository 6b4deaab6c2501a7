//! Writes of the register, each by compare-and-swap.

use pgherd_core::register::{LeaseView, Register};

use super::{AT_ONCE_MS, ExecuteError, Round};
use crate::kubernetes::register::{RegisterClient, StoredRegister, WriteOutcome};

impl Round<'_> {
    pub(super) fn registers(&self) -> RegisterClient {
        RegisterClient::new(self.context.client.clone(), &self.cluster.namespace)
    }

    /// Makes an empty register. It is older than every volume claim of a new cluster, which is how later rounds know
    /// that a claim is new.
    pub(super) async fn create_register(&mut self) -> Result<(), ExecuteError> {
        self.context.metrics.api_writes.inc();
        let (cluster, owner) = (&self.cluster.name, self.cluster.owner.clone());
        let outcome = self.registers().create(cluster, owner, &Register::default(), &self.cluster.timings).await?;
        if let WriteOutcome::Written(stored) = outcome {
            self.done.register = Some(stored.view.register);
        }
        self.done.requeue_after_ms = AT_ONCE_MS;
        Ok(())
    }

    /// Replaces exactly the version that was seen: for decisions that hold only while nobody has renewed. None if
    /// somebody wrote in between.
    pub(super) async fn replace_exactly(
        &mut self,
        seen: &StoredRegister,
        next: &Register,
    ) -> Result<Option<LeaseView>, ExecuteError> {
        self.context.metrics.api_writes.inc();
        match self.registers().replace(&self.cluster.name, seen, next, &self.cluster.timings).await? {
            WriteOutcome::Written(stored) => {
                self.done.register = Some(stored.view.register.clone());
                Ok(Some(stored.view))
            }
            WriteOutcome::Conflict => Ok(None),
        }
    }

    /// Reads again and replaces the register if its content is still what was decided on: renewals in between don't
    /// matter. None if the content changed.
    pub(super) async fn replace_if_same(
        &mut self,
        decided_on: &Register,
        next: &Register,
    ) -> Result<Option<LeaseView>, ExecuteError> {
        let Some(now) = self.registers().read(&self.cluster.name).await? else { return Ok(None) };
        if now.view.register != *decided_on {
            return Ok(None);
        }
        self.replace_exactly(&now, next).await
    }
}
