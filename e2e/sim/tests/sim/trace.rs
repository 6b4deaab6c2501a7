//! What happened, in simulated time: the program's own log lines and the simulation's notes, kept to be printed when a
//! run fails.

use std::{cell::RefCell, io};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::scope::{elapsed, here, node_name};

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Adds a line.
pub(crate) fn note(text: impl AsRef<str>) {
    let at = elapsed();
    let place = here().map(node_name).unwrap_or_default();
    let line = format!("{:>8.3} {place:<7} {}", at.as_secs_f64(), text.as_ref().trim_end());
    if std::env::var_os("PGHERD_SIM_LIVE").is_some() {
        eprintln!("{line}");
    }
    LINES.with_borrow_mut(|lines| lines.push(line));
}

/// Takes all lines.
pub(crate) fn take() -> Vec<String> {
    LINES.take()
}

#[derive(Clone, Copy)]
struct Notes;

impl io::Write for Notes {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        note(String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Notes {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// The log of everything on this thread goes here as long as the guard lives.
pub(crate) fn capture() -> tracing::subscriber::DefaultGuard {
    let filter = EnvFilter::new("off,pgherd=info,pgherd_agent=info");
    let format = tracing_subscriber::fmt().with_ansi(false).without_time().with_target(false).with_writer(Notes);
    tracing::subscriber::set_default(format.with_env_filter(filter).finish())
}
