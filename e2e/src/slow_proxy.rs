//! `pgherd-e2e slow-proxy`: hands bytes on as they are, those of the client later by a fixed time. What is inside, it does not
//! see: TLS stays between the ends.

use std::{net::SocketAddr, time::Duration};

use pgherd_e2e::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};

/// Pieces that may be on their way at a time.
const QUEUE: usize = 1_024;

/// Serves for ever.
pub(crate) async fn run(listen: SocketAddr, to: SocketAddr, delay: Duration) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move { drop(serve(client, to, delay).await) });
    }
}

async fn serve(client: TcpStream, to: SocketAddr, delay: Duration) -> Result<()> {
    let server = TcpStream::connect(to).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(QUEUE);
    let read = async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = from_client.read(&mut buffer).await?;
            if length == 0 || sender.send((Instant::now() + delay, buffer[..length].to_vec())).await.is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = pieces.recv().await {
            tokio::time::sleep_until(due).await;
            to_server.write_all(&piece).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let back = async move { tokio::io::copy(&mut from_server, &mut to_client).await.map(drop) };
    tokio::select! {
        done = async { tokio::try_join!(read, write) } => drop(done?),
        done = back => done?,
    }
    Ok(())
}
