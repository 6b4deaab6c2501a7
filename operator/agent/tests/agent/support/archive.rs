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

/// What `pgherd archive-wal` and `pgherd restore-wal` do, for whichever instance calls it.
pub const CLIENT: &str = r#"#!/usr/bin/perl
use strict;
use Cwd;
use File::Basename;
use IO::Socket::UNIX;
my ($verb, @given) = @ARGV;
my $restores = $verb eq 'restore-wal';
my ($path, $name) = $restores ? reverse @given : @given;
my $whole = $path =~ m{^/};
my $pgdata = $whole ? dirname(dirname($path)) : getcwd();
my $kind = $restores ? 'restore' : 'archive';
my $answer = '';
my $socket = IO::Socket::UNIX->new(Peer => "$pgdata/../../run/agent.sock");
if ($socket) {
    print $socket qq({"$kind":{"path":"$path","name":"$name"}}\n);
    $socket->flush();
    $answer = <$socket> // '';
}
print STDERR "archive client: $verb $name: $answer";
exit 0 if $answer =~ /done/;
exit 1 if !$restores || $whole || $answer =~ /absent/ || -e "$pgdata/standby.signal";
exit 255;
"#;
