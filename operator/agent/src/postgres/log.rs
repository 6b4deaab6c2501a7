//! The server's stderr: passed on unchanged, and read for the few messages that the status needs. It never holds the
//! server up: while nobody takes the log, what does not fit into the queue is dropped, and that is said afterwards.

use std::{
    io::Write,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, SyncSender, TrySendError},
    },
    thread,
};

use nix::fcntl::{FcntlArg, fcntl};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::ChildStderr,
};

/// Bytes that are read and passed on at once.
const PIECE: usize = 64 << 10;
/// Pieces that wait for whoever reads the agent's stderr.
const QUEUE: usize = 64;
/// Only the beginning of a line is compared with anything.
const MAX_LINE: usize = 8 << 10;
/// The kernel holds this much while the agent is not scheduled.
const PIPE_BYTES: i32 = 1 << 20;

/// What PostgreSQL says (`syncrep.c`) when a commit returns although its wait for replicas was cut short. The commit is
/// then visible, and may not be anywhere else.
const CANCELLED: [&str; 2] = [
    "canceling wait for synchronous replication due to user request",
    "canceling the wait for synchronous replication and terminating connection due to administrator command",
];

/// What was seen in the log since the server's start.
#[derive(Debug, Default)]
pub struct LogWatch {
    cancelled_waits: AtomicU64,
    disk_full: AtomicBool,
    recovery_failed: AtomicBool,
    last_transaction: Mutex<Option<String>>,
    last_fatal: Mutex<Option<String>>,
}

impl LogWatch {
    /// Forgets everything: another server starts.
    pub fn reset(&self) {
        self.cancelled_waits.store(0, Ordering::SeqCst);
        self.disk_full.store(false, Ordering::SeqCst);
        self.recovery_failed.store(false, Ordering::SeqCst);
        *lock(&self.last_transaction) = None;
        *lock(&self.last_fatal) = None;
    }

    /// Commits whose synchronous wait was cancelled.
    #[must_use]
    pub fn cancelled_waits(&self) -> u64 {
        self.cancelled_waits.load(Ordering::SeqCst)
    }

    /// The server said that no space is left.
    #[must_use]
    pub fn disk_full(&self) -> bool {
        self.disk_full.load(Ordering::SeqCst)
    }

    /// A standby's startup process ended by an error or a crash of its own, after the configuration was found to be good.
    #[must_use]
    pub fn recovery_failed(&self) -> bool {
        self.recovery_failed.load(Ordering::SeqCst)
    }

    /// The commit time of the last transaction that a recovery replayed, in PostgreSQL's words; none if it replayed none.
    #[must_use]
    pub fn last_transaction(&self) -> Option<String> {
        lock(&self.last_transaction).clone()
    }

    /// What the server, or one of its processes, ended with.
    #[must_use]
    pub fn last_fatal(&self) -> Option<String> {
        lock(&self.last_fatal).clone()
    }

    fn note_line(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        if is_cancelled_wait(&line) {
            self.cancelled_waits.fetch_add(1, Ordering::SeqCst);
        }
        if line.contains("No space left on device") && !line.contains("STATEMENT:") {
            self.disk_full.store(true, Ordering::SeqCst);
        }
        if is_failed_recovery(&line) {
            self.recovery_failed.store(true, Ordering::SeqCst);
        }
        if let Some(time) = find_last_transaction(&line) {
            *lock(&self.last_transaction) = Some(time.to_owned());
        }
        if let Some((_, text)) = line.split_once("FATAL:  ") {
            *lock(&self.last_fatal) = Some(text.trim_end().to_owned());
        }
    }
}

/// The severity is PostgreSQL's own word: `lc_messages` is fixed, and a statement that quotes the text has another one.
fn is_cancelled_wait(line: &str) -> bool {
    let Some((_, message)) = line.split_once("WARNING:  ") else { return false };
    // log_error_verbosity = verbose puts the SQLSTATE before the text.
    let text = match message.get(5..7) {
        Some(": ") => message.get(7..).unwrap_or_default(),
        _ => message,
    };
    CANCELLED.contains(&text.trim_end())
}

fn lock(text: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The postmaster's words (`LogChildExit`) for a startup process that failed. By signal 9 somebody killed it, for its memory most likely.
fn is_failed_recovery(line: &str) -> bool {
    let Some((_, message)) = line.split_once("LOG:  ") else { return false };
    let Some((_, end)) = message.split_once("startup process (PID ") else { return false };
    let killed = end.contains("was terminated by signal 9");
    (end.contains(" exited with exit code ") || end.contains(" was terminated by signal ")) && !killed
}

/// `xlogrecovery.c` says it at the end of every recovery that replayed a commit.
fn find_last_transaction(line: &str) -> Option<&str> {
    let (_, message) = line.split_once("LOG:  ")?;
    message.split_once("last completed transaction was at log time ").map(|(_, time)| time.trim_end())
}

/// Cuts a stream into lines, of which only the beginning is kept.
#[derive(Debug, Default)]
struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            self.push(line);
            each(&self.begun);
            self.begun.clear();
            rest = after.get(1..).unwrap_or_default();
        }
        self.push(rest);
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = MAX_LINE.saturating_sub(self.begun.len()).min(bytes.len());
        self.begun.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }
}

/// Follows a server's stderr until its last process has closed it.
pub fn follow(stderr: ChildStderr, watch: Arc<LogWatch>) {
    // A smaller pipe works as well.
    let _ = fcntl(stderr.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    drop(tokio::spawn(pass_on(stderr, watch, writer())));
}

async fn pass_on(mut stderr: impl AsyncRead + Unpin, watch: Arc<LogWatch>, out: SyncSender<Vec<u8>>) {
    let (mut lines, mut dropped) = (Lines::default(), 0_usize);
    let mut piece = vec![0; PIECE];
    while let Ok(length) = stderr.read(&mut piece).await {
        let bytes = piece.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return;
        }
        lines.feed(bytes, |line| watch.note_line(line));
        if dropped > 0 {
            let text = format!("\npgherd: {dropped} bytes of PostgreSQL's log were dropped: nobody read it\n");
            if out.try_send(text.into_bytes()).is_ok() {
                dropped = 0;
            }
        }
        if let Err(TrySendError::Full(lost)) = out.try_send(bytes.to_vec()) {
            dropped = dropped.saturating_add(lost.len());
        }
    }
}

/// The one thread that writes to the agent's stderr: a write there can block for as long as it likes.
fn writer() -> SyncSender<Vec<u8>> {
    static WRITER: OnceLock<SyncSender<Vec<u8>>> = OnceLock::new();
    WRITER
        .get_or_init(|| {
            let (sender, pieces) = mpsc::sync_channel::<Vec<u8>>(QUEUE);
            let write = move || {
                for piece in pieces {
                    let _ = std::io::stderr().write_all(&piece);
                }
            };
            if let Err(error) = thread::Builder::new().name("postgres-log".into()).spawn(write) {
                tracing::error!(error = %error, "PostgreSQL's log can't be passed on");
            }
            sender
        })
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "WARNING:  canceling wait for synchronous replication due to user request";

    #[test]
    fn a_cancelled_wait_is_known_with_any_prefix_and_verbosity() {
        let verbose = USER.replace("WARNING:  ", "WARNING:  01000: ");
        let end = format!("x [1] WARNING:  57P01: {}", CANCELLED[1]);
        for line in [USER, &format!("2026-11-23 12:00:00 UTC [7] app@app/psql {USER}"), &verbose, &end] {
            assert!(is_cancelled_wait(line), "{line}");
        }
    }

    #[test]
    fn a_startup_process_that_failed_is_told_from_one_that_was_killed() {
        for (end, failed) in [
            ("exited with exit code 1", true),
            ("was terminated by signal 6: Aborted", true),
            ("was terminated by signal 9: Killed", false),
        ] {
            let line = |name| format!("2026-11-24 03:00 GMT [1] LOG:  {name} (PID 17) {end}");
            assert_eq!(is_failed_recovery(&line("startup process")), failed, "{end}");
            assert!(!is_failed_recovery(&line("server process")), "{end}");
        }
    }

    #[test]
    fn the_end_of_a_recovery_is_read() {
        let watch = LogWatch::default();
        watch.note_line(
            b"2026-11-24 03:00 GMT [1] LOG:  last completed transaction was at log time 2026-11-24 02:56:00.1+00",
        );
        watch.note_line(
            b"2026-11-24 03:00 GMT [1] FATAL:  recovery ended before configured recovery target was reached",
        );
        assert_eq!(watch.last_transaction().as_deref(), Some("2026-11-24 02:56:00.1+00"));
        assert_eq!(watch.last_fatal().as_deref(), Some("recovery ended before configured recovery target was reached"));
        watch.reset();
        assert_eq!((watch.last_transaction(), watch.last_fatal()), (None, None));
    }

    #[test]
    fn a_statement_that_quotes_the_text_is_not_counted() {
        for line in [
            format!("STATEMENT:  SELECT '{}'", CANCELLED[0]),
            format!("LOG:  {}", CANCELLED[0]),
            format!("{USER} or not"),
            "WARNING:  ".to_owned(),
            "WARNING:  äöüß: x".to_owned(),
        ] {
            assert!(!is_cancelled_wait(&line), "{line}");
        }
    }

    #[tokio::test]
    async fn pieces_are_passed_on_unchanged_and_lines_are_put_together_across_them() {
        let (near, far) = tokio::io::duplex(7);
        let (sender, pieces) = mpsc::sync_channel(1_000);
        let watch = Arc::new(LogWatch::default());
        let task = tokio::spawn(pass_on(far, Arc::clone(&watch), sender));
        let long = "x".repeat(3 * MAX_LINE);
        let text = format!("{USER}\n{long}\nPANIC:  could not write: No space left on device\nno end");
        let mut near = near;
        tokio::io::AsyncWriteExt::write_all(&mut near, text.as_bytes()).await.unwrap();
        drop(near);
        task.await.unwrap();
        // The queue holds less than the whole text in pieces of seven bytes; what was taken is unchanged.
        let passed: Vec<u8> = pieces.into_iter().flatten().collect();
        assert!(text.as_bytes().starts_with(&passed) && passed.len() >= 7_000, "{}", passed.len());
        assert_eq!((watch.cancelled_waits(), watch.disk_full()), (1, true));
    }

    #[tokio::test]
    async fn a_log_that_nobody_takes_never_holds_the_server_up() {
        let (mut near, far) = tokio::io::duplex(PIECE);
        let (sender, pieces) = mpsc::sync_channel(1);
        let watch = Arc::new(LogWatch::default());
        let task = tokio::spawn(pass_on(far, Arc::clone(&watch), sender));
        for _ in 0..1_000 {
            tokio::io::AsyncWriteExt::write_all(&mut near, format!("{USER}\n").as_bytes()).await.unwrap();
        }
        drop(near);
        task.await.unwrap();
        assert_eq!(watch.cancelled_waits(), 1_000);
        drop(pieces);
    }
}
