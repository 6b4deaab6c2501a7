//! Logs as JSON lines on standard output, filtered by `RUST_LOG`.

use tracing_subscriber::EnvFilter;

/// Starts logging. A filter that can't be read is replaced by `info`. A second call changes nothing.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).finish();
    // Fails only if a subscriber is set already, which then serves as well.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Starts logging for a command whose standard output is its result: warnings and what is asked for, on standard error.
pub fn start_on_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).finish();
    // Fails only if a subscriber is set already, which then serves as well.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
