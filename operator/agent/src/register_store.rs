//! Where the register is kept: a trait with the three things that an agent does to it, and an in-memory register for
//! tests and simulation. Kubernetes' own is in [`crate::kubernetes_store`]. Decides nothing.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use futures::future::BoxFuture;
use pgherd_core::{
    lsn::Lsn,
    register::{LeaseView, Register},
};
use tokio::sync::{Notify, watch};

/// Why the register could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Somebody else wrote first: read again.
    #[error("the register was changed by somebody else")]
    Conflict,
    /// There is no Lease.
    #[error("the Lease does not exist")]
    NotFound,
    /// The API server answered and refused; not an outage.
    #[error("the API server refused: {0}")]
    Refused(String),
    /// No answer in time, or none that means anything.
    #[error("the API server can't be reached: {0}")]
    Unreachable(String),
    /// The Lease's annotation is not a register.
    #[error("the register is malformed: {0}")]
    Malformed(String),
}

/// The register, changed by compare-and-swap.
pub trait RegisterStore: Send + Sync + 'static {
    /// Reads with a quorum read.
    fn read(&self) -> BoxFuture<'_, Result<LeaseView, RegisterError>>;
    /// Replaces the register that was read as `version`, renews, and writes the primary's flushed position when given.
    /// Answers with what is then there.
    fn replace(
        &self,
        version: String,
        register: Register,
        lsn: Option<Lsn>,
    ) -> BoxFuture<'_, Result<LeaseView, RegisterError>>;
    /// Returns when the register may have changed; only a hint, reading decides.
    fn changed(&self) -> BoxFuture<'_, ()>;
}

/// A register in memory.
#[derive(Debug, Default)]
pub struct MemoryRegister {
    state: Mutex<(Register, u64, Lsn)>,
    cut_off: AtomicBool,
    hanging: watch::Sender<bool>,
    notify: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemoryRegister {
    /// Starts with this register.
    #[must_use]
    pub fn new(register: Register) -> Self {
        Self { state: Mutex::new((register, 1, Lsn::ZERO)), ..Self::default() }
    }

    /// Changes the register as the operator would, whatever its version is.
    pub fn edit(&self, change: impl FnOnce(&mut Register)) {
        let mut state = lock(&self.state);
        change(&mut state.0);
        state.1 += 1;
        drop(state);
        self.notify.notify_waiters();
    }

    /// What is there now.
    #[must_use]
    pub fn view(&self) -> LeaseView {
        let state = lock(&self.state);
        LeaseView { register: state.0.clone(), version: state.1.to_string(), lsn: state.2 }
    }

    /// Lets every access fail, or no longer.
    pub fn set_reachable(&self, reachable: bool) {
        self.cut_off.store(!reachable, Ordering::SeqCst);
    }

    /// Lets every access wait for ever, or no longer.
    pub fn set_hanging(&self, hanging: bool) {
        self.hanging.send_replace(hanging);
    }

    async fn wait_while_hanging(&self) {
        let _ = self.hanging.subscribe().wait_for(|hanging| !hanging).await;
    }

    fn check_reachable(&self) -> Result<(), RegisterError> {
        if self.cut_off.load(Ordering::SeqCst) { Err(RegisterError::Unreachable("cut off".to_owned())) } else { Ok(()) }
    }

    fn swap(&self, version: &str, register: Register, lsn: Option<Lsn>) -> Result<LeaseView, RegisterError> {
        self.check_reachable()?;
        let mut state = lock(&self.state);
        if state.1.to_string() != version {
            return Err(RegisterError::Conflict);
        }
        *state = (register, state.1 + 1, lsn.unwrap_or(state.2));
        drop(state);
        self.notify.notify_waiters();
        Ok(self.view())
    }
}

impl RegisterStore for std::sync::Arc<MemoryRegister> {
    fn read(&self) -> BoxFuture<'_, Result<LeaseView, RegisterError>> {
        Box::pin(async move {
            self.wait_while_hanging().await;
            self.check_reachable().map(|()| self.view())
        })
    }

    fn replace(
        &self,
        version: String,
        register: Register,
        lsn: Option<Lsn>,
    ) -> BoxFuture<'_, Result<LeaseView, RegisterError>> {
        Box::pin(async move {
            self.wait_while_hanging().await;
            self.swap(&version, register, lsn)
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.notify.notified())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgherd_core::register::Term;

    use super::*;

    #[tokio::test]
    async fn of_two_writers_with_the_same_version_one_wins() {
        let store = Arc::new(MemoryRegister::new(Register::default()));
        let read = store.read().await.unwrap();
        let mut first = read.register.clone();
        first.term = Term(1);
        let written = store.replace(read.version.clone(), first, Some(Lsn(9))).await.unwrap();
        assert_eq!((written.register.term, written.lsn), (Term(1), Lsn(9)));
        assert!(matches!(store.replace(read.version, Register::default(), None).await, Err(RegisterError::Conflict)));
    }
}
