//! How this process talks to the API server: so that a connection that died without a word is noticed. What is decided on
//! comes from watches, and one that nothing arrives on any more looks like a cluster in which nothing happens.

use std::time::Duration;

use kube::{Client, Config, runtime::watcher};

/// The API server ends a watch after this many seconds, and it is begun anew from where it was; five seconds later it counts
/// as dead.
const WATCH_SECONDS: u32 = 20;
/// An answer on which nothing arrives for this long has failed. Longer than a watch.
const READ: Duration = Duration::from_secs(30);
/// Connecting, and sending a request.
const SEND: Duration = Duration::from_secs(10);

/// A client by the Pod's service account, or by `KUBECONFIG`.
///
/// # Errors
/// If there is neither, or it can't be used.
pub async fn connect() -> Result<Client, Box<dyn std::error::Error>> {
    let mut config = Config::infer().await?;
    config.connect_timeout = Some(SEND);
    config.write_timeout = Some(SEND);
    config.read_timeout = Some(READ);
    // Else the time that a connection lay idle would count against the next answer on it.
    config.reset_reader_on_write = true;
    Ok(Client::try_from(config)?)
}

/// What every watch begins with.
#[must_use]
pub fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}
