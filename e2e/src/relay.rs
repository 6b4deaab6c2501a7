//! What the proxies that look into requests share: they end TLS with a certificate that clients trust, read one request, and ask
//! whoever is behind. One request for each connection.

use std::{io, path::Path, sync::Arc};

use pgherd_e2e::Result;
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// A head is no longer than this, a body (a part of an upload) no longer than that.
const MAX_HEAD: usize = 64 << 10;
const MAX_BODY: u64 = 64 << 20;

/// A client's connection.
pub(crate) type Client = BufReader<server::TlsStream<TcpStream>>;

/// A request.
pub(crate) struct Request {
    /// The first line and the headers, with the empty line.
    pub(crate) head: String,
    /// What follows.
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// Method, path and version.
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// Reads one.
    pub(crate) async fn read(client: &mut Client) -> io::Result<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if client.read_until(b'\n', &mut head).await? == 0 || head.len() > MAX_HEAD {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let head = String::from_utf8(head).map_err(io::Error::other)?;
        let length = read_length(&head);
        if length > MAX_BODY {
            return Err(io::Error::other(format!("a request of {length} bytes")));
        }
        let mut body = Vec::new();
        client.take(length).read_to_end(&mut body).await?;
        Ok(Self { head, body })
    }
}

pub(crate) fn read_length(head: &str) -> u64 {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or_default()
}

/// Ends TLS with this certificate; HTTP/1.1 only.
pub(crate) fn build_acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<std::result::Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Who is behind the proxy.
pub(crate) struct Upstream {
    address: String,
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl Upstream {
    /// `to` is `host:port`, `name` is checked against the certificate, which `ca` has signed.
    pub(crate) fn new(to: &str, name: &str, ca: &Path) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)? {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(name.to_string())?;
        Ok(Self { address: to.to_string(), name, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Sends a request. What the connection gives from then on is the answer; its end is the answer's end.
    pub(crate) async fn send(&self, request: &Request) -> io::Result<client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(&self.address).await?;
        let mut stream = self.connector.connect(self.name.clone(), tcp).await?;
        let head = format!("{}\r\nConnection: close\r\n\r\n", request.head.trim_end_matches("\r\n"));
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&request.body).await?;
        stream.flush().await?;
        Ok(stream)
    }

    /// The whole answer to a request: head and body.
    pub(crate) async fn ask(&self, request: &Request) -> io::Result<Vec<u8>> {
        let mut answer = Vec::new();
        match self.send(request).await?.read_to_end(&mut answer).await {
            // Not every server says goodbye.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(answer),
        }
    }
}
