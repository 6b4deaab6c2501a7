//! How a process that only streams is set up: few threads, so that few stacks and allocator arenas add to its memory.
//!
//! Nothing here is for the agent or the operator, which have other things to do besides.

use std::{io, time::Duration};

use tokio::runtime::{Builder, Runtime};

/// Threads that wait for the network and copy; compression runs on threads of its own.
const WORKER_THREADS: usize = 2;
/// Compression, decompression and file access at the same time.
const BLOCKING_THREADS: usize = 8;

/// The runtime of a backup, a restore or a verification that has the process to itself.
///
/// # Errors
/// When no thread can be made.
pub fn build_runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(60))
        .enable_all()
        .build()
}
