//! Something that changes and can be waited for. Waiters wake in the order in which they began to wait; tokio's watch draws
//! that order anew in each process, and a seed would not repeat itself.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::Notify;

#[derive(Debug, Default)]
struct Inner {
    count: AtomicU64,
    notify: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct Signal(Arc<Inner>);

impl Signal {
    /// It has changed.
    pub(crate) fn raise(&self) {
        self.0.count.fetch_add(1, Ordering::SeqCst);
        self.0.notify.notify_waiters();
    }

    /// Sees changes from now on.
    pub(crate) fn subscribe(&self) -> Waiter {
        Waiter { signal: Arc::clone(&self.0), seen: self.0.count.load(Ordering::SeqCst) }
    }
}

#[derive(Debug)]
pub(crate) struct Waiter {
    signal: Arc<Inner>,
    seen: u64,
}

impl Waiter {
    /// What has changed up to now counts as seen.
    pub(crate) fn mark_seen(&mut self) {
        self.seen = self.signal.count.load(Ordering::SeqCst);
    }

    /// Returns after a change that was not seen.
    pub(crate) async fn changed(&mut self) {
        loop {
            // It is woken by a change from here on.
            let notified = self.signal.notify.notified();
            let count = self.signal.count.load(Ordering::SeqCst);
            if count != self.seen {
                self.seen = count;
                return;
            }
            notified.await;
        }
    }
}
