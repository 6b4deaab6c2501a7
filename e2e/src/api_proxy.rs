//! `pgherd-e2e api-proxy`: ends TLS with the API server's own certificate, hands each request on, and lets one kind of fault befall
//! those of pods. What it did is counted in a file.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::{Args, ValueEnum};
use pgherd_e2e::Result;
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::TcpListener,
};

use crate::relay::{Client, Request, Upstream, build_acceptor};

/// A watch says nothing for so long, then that it has missed too much.
const STUCK: Duration = Duration::from_secs(15);
/// Of so many requests one is answered with 500 and another one with 429.
const EACH: u64 = 8;
const EXPIRED: &str = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410,"message":"too old resource version"}}"#;

/// What befalls requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ApiFault {
    /// Some are answered with 500, some with 429.
    Errors,
    /// Watches say nothing, and end with 410.
    StuckWatches,
    /// What was read first is answered again and again.
    StaleReads,
}

/// What is given on the command line.
#[derive(Args)]
pub(crate) struct Options {
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
    /// The API server's HOST:PORT.
    #[arg(long)]
    to: String,
    /// Folder with `apiserver.crt`, `apiserver.key` and `ca.crt`.
    #[arg(long)]
    pki: PathBuf,
    /// What befalls requests.
    #[arg(long)]
    fault: ApiFault,
    /// Only requests of these addresses; all without any.
    #[arg(long)]
    from: Vec<IpAddr>,
    /// Only requests whose first line has this text.
    #[arg(long, default_value = "")]
    within: String,
    /// File for the number of requests that it befell.
    #[arg(long)]
    hits: PathBuf,
}

struct Proxy {
    options: Options,
    server: Upstream,
    number: AtomicU64,
    hits: AtomicU64,
    first_answers: Mutex<HashMap<String, Vec<u8>>>,
}

/// Serves for ever.
pub(crate) async fn run(options: Options) -> Result<()> {
    let acceptor = build_acceptor(&options.pki.join("apiserver.crt"), &options.pki.join("apiserver.key"))?;
    let server = Upstream::new(&options.to, "kubernetes.default.svc", &options.pki.join("ca.crt"))?;
    let listener = TcpListener::bind(options.listen).await?;
    let (number, hits) = (AtomicU64::default(), AtomicU64::default());
    let proxy = Arc::new(Proxy { options, server, number, hits, first_answers: Mutex::default() });
    loop {
        let (client, from) = listener.accept().await?;
        let (acceptor, proxy) = (acceptor.clone(), Arc::clone(&proxy));
        tokio::spawn(async move {
            // A client that goes away is its own affair.
            if let Ok(client) = acceptor.accept(client).await {
                drop(proxy.serve(BufReader::new(client), from.ip()).await);
            }
        });
    }
}

impl Proxy {
    async fn serve(&self, mut client: Client, from: IpAddr) -> io::Result<()> {
        let request = Request::read(&mut client).await?;
        let options = &self.options;
        let meant = options.from.is_empty() || options.from.contains(&from);
        let fault = (meant && request.line().contains(&options.within)).then_some(options.fault);
        let watches = request.line().contains("watch=true") || request.line().contains("watch=1");
        match fault {
            Some(ApiFault::Errors) if !watches => {
                if let Some(refusal) = self.refuse() {
                    client.write_all(refusal.as_bytes()).await?;
                    return client.shutdown().await;
                }
            }
            Some(ApiFault::StuckWatches) if watches => return self.say_nothing(client).await,
            Some(ApiFault::StaleReads) if !watches && request.line().starts_with("GET ") => {
                client.write_all(&self.answer_as_before(&request).await?).await?;
                return client.shutdown().await;
            }
            _ => {}
        }
        // A watch ends when either side goes.
        let mut answer = self.server.send(&request).await?;
        tokio::io::copy(&mut answer, &mut client).await?;
        client.shutdown().await
    }

    fn hit(&self) {
        let hits = self.hits.fetch_add(1, Ordering::Relaxed) + 1;
        // Whoever waits for the number finds none then, and says so.
        drop(fs::write(&self.options.hits, hits.to_string()));
    }

    fn refuse(&self) -> Option<String> {
        let (code, reason, more) = match self.number.fetch_add(1, Ordering::Relaxed) % EACH {
            0 => (500, "InternalError", ""),
            1 => (429, "TooManyRequests", "Retry-After: 1\r\n"),
            _ => return None,
        };
        self.hit();
        let body = format!(
            r#"{{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"{reason}","code":{code},"message":"a fault of the test"}}"#
        );
        Some(format!(
            "HTTP/1.1 {code} {reason}\r\nContent-Type: application/json\r\nConnection: close\r\n{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    async fn say_nothing(&self, mut client: Client) -> io::Result<()> {
        self.hit();
        client.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n").await?;
        client.flush().await?;
        // The time that the fault is defined by.
        tokio::time::sleep(STUCK).await;
        client.write_all(format!("{EXPIRED}\n").as_bytes()).await?;
        client.shutdown().await
    }

    async fn answer_as_before(&self, request: &Request) -> io::Result<Vec<u8>> {
        let known = || self.first_answers.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known().get(request.line()).cloned();
        if let Some(before) = before {
            self.hit();
            return Ok(before);
        }
        let answer = self.server.ask(request).await?;
        known().insert(request.line().to_string(), answer.clone());
        Ok(answer)
    }
}
