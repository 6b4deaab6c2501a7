//! The fencer's heartbeat: how the agent tells its supervisor until when PostgreSQL may run as primary. One datagram
//! per message; whoever renews the Lease sends it, and only PID 1 acts on it.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::clock::Boottime;

/// A message to the fencer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeat {
    /// Kill PostgreSQL at this time unless a later message comes before.
    Arm(Boottime),
    /// PostgreSQL does not run as primary: nothing is to be killed.
    Disarm,
}

/// Renders a message: `arm <nanoseconds of CLOCK_BOOTTIME>` or `disarm`.
#[must_use]
pub fn render_heartbeat(heartbeat: Heartbeat) -> String {
    match heartbeat {
        Heartbeat::Arm(deadline) => format!("arm {}", deadline.0),
        Heartbeat::Disarm => "disarm".to_owned(),
    }
}

/// Parses a message; None for anything else, which the fencer ignores.
#[must_use]
pub fn parse_heartbeat(message: &[u8]) -> Option<Heartbeat> {
    let text = std::str::from_utf8(message).ok()?.trim();
    match text.split_once(' ') {
        None => (text == "disarm").then_some(Heartbeat::Disarm),
        Some(("arm", deadline)) => deadline.parse().ok().map(|nanos| Heartbeat::Arm(Boottime(nanos))),
        Some(_) => None,
    }
}

/// The agent's end.
#[derive(Clone, Debug)]
pub struct Fencer {
    socket: Option<PathBuf>,
}

impl Fencer {
    /// Sends to the supervisor's socket.
    #[must_use]
    pub fn at(socket: &Path) -> Self {
        Self { socket: Some(socket.to_owned()) }
    }

    /// No supervisor: for tests that start the agent's parts alone.
    #[must_use]
    pub fn none() -> Self {
        Self { socket: None }
    }

    /// Sends a message; waits at most half a second for room in the socket's queue.
    ///
    /// # Errors
    /// When the supervisor can't be told. An earlier deadline then stands, which is the safe side.
    pub fn send(&self, heartbeat: Heartbeat) -> io::Result<()> {
        let Some(path) = &self.socket else { return Ok(()) };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(Duration::from_millis(500)))?;
        socket.send_to(render_heartbeat(heartbeat).as_bytes(), path).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        for heartbeat in [Heartbeat::Arm(Boottime(123_456_789)), Heartbeat::Disarm] {
            assert_eq!(parse_heartbeat(render_heartbeat(heartbeat).as_bytes()), Some(heartbeat));
        }
    }

    #[test]
    fn garbage_is_ignored() {
        for message in ["", "arm", "arm x", "arm -1", "disarm now", "fire 1"] {
            assert_eq!(parse_heartbeat(message.as_bytes()), None, "{message}");
        }
    }
}
