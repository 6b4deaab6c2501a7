//! A standby asks for WAL while the store takes connections and never answers.

use std::time::Duration;

use crate::support::{
    Cluster, Instance,
    archive::{ask, restore},
    ran_as_postgres,
    takeover::{PATIENCE, bring_up, first_register, seal_all},
};
use pgherd_agent::{archive::Answer, register_store::MemoryRegister};
use pgherd_core::backup::StoreConfig;
use tokio::{
    io::AsyncReadExt,
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep},
};

const SEGMENT: &str = "000000010000000000000063";
const FIRST: &str = "the primary is asked first";
const PAUSE: &str = "the object store failed a moment ago";

async fn failure(answer: JoinHandle<Answer>) -> String {
    match answer.await.unwrap() {
        Answer::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

/// A store that takes requests and never answers; tells of each one that asks for the segment.
async fn hang() -> (String, mpsc::UnboundedReceiver<()>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let length = stream.read(&mut head).await.unwrap_or(0);
                if String::from_utf8_lossy(&head[..length]).contains(SEGMENT) {
                    // At its end the test does not listen any more.
                    let _ = tell.send(());
                }
                // Until the other side gives up.
                let _ = stream.read(&mut head).await;
            });
        }
    });
    (endpoint, told)
}

/// Asks until the store is asked; meanwhile it is refused in these words.
async fn ask_until_sent(
    standby: &Instance,
    requests: &mut mpsc::UnboundedReceiver<()>,
    refusal: &str,
) -> JoinHandle<Answer> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut asked = ask(standby, &restore(SEGMENT));
        let answer = tokio::select! {
            _ = requests.recv() => return asked,
            answer = &mut asked => answer.unwrap(),
        };
        assert_eq!(answer, Answer::Failed(refusal.to_owned()));
        assert!(Instant::now() < end, "the store is never asked");
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_does_not_wait_for_a_store_that_hangs_and_an_outage_is_not_asked_about_again_and_again() {
    if ran_as_postgres(
        "store_outage::a_seal_does_not_wait_for_a_store_that_hangs_and_an_outage_is_not_asked_about_again_and_again",
    ) {
        return;
    }
    let mut cluster = Cluster::new(MemoryRegister::new(first_register()), 2);
    let (endpoint, mut requests) = hang().await;
    let credentials = cluster.root.path().join("app");
    for name in ["accessKeyId", "secretAccessKey"] {
        std::fs::write(credentials.join(name), "x").unwrap();
    }
    cluster.config.store = Some(StoreConfig {
        endpoint,
        bucket: "b".into(),
        prefix: String::new(),
        region: None,
        path_style: true,
        credentials_dir: credentials.display().to_string(),
        ca_file: None,
        encryption: None,
    });
    let mut all = bring_up(&cluster, 2).await;
    let (second, first) = (all.pop().unwrap(), all.pop().unwrap());

    // While it streams, and a moment longer, the primary is asked first.
    assert_eq!(failure(ask(&second, &restore(SEGMENT))).await, FIRST);
    first.terminate().await;
    let why = failure(ask_until_sent(&second, &mut requests, FIRST).await).await;
    // The client may have tried once more.
    while requests.try_recv().is_ok() {}
    assert!(why.contains("object store"), "{why}");
    assert_eq!(failure(ask(&second, &restore(SEGMENT))).await, PAUSE);

    // Once it may be asked again.
    let asked = ask_until_sent(&second, &mut requests, PAUSE).await;
    seal_all(&cluster, &[&second], 2).await;
    assert_eq!(failure(asked).await, "this standby follows nobody at present");
    second.terminate().await;
}
