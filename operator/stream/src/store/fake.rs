//! An S3-compatible store in memory, for tests of what is asked in which order. It does what it is asked, at once, and knows no
//! signatures.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
};

use jiff::{SignedDuration, Timestamp};
use pgherd_core::backup::{ClusterLocation, StoreConfig};

use super::ObjectStore;

/// So many objects are listed at once.
const PAGE: usize = 1000;

/// Its threads end with the process.
pub(crate) struct FakeStore {
    state: Arc<Mutex<State>>,
    endpoint: String,
    credentials: tempfile::TempDir,
}

/// What it does with a checksum of parts that is asked for as an upload begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SumSupport {
    /// Takes no notice.
    #[default]
    Ignored,
    /// 501 with `NotImplemented`.
    Refused,
    /// Says that parts are compared with it.
    Compared,
}

#[derive(Default)]
struct State {
    /// What was put, and when by the store's clock.
    objects: BTreeMap<String, (Vec<u8>, Timestamp)>,
    /// How far that clock is ahead of this machine's.
    ahead: SignedDuration,
    /// Answers have no `Date`.
    timeless: bool,
    /// Key and what came by id.
    uploads: BTreeMap<u64, (String, Vec<u8>)>,
    begun: u64,
    sum_support: SumSupport,
    /// Of each part that came: its CRC32C, and the hash in its signature.
    part_proofs: Vec<(Option<String>, String)>,
    /// The first abort comes when somebody has just begun another upload of the key.
    begins_at_abort: bool,
}

impl FakeStore {
    pub(crate) fn start() -> Self {
        let credentials = tempfile::tempdir().unwrap();
        for name in ["accessKeyId", "secretAccessKey"] {
            std::fs::write(credentials.path().join(name), "x").unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || while serve(&client, &shared).is_some() {});
            }
        });
        Self { state, endpoint, credentials }
    }

    /// Where backups of cluster `c` with the system id 7 lie.
    pub(crate) fn location(&self) -> ClusterLocation {
        let store = StoreConfig {
            endpoint: self.endpoint.clone(),
            bucket: "bucket".to_owned(),
            prefix: String::new(),
            region: None,
            path_style: true,
            credentials_dir: self.credentials.path().display().to_string(),
            ca_file: None,
            encryption: None,
        };
        ClusterLocation { store, cluster: "c".to_owned(), system_id: "7".to_owned() }
    }

    pub(crate) async fn connect(&self) -> ObjectStore {
        ObjectStore::connect(&self.location().store).await.unwrap()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Ids of all open uploads.
    pub(crate) fn uploads(&self) -> Vec<u64> {
        self.lock().uploads.keys().copied().collect()
    }

    /// Keys of all objects.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Puts small objects, without a request for each.
    pub(crate) fn hold(&self, keys: impl IntoIterator<Item = String>) {
        let mut state = self.lock();
        let now = state.now();
        state.objects.extend(keys.into_iter().map(|key| (key, (b"x".to_vec(), now))));
    }

    /// Sets the store's clock, by this machine's.
    pub(crate) fn set_clock(&self, ahead: SignedDuration) {
        self.lock().ahead = ahead;
    }

    /// From now on no answer says what time it is.
    pub(crate) fn hide_time(&self) {
        self.lock().timeless = true;
    }

    pub(crate) fn set_sum_support(&self, support: SumSupport) {
        self.lock().sum_support = support;
    }

    /// Of each part that came: its CRC32C, and the hash in its signature.
    pub(crate) fn part_proofs(&self) -> Vec<(Option<String>, String)> {
        self.lock().part_proofs.clone()
    }

    pub(crate) fn begin_at_abort(&self) {
        self.lock().begins_at_abort = true;
    }
}

impl State {
    fn now(&self) -> Timestamp {
        Timestamp::now() + self.ahead
    }

    /// The line of an answer that says what time it is.
    fn render_date(&self) -> String {
        let date = self.now().strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n").to_string();
        if self.timeless { String::new() } else { date }
    }

    fn begin(&mut self, key: &str) -> u64 {
        self.begun += 1;
        self.uploads.insert(self.begun, (key.to_owned(), Vec::new()));
        self.begun
    }

    /// The status and body of the answer.
    fn answer(&mut self, request: &Request) -> (u16, Vec<u8>) {
        let (key, asks) = (request.key.as_str(), |name: &str| request.query.contains_key(name));
        let upload = request.query.get("uploadId").and_then(|id| id.parse::<u64>().ok());
        let gone = |code: &str| (404, format!("<Error><Code>{code}</Code></Error>").into_bytes());
        let xml = |name: &str, content: String| (200, format!("<{name}>{content}</{name}>").into_bytes());
        match (request.method.as_str(), upload) {
            ("POST", None) if asks("uploads") && request.asks_sums && self.sum_support == SumSupport::Refused => {
                (501, b"<Error><Code>NotImplemented</Code></Error>".to_vec())
            }
            ("POST", None) if asks("uploads") => {
                let id = self.begin(key);
                xml("InitiateMultipartUploadResult", format!("<UploadId>{id}</UploadId>"))
            }
            ("GET", None) if asks("uploads") => xml("ListMultipartUploadsResult", self.render_uploads(request)),
            ("GET", None) if asks("list-type") => xml("ListBucketResult", self.render_objects(request)),
            ("DELETE", Some(id)) => {
                if std::mem::take(&mut self.begins_at_abort) {
                    self.begin(key);
                }
                self.uploads.remove(&id).map_or_else(|| gone("NoSuchUpload"), |_| (204, Vec::new()))
            }
            ("PUT", Some(id)) => match self.uploads.get_mut(&id) {
                None => gone("NoSuchUpload"),
                Some((_, parts)) => {
                    parts.extend_from_slice(&request.body);
                    self.part_proofs.push(request.proof.clone());
                    (200, Vec::new())
                }
            },
            ("POST", Some(id)) => match self.uploads.remove(&id) {
                None => gone("NoSuchUpload"),
                Some((key, parts)) => {
                    let now = self.now();
                    self.objects.insert(key, (parts, now));
                    xml("CompleteMultipartUploadResult", "<ETag>\"x\"</ETag>".to_owned())
                }
            },
            ("PUT", None) if request.create_only && self.objects.contains_key(key) => (412, Vec::new()),
            ("PUT", None) => {
                let now = self.now();
                self.objects.insert(key.to_owned(), (request.body.clone(), now));
                (200, Vec::new())
            }
            ("GET" | "HEAD", None) => {
                self.objects.get(key).map_or_else(|| gone("NoSuchKey"), |(bytes, _)| (200, bytes.clone()))
            }
            ("DELETE", None) => {
                self.objects.remove(key);
                (204, Vec::new())
            }
            _ => (501, b"<Error><Code>NotImplemented</Code></Error>".to_vec()),
        }
    }

    fn render_uploads(&self, request: &Request) -> String {
        let prefix = request.query.get("prefix").cloned().unwrap_or_default();
        let listed = self.uploads.iter().filter(|(_, (key, _))| key.starts_with(&prefix));
        let upload = |(id, (key, _)): (&u64, &(String, Vec<u8>))| {
            format!("<Upload><Key>{key}</Key><UploadId>{id}</UploadId></Upload>")
        };
        format!("<IsTruncated>false</IsTruncated>{}", listed.map(upload).collect::<String>())
    }

    fn render_objects(&self, request: &Request) -> String {
        let prefix = request.query.get("prefix").cloned().unwrap_or_default();
        let after = request.query.get("continuation-token").cloned().unwrap_or_default();
        let (mut listed, mut folders, mut count, mut last) = (String::new(), Vec::new(), 0, "");
        for (key, (bytes, written)) in &self.objects {
            let Some(rest) = key.strip_prefix(&prefix).filter(|_| *key > after) else { continue };
            let folder = rest.split_once('/').map(|(folder, _)| format!("{prefix}{folder}/"));
            if let Some(folder) = folder.filter(|_| request.query.contains_key("delimiter")) {
                folders.push(folder);
                continue;
            }
            if count == PAGE {
                listed.push_str(&format!("<NextContinuationToken>{last}</NextContinuationToken>"));
                break;
            }
            (count, last) = (count + 1, key);
            listed.push_str(&format!(
                "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>{written}</LastModified></Contents>",
                bytes.len()
            ));
        }
        folders.dedup();
        let folders =
            folders.iter().map(|folder| format!("<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"));
        format!("<IsTruncated>false</IsTruncated>{listed}{}", folders.collect::<String>())
    }
}

struct Request {
    method: String,
    key: String,
    query: BTreeMap<String, String>,
    create_only: bool,
    /// An upload that begins shall have checksums of parts.
    asks_sums: bool,
    /// The body's CRC32C, and the hash in the signature.
    proof: (Option<String>, String),
    body: Vec<u8>,
}

/// One request and its answer; none at the end of the connection.
fn serve(client: &TcpStream, state: &Mutex<State>) -> Option<()> {
    let request = read_request(&mut BufReader::new(client))?;
    let mut locked = state.lock().unwrap();
    let ((status, body), date) = (locked.answer(&request), locked.render_date());
    let promises = request.asks_sums && locked.sum_support == SumSupport::Compared;
    drop(locked);
    let sums = if promises { "x-amz-checksum-algorithm: CRC32C\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status} x\r\n{date}{sums}Content-Length: {}\r\nETag: \"x\"\r\nConnection: close\r\n\r\n",
        if status == 204 { 0 } else { body.len() }
    );
    let mut client = client;
    client.write_all(head.as_bytes()).ok()?;
    if request.method != "HEAD" {
        client.write_all(&body).ok()?;
    }
    // One request a connection: nothing that was read ahead is lost.
    client.shutdown(std::net::Shutdown::Write).ok()?;
    None
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let mut words = lines.first()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let header = |name: &str| {
        let mut headers = lines.iter().filter_map(|line| line.split_once(':'));
        headers.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let mut body = vec![0; header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.to_owned(), decode(value))
    };
    let query = query.split('&').filter(|text| !text.is_empty()).map(pair).collect();
    let proof = (
        header("x-amz-checksum-crc32c").map(str::to_owned),
        header("x-amz-content-sha256").unwrap_or_default().to_owned(),
    );
    let asks_sums = header("x-amz-checksum-algorithm").is_some();
    let create_only = header("if-none-match").is_some();
    Some(Request { method, key: decode(key), query, create_only, asks_sums, proof, body })
}

/// Percent signs away.
fn decode(text: &str) -> String {
    let mut parts = text.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_at(2);
        decoded.push(char::from(u8::from_str_radix(code, 16).unwrap()));
        decoded.push_str(rest);
    }
    decoded
}
