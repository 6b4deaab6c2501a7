//! A proxy in front of the store that does to requests what networks and stores do.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

/// What is done to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 503 with `SlowDown`.
    SlowDown,
    /// 403 with `ExpiredToken`.
    Expired,
    /// So many hundredths of the request's body reach the store, then both connections are reset.
    ResetAt(u8),
    /// The store does what it is asked, and its answer is lost.
    LostAnswer,
    /// So many hundredths of the answer's body, then the end.
    TruncateAt(u8),
    /// One bit of the answer's body is another.
    FlipBit,
    /// 200 with an error in the body; the store is not asked.
    ErrorInside,
    /// The store does what it is asked, late.
    Slow,
    /// The request is taken, and that is all.
    Stall,
    /// 501 with `NotImplemented`.
    Refuse,
    /// 200 and bytes without end.
    Endless,
}

struct Rule {
    applies: Box<dyn Fn(&str) -> bool + Send>,
    left: usize,
    every: usize,
    fault: Fault,
    seen: usize,
}

/// A listening proxy; its threads end with the process.
pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    rules: Arc<Mutex<Vec<Rule>>>,
    hits: Arc<Mutex<usize>>,
}

impl Proxy {
    pub(crate) fn start(upstream: &str) -> Self {
        let upstream: SocketAddr = upstream.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (rules, hits) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let (shared, counter) = (Arc::clone(&rules), Arc::clone(&hits));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (rules, hits) = (Arc::clone(&shared), Arc::clone(&counter));
                // A connection that breaks is what this is for.
                std::thread::spawn(move || drop(converse(client, upstream, &rules, &hits)));
            }
        });
        Self { endpoint, rules, hits }
    }

    /// From now on `fault` befalls each `every`-th request whose first line `applies`, `times` times.
    pub(crate) fn inject(
        &self,
        fault: Fault,
        times: usize,
        every: usize,
        applies: impl Fn(&str) -> bool + Send + 'static,
    ) {
        let rule = Rule { applies: Box::new(applies), left: times, every, fault, seen: 0 };
        self.rules.lock().unwrap().push(rule);
    }

    /// Ends all faults; says how many requests they befell.
    pub(crate) fn heal(&self) -> usize {
        self.rules.lock().unwrap().clear();
        std::mem::take(&mut *self.hits.lock().unwrap())
    }
}

fn decide_fault(rules: &Mutex<Vec<Rule>>, line: &str) -> Option<Fault> {
    let mut rules = rules.lock().unwrap();
    for rule in rules.iter_mut().filter(|rule| rule.left > 0) {
        if !(rule.applies)(line) {
            continue;
        }
        rule.seen += 1;
        if rule.seen.is_multiple_of(rule.every) {
            rule.left -= 1;
            return Some(rule.fault);
        }
    }
    None
}

/// One request for each connection: the store is asked to close after its answer.
fn converse(
    mut client: TcpStream,
    upstream: SocketAddr,
    rules: &Mutex<Vec<Rule>>,
    hits: &Mutex<usize>,
) -> io::Result<()> {
    let head = read_head(&mut client)?;
    let text = String::from_utf8_lossy(&head).into_owned();
    let line = text.lines().next().unwrap_or_default().to_owned();
    let length = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(0, |(_, value)| value.trim().parse::<u64>().unwrap());
    let fault = decide_fault(rules, &line);
    if fault.is_some() {
        *hits.lock().unwrap() += 1;
    }
    let mut body = (&client).take(length);
    match fault {
        Some(Fault::ResetAt(hundredths)) => {
            let mut store = TcpStream::connect(upstream)?;
            store.write_all(&head)?;
            io::copy(&mut (&mut body).take(length * u64::from(hundredths) / 100), &mut store)?;
            return Ok(());
        }
        Some(Fault::Stall) => {
            io::copy(&mut body, &mut io::sink())?;
            // Until the other side has had enough.
            io::copy(&mut (&client), &mut io::sink())?;
            return Ok(());
        }
        Some(Fault::Refuse) => {
            io::copy(&mut body, &mut io::sink())?;
            return answer(&mut client, "501 Not Implemented", "NotImplemented");
        }
        Some(Fault::Endless) => {
            client.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            let chunk = [&b"10000\r\n"[..], &[0; 1 << 16], b"\r\n"].concat();
            loop {
                client.write_all(&chunk)?;
            }
        }
        Some(Fault::SlowDown) => {
            io::copy(&mut body, &mut io::sink())?;
            return answer(&mut client, "503 Service Unavailable", "SlowDown");
        }
        Some(Fault::Expired) => {
            io::copy(&mut body, &mut io::sink())?;
            return answer(&mut client, "403 Forbidden", "ExpiredToken");
        }
        Some(Fault::ErrorInside) => {
            io::copy(&mut body, &mut io::sink())?;
            return answer(&mut client, "200 OK", "InternalError");
        }
        _ => {}
    }
    let mut store = TcpStream::connect(upstream)?;
    let end = head.len() - 2;
    store.write_all(&head[..end])?;
    store.write_all(b"Connection: close\r\n\r\n")?;
    io::copy(&mut body, &mut store)?;
    let reply_head = read_head(&mut store)?;
    let mut reply = Vec::new();
    store.read_to_end(&mut reply)?;
    match fault {
        Some(Fault::LostAnswer) => return Ok(()),
        Some(Fault::TruncateAt(hundredths)) => reply.truncate(reply.len() * usize::from(hundredths) / 100),
        Some(Fault::FlipBit) => {
            let middle = reply.len() / 2;
            reply[middle] ^= 0x10;
        }
        Some(Fault::Slow) => std::thread::sleep(Duration::from_millis(700)),
        _ => {}
    }
    client.write_all(&reply_head)?;
    client.write_all(&reply)
}

fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(head)
}

fn answer(client: &mut TcpStream, status: &str, code: &str) -> io::Result<()> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>a fault of the test</Message></Error>"
    );
    write!(
        client,
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
