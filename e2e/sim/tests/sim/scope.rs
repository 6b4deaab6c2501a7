//! Where a task runs. Every task of a simulated container is wrapped: while its node is frozen it is not polled, when its
//! container is killed it is dropped, and the clock that it reads is its node's.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use jiff::Timestamp;
use pgherd_agent::clock::Boottime;
use tokio::{task::AbortHandle, time::Instant};

/// A machine. 0 is the API server's, 1 and 2 the operator's, 3 the clients', from 4 on the instances'.
pub(crate) type Node = usize;
pub(crate) const API: Node = 0;
pub(crate) const OPERATORS: [Node; 2] = [1, 2];
pub(crate) const CLIENTS: Node = 3;
pub(crate) const NODES: usize = 10;

pub(crate) fn node_of(ordinal: u32) -> Node {
    4 + ordinal as usize
}

pub(crate) fn node_name(node: Node) -> String {
    match node {
        0 => "api".to_owned(),
        1 | 2 => format!("op{node}"),
        3 => "clients".to_owned(),
        instance => format!("n{}", instance - 4),
    }
}

struct Clocks {
    started: Instant,
    /// What each node's CLOCK_BOOTTIME lacks, in nanoseconds: a virtual machine that was paused from outside.
    lacks: [u64; NODES],
}

thread_local! {
    static CLOCKS: RefCell<Option<Clocks>> = const { RefCell::new(None) };
    static HERE: Cell<Option<Node>> = const { Cell::new(None) };
}

/// Starts the clocks of this thread's run; to be called inside its runtime.
pub(crate) fn start_clocks() {
    let clocks = Clocks { started: Instant::now(), lacks: [0; NODES] };
    CLOCKS.with_borrow_mut(|slot| *slot = Some(clocks));
    pgherd_agent::clock::install_source(boottime);
}

/// Ends them: what is drawn for the next run follows from its seed alone.
pub(crate) fn stop_clocks() {
    CLOCKS.with_borrow_mut(|slot| *slot = None);
}

/// The node's clock stood still for this long.
pub(crate) fn hold_clock_back(node: Node, for_how_long: Duration) {
    CLOCKS.with_borrow_mut(|slot| {
        if let Some(clocks) = slot {
            clocks.lacks[node] += u64::try_from(for_how_long.as_nanos()).unwrap();
        }
    });
}

/// Time since the run began.
pub(crate) fn elapsed() -> Duration {
    CLOCKS.with_borrow(|slot| slot.as_ref().map_or(Duration::ZERO, |clocks| clocks.started.elapsed()))
}

/// The node whose task is being polled.
pub(crate) fn here() -> Option<Node> {
    HERE.get()
}

/// Half an hour after boot at the start, so that differences never reach below zero.
fn boottime() -> Boottime {
    let lacks = CLOCKS.with_borrow(|slot| match (slot, here()) {
        (Some(clocks), Some(node)) => clocks.lacks[node],
        _ => 0,
    });
    let now = Boottime::from_duration(Duration::from_secs(1_800) + elapsed());
    Boottime(now.0 - lacks)
}

/// The wall clock of everybody.
pub(crate) fn wall() -> Timestamp {
    let millis = i64::try_from(elapsed().as_millis()).unwrap();
    Timestamp::from_millisecond(1_795_600_000_000 + millis).unwrap()
}

/// A container, or a process of the operator: what is frozen and killed as one.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) node: Node,
    frozen: AtomicBool,
    dead: AtomicBool,
    thawed: Mutex<Vec<Waker>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Scope {
    pub(crate) fn new(node: Node) -> Arc<Self> {
        Arc::new(Self {
            node,
            frozen: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            thawed: Mutex::default(),
            tasks: Mutex::default(),
        })
    }

    /// Runs a task in here; nothing runs in a dead scope.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        if self.is_dead() {
            return;
        }
        let scoped = Scoped { scope: Arc::clone(self), inner: Box::pin(task) };
        let handle = tokio::spawn(scoped).abort_handle();
        let mut tasks = self.tasks.lock().unwrap();
        tasks.retain(|task| !task.is_finished());
        tasks.push(handle);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::SeqCst);
        for task in self.tasks.lock().unwrap().drain(..) {
            task.abort();
        }
    }

    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
    }

    pub(crate) fn thaw(&self) {
        self.frozen.store(false, Ordering::SeqCst);
        for waker in self.thawed.lock().unwrap().drain(..) {
            waker.wake();
        }
    }
}

struct Scoped {
    scope: Arc<Scope>,
    inner: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Future for Scoped {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.scope.is_dead() {
            return Poll::Ready(());
        }
        if self.scope.is_frozen() {
            self.scope.thawed.lock().unwrap().push(context.waker().clone());
            return Poll::Pending;
        }
        let before = HERE.replace(Some(self.scope.node));
        let outcome = self.inner.as_mut().poll(context);
        HERE.set(before);
        outcome
    }
}
