//! The object store: conditional writes, ranges, and errors that name the cause.

use std::time::{Duration, Instant};

use bytes::Bytes;
use pgherd_core::backup::StoreConfig;
use pgherd_stream::store::{MultipartUpload, ObjectStore, PutOutcome, StoreError};

use crate::{
    postgres::workspace,
    server::{Brand, Server, write_credentials},
};

on_each_server!(
    a_probe_names_what_is_wrong,
    rotated_credentials_are_used_at_once,
    objects_are_created_once_read_in_ranges_and_uploaded_in_parts,
);

async fn probe(config: StoreConfig) -> StoreError {
    let began = Instant::now();
    let error = ObjectStore::connect(&config).await.unwrap().probe().await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(15), "a probe answers soon: {error}");
    error
}

async fn a_probe_names_what_is_wrong(brand: Brand) {
    let dir = workspace();
    let minio = Server::start(brand, dir.path()).await;
    let good = minio.config.clone();
    minio.store().await.probe().await.unwrap();
    for (user, password) in [("pgherd-test", "wrong"), ("nobody", "pgherd-test-secret")] {
        let credentials_dir = write_credentials(&dir.path().join("wrong"), user, password);
        let error = probe(StoreConfig { credentials_dir, ..good.clone() }).await;
        assert!(matches!(error, StoreError::WrongCredentials { .. }), "{error:?}");
        assert!(!error.to_string().contains(password), "no secret in an error");
    }
    let error = probe(StoreConfig { bucket: "nowhere".to_owned(), ..good.clone() }).await;
    assert!(matches!(&error, StoreError::NoSuchBucket(name) if name == "nowhere"), "{error:?}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for endpoint in [format!("http://{closed}"), "http://no-such-host.invalid:9000".to_owned()] {
        let error = probe(StoreConfig { endpoint, ..good.clone() }).await;
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    }
    let error = probe(StoreConfig { ca_file: None, ..good.clone() }).await;
    assert!(matches!(error, StoreError::Tls { .. }), "nobody vouches for its CA: {error:?}");
    let credentials_dir = dir.path().join("nothing").to_str().unwrap().to_owned();
    let error = ObjectStore::connect(&StoreConfig { credentials_dir, ..good }).await.unwrap_err();
    assert!(matches!(error, StoreError::CredentialsFile { .. }), "{error:?}");
}

async fn rotated_credentials_are_used_at_once(brand: Brand) {
    let dir = workspace();
    let minio = Server::start(brand, dir.path()).await;
    let folder = dir.path().join("rotating");
    let credentials_dir = write_credentials(&folder, "pgherd-test", "old");
    let store = ObjectStore::connect(&StoreConfig { credentials_dir, ..minio.config.clone() }).await.unwrap();
    assert!(matches!(store.probe().await, Err(StoreError::WrongCredentials { .. })));
    write_credentials(&folder, "pgherd-test", "pgherd-test-secret");
    store.probe().await.unwrap();
}

async fn objects_are_created_once_read_in_ranges_and_uploaded_in_parts(brand: Brand) {
    let dir = workspace();
    let minio = Server::start(brand, dir.path()).await;
    let store = minio.store().await;
    let body = Bytes::from_static(b"0123456789");
    assert_eq!(store.put_if_absent("a/b", body.clone()).await.unwrap(), PutOutcome::Created);
    assert_eq!(store.put_if_absent("a/b", Bytes::from_static(b"other")).await.unwrap(), PutOutcome::Exists);
    assert_eq!(store.get("a/b").await.unwrap().unwrap(), body);
    assert_eq!(store.get_range("a/b", 3, 4).await.unwrap(), "3456");
    assert!(matches!(store.get_range("a/b", 8, 4).await, Err(StoreError::Damaged { .. })));
    assert!(matches!(store.get_range("a/c", 0, 4).await, Err(StoreError::NoSuchObject(_))));
    assert_eq!((store.get("a/c").await.unwrap(), store.head("a/c").await.unwrap()), (None, None));
    assert_eq!(store.head("a/b").await.unwrap(), Some(10));
    store.put("a/d/e", body).await.unwrap();
    assert_eq!(store.list("a/").await.unwrap(), [("a/b".to_owned(), 10), ("a/d/e".to_owned(), 10)]);
    assert_eq!(
        (store.list_dirs("").await.unwrap(), store.list_dirs("a/").await.unwrap()),
        (vec!["a".to_owned()], vec!["d".to_owned()])
    );
    store.delete("a/b").await.unwrap();
    store.delete("a/b").await.unwrap();
    store.delete_all(&["a/d/e", "a/b", "a/c"].map(str::to_owned)).await.unwrap();
    assert_eq!(store.list("a/").await.unwrap(), []);
    assert_eq!(store.list_dirs("").await.unwrap(), [""; 0], "a folder is what is in it");

    let noted = store.put_if_absent_noted("noted", Bytes::from_static(b"x"), Some(("pgherd-note", "a:b"))).await;
    assert_eq!(noted.unwrap(), PutOutcome::Created);
    let (body, note) = store.get_noted("noted", 1, "pgherd-note").await.unwrap().unwrap();
    assert_eq!((body, note.as_deref()), (Bytes::from_static(b"x"), Some("a:b")));
    assert_eq!(store.head_note("noted", "pgherd-note").await.unwrap(), note);

    let mut upload = MultipartUpload::begin(&store, "big", 2).await.unwrap();
    for byte in 0..3u8 {
        upload.push_part(Bytes::from(vec![byte; 5 << 20])).await.unwrap();
    }
    upload.push_part(Bytes::from_static(b"end")).await.unwrap();
    assert_eq!(upload.complete().await.unwrap(), (15 << 20) + 3);
    assert_eq!(store.get_range("big", (5 << 20) - 1, 2).await.unwrap(), [0, 1].as_slice());
    assert_eq!(store.get_range("big", 15 << 20, 3).await.unwrap(), "end");

    let mut upload = MultipartUpload::begin(&store, "left", 2).await.unwrap();
    upload.push_part(Bytes::from(vec![0; 5 << 20])).await.unwrap();
    upload.abort().await.unwrap();
    let _killed = MultipartUpload::begin(&store, "left", 2).await.unwrap();
    assert_eq!(store.abort_stale_uploads(&["left".to_owned(), "big".to_owned()]).await.unwrap(), 1);
    assert_eq!(store.abort_stale_uploads(&["left".to_owned()]).await.unwrap(), 0);
    assert_eq!(store.head("left").await.unwrap(), None);
}
