//! What archive_command and restore_command do.
#![allow(dead_code, unreachable_pub, reason = "not every test uses all of it")]

use pgherd_agent::archive::{Answer, Request};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinHandle,
};

use super::Instance;

/// Asks the agent over its socket.
pub fn ask(instance: &Instance, request: &Request) -> JoinHandle<Answer> {
    let (socket, line) = (instance.agent.layout.agent_socket(), serde_json::to_string(request).unwrap());
    tokio::spawn(async move {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        serde_json::from_str(&text).unwrap()
    })
}

pub fn restore(name: &str) -> Request {
    Request::Restore { name: name.to_owned(), path: "pg_wal/RECOVERYXLOG".to_owned() }
}

pub fn archive(name: &str) -> Request {
    Request::Archive { path: format!("pg_wal/{name}"), name: name.to_owned() }
}
