//! A leading operator whose API server hangs, the real program against a small API server over HTTP: it begins anew in the same
//! process and leads again, and no container has ended.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by them; clippy knows only functions marked #[test]"
)]

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

/// Everything that is waited for comes within this time, or never.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Api {
    /// No request is answered.
    hangs: bool,
    lease: Option<Value>,
    version: u64,
    /// How often the clusters were listed: once by each process.
    lists: usize,
}

impl Api {
    fn leader(&self) -> String {
        let holder = self.lease.as_ref().and_then(|lease| lease["spec"]["holderIdentity"].as_str());
        holder.unwrap_or_default().to_owned()
    }

    fn write(&mut self, mut lease: Value) -> (StatusCode, Value) {
        let version = |lease: &Value| lease["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        if self.lease.as_ref().is_some_and(|known| version(known) != version(&lease)) {
            return refused(StatusCode::CONFLICT, "Conflict");
        }
        self.version += 1;
        lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(lease.clone());
        (StatusCode::OK, lease)
    }

    fn answer(&mut self, method: &Method, path: &str, body: &Bytes) -> (StatusCode, Value) {
        let is_lease = path.contains("/namespaces/default/leases");
        match method.as_str() {
            "GET" if is_lease => self
                .lease
                .clone()
                .map_or_else(|| refused(StatusCode::NOT_FOUND, "NotFound"), |lease| (StatusCode::OK, lease)),
            "GET" => {
                self.lists += usize::from(path.ends_with("/postgresclusters"));
                (
                    StatusCode::OK,
                    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": []}),
                )
            }
            _ if is_lease => self.write(serde_json::from_slice(body).unwrap()),
            _ => refused(StatusCode::NOT_FOUND, "NotFound"),
        }
    }
}

fn refused(code: StatusCode, reason: &str) -> (StatusCode, Value) {
    let status = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "message": reason,
        "code": code.as_u16()});
    (code, status)
}

type Shared = Arc<Mutex<Api>>;

fn hangs(api: &Shared) -> bool {
    api.lock().unwrap().hangs
}

async fn serve(State(api): State<Shared>, method: Method, uri: Uri, body: Bytes) -> Response {
    let is_watch = uri.query().is_some_and(|query| query.contains("watch="));
    while hangs(&api) {
        sleep(Duration::from_millis(20)).await;
    }
    if is_watch {
        // Nothing ever happens.
        return Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()).into_response();
    }
    let (code, value) = api.lock().unwrap().answer(&method, uri.path(), &body);
    (code, [("content-type", "application/json")], value.to_string()).into_response()
}

async fn start_api(api: &Shared) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(serve).with_state(Arc::clone(api));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Killed when the test fails.
struct Operator(Child);

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

impl Operator {
    fn start(folder: &Path, api: SocketAddr, listen: SocketAddr) -> Self {
        let (config, images) = (folder.join("config"), folder.join("images.yaml"));
        let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{api}")}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
            "users": [{"name": "u", "user": {}}]});
        std::fs::write(&config, text.to_string()).unwrap();
        std::fs::write(&images, "17: pg").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgherd"));
        command.args(["operator", "--image=pgherd"]).arg(format!("--postgres-images={}", images.display()));
        command.arg(format!("--listen={listen}")).env("KUBECONFIG", config).env("POD_NAME", "p");
        Self(command.env("POD_NAMESPACE", "default").spawn().unwrap())
    }

    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().count()
    }
}

/// Waits until `look` says something.
async fn until<T>(what: &str, operator: &mut Operator, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = timeout(PATIENCE, async {
        loop {
            assert_eq!(operator.0.try_wait().unwrap(), None, "the process has ended before {what}");
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

async fn is_ready(address: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    answer.starts_with("HTTP/1.0 200").then_some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_lost_the_lead_begins_anew_in_the_same_process_and_stops_when_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let api = Shared::default();
    let address = start_api(&api).await;
    let listen = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut operator = Operator::start(folder.path(), address, listen);
    let leader = |other: &str| {
        let leader = api.lock().unwrap().leader();
        (!leader.is_empty() && leader != other).then_some(leader)
    };
    let mut last = String::new();
    let mut open = Vec::new();
    for round in 1..=3 {
        last = until("the lead", &mut operator, async || leader(&last)).await;
        until("readiness", &mut operator, async || is_ready(listen).await).await;
        open.push(operator.open_files());
        assert!(api.lock().unwrap().lists >= round, "each process begins from nothing");
        api.lock().unwrap().hangs = true;
        until("the end of readiness", &mut operator, async || is_ready(listen).await.is_none().then_some(())).await;
        api.lock().unwrap().hangs = false;
    }
    assert!(open[2] <= open[0] + 5, "what was open is closed: {open:?}");
    until("the lead", &mut operator, async || leader(&last)).await;
    kill(Pid::from_raw(i32::try_from(operator.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    let ended = timeout(PATIENCE, async {
        loop {
            if let Some(status) = operator.0.try_wait().unwrap() {
                return status;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(ended.await.expect("it stops").success());
}
