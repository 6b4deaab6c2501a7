//! `pgherd-e2e store-proxy`: ends TLS, hands each request on to the object store, and lets the faults befall it that it was told
//! of at `POST /rules` on port 8080. One request for each connection; requests and answers are held in memory, so it is for tests
//! alone.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use pgherd_e2e::{
    Result,
    store_faults::{ErrorCode, Rule, StoreFault},
};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    net::TcpListener,
};

use crate::relay::{Client, Request, Upstream, build_acceptor};

/// What is to befall requests, and how many it befell.
#[derive(Default)]
struct Plan {
    rules: Vec<Rule>,
    hits: u64,
}

type Shared = Arc<Mutex<Plan>>;

/// Serves for ever. `certificate` is a folder with `tls.crt` and `tls.key`, `to` is `host:port` of the store, `ca` signed its
/// certificate.
pub(crate) async fn run(certificate: &Path, to: &str, ca: &Path) -> Result<()> {
    let plan = Shared::default();
    let acceptor = build_acceptor(&certificate.join("tls.crt"), &certificate.join("tls.key"))?;
    let (host, _) = to.rsplit_once(':').ok_or("--to must be HOST:PORT")?;
    let store = Arc::new(Upstream::new(to, host, ca)?);
    let routes = Router::new()
        .route(
            "/rules",
            post(async |State(plan): State<Shared>, Json(rules): Json<Vec<Rule>>| {
                *lock(&plan) = Plan { rules, hits: 0 };
            }),
        )
        .route("/hits", get(async |State(plan): State<Shared>| lock(&plan).hits.to_string()))
        .with_state(Arc::clone(&plan));
    let control = TcpListener::bind(("0.0.0.0", 8080)).await?;
    tokio::spawn(async move { axum::serve(control, routes).await });
    let listener = TcpListener::bind(("0.0.0.0", 9000)).await?;
    loop {
        let (client, _) = listener.accept().await?;
        let (acceptor, store, plan) = (acceptor.clone(), Arc::clone(&store), Arc::clone(&plan));
        tokio::spawn(async move {
            // A connection that breaks is what this is for.
            if let Ok(client) = acceptor.accept(client).await {
                drop(serve(BufReader::new(client), &store, &plan).await);
            }
        });
    }
}

fn lock(plan: &Mutex<Plan>) -> std::sync::MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

fn choose_fault(plan: &Mutex<Plan>, line: &str) -> Option<StoreFault> {
    let mut plan = lock(plan);
    let rule = plan.rules.iter_mut().find(|rule| rule.times != Some(0) && rule.applies(line))?;
    rule.times = rule.times.map(|left| left - 1);
    let fault = rule.fault;
    plan.hits += 1;
    Some(fault)
}

async fn serve(mut client: Client, store: &Upstream, plan: &Mutex<Plan>) -> io::Result<()> {
    let mut request = Request::read(&mut client).await?;
    let fault = choose_fault(plan, request.line());
    if fault == Some(StoreFault::Down) {
        return Ok(());
    }
    if fault == Some(StoreFault::FlipRequest) {
        flip(&mut request.body);
    }
    let answer = match fault {
        Some(StoreFault::Refuse(status, code)) => render_refusal(status, code),
        _ => store.ask(&request).await?,
    };
    if let Some(StoreFault::Late(milliseconds)) = fault {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
    if fault == Some(StoreFault::LostAnswer) {
        return Ok(());
    }
    client.write_all(&damage(answer, fault)).await?;
    client.shutdown().await
}

/// Where the body of an answer begins.
fn find_body(answer: &[u8]) -> usize {
    answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(answer.len(), |at| at + 4)
}

fn flip(bytes: &mut [u8]) {
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle) {
        *byte ^= 0x10;
    }
}

fn damage(mut answer: Vec<u8>, fault: Option<StoreFault>) -> Vec<u8> {
    let body = find_body(&answer);
    match fault {
        Some(StoreFault::CutAnswer) => answer.truncate(body + (answer.len() - body) / 2),
        Some(StoreFault::FlipAnswer) => flip(&mut answer[body..]),
        _ => {}
    }
    answer
}

fn render_refusal(status: u16, code: ErrorCode) -> Vec<u8> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code:?}</Code><Message>a fault of the test</Message></Error>"
    );
    let length = body.len();
    let head = "Content-Type: application/xml\r\nConnection: close\r\n";
    format!("HTTP/1.1 {status} Refused\r\n{head}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_befall_as_many_requests_as_they_are_meant_for() {
        let rule = Rule::of(StoreFault::CutAnswer, "GET", &["/base/"]).times(1);
        let plan = Mutex::new(Plan { rules: vec![rule], hits: 0 });
        assert_eq!(choose_fault(&plan, "PUT /b/base/1 HTTP/1.1"), None);
        assert_eq!(choose_fault(&plan, "GET /b/base/1 HTTP/1.1"), Some(StoreFault::CutAnswer));
        assert_eq!(choose_fault(&plan, "GET /b/base/1 HTTP/1.1"), None);
        assert_eq!(lock(&plan).hits, 1);
    }

    #[test]
    fn only_the_body_is_damaged_and_its_announced_length_stays() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd".to_vec();
        assert!(damage(answer.clone(), Some(StoreFault::CutAnswer)).ends_with(b"4\r\n\r\nab"));
        assert!(damage(answer.clone(), Some(StoreFault::FlipAnswer)).ends_with(b"absd"));
        assert_eq!(damage(answer.clone(), Some(StoreFault::Late(1))), answer);
        assert_eq!(crate::relay::read_length("PUT / HTTP/1.1\r\nContent-Length: 17\r\n\r\n"), 17);
    }
}
