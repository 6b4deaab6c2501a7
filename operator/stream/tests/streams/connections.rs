//! The replication connection: certificates, passwords, names, slots, and the server's errors.

use std::{fs, path::Path};

use pgherd_core::timeline::TimelineId;
use pgherd_stream::{
    replication::{ConnectOptions, ReplicationClient, ReplicationError},
    tls::PostgresTls,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::postgres::{Postgres, hand_over, major_version, workspace};

/// A CA, a server certificate for `localhost` and a client certificate for `replicator` as PEM files.
fn write_certificates(folder: &Path) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "test CA");
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let issue = |file: &str, name: &str, hosts: Vec<String>| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        fs::write(folder.join(format!("{file}.crt")), certificate.pem()).unwrap();
        let key_file = folder.join(format!("{file}.key"));
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::set_permissions(key_file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    };
    fs::write(folder.join("ca.crt"), ca_certificate.pem()).unwrap();
    issue("server", "server", vec!["localhost".to_owned()]);
    issue("client", "replicator", vec![]);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_passwords_are_checked_on_both_sides() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let mut server = Postgres::create(dir.path(), "primary", 1);
    server.sql("CREATE ROLE replicator LOGIN REPLICATION");
    server.sql("CREATE ROLE scram LOGIN REPLICATION PASSWORD 'open sesame'");
    server.stop("fast");
    let tls = dir.path().join("tls");
    fs::create_dir(&tls).unwrap();
    write_certificates(&tls);
    hand_over(&tls);
    let hba = "hostssl replication replicator 127.0.0.1/32 cert\nhostssl replication scram 127.0.0.1/32 scram-sha-256\n\
               hostssl replication postgres 127.0.0.1/32 password\nlocal all all trust\n";
    fs::write(server.data.join("pg_hba.conf"), hba).unwrap();
    let path = |file: &str| tls.join(file);
    let file = |file: &str| path(file).display().to_string();
    server.start(&format!(
        "-c ssl=on -c ssl_cert_file={} -c ssl_key_file={} -c ssl_ca_file={}",
        file("server.crt"),
        file("server.key"),
        file("ca.crt")
    ));
    let with_certificate = PostgresTls {
        ca_file: path("ca.crt"),
        cert_file: Some(path("client.crt")),
        key_file: Some(path("client.key")),
    };
    let good = ConnectOptions {
        host: "127.0.0.1".to_owned(),
        user: "replicator".to_owned(),
        tls: Some(with_certificate.clone()),
        ..server.connect()
    };
    let mut client = ReplicationClient::connect(&good).await.unwrap();
    assert_eq!(client.identify_system().await.unwrap().timeline, TimelineId(1));
    client.close().await;

    let wrong_name = ConnectOptions { server_name: "elsewhere".to_owned(), ..good.clone() };
    assert!(matches!(ReplicationClient::connect(&wrong_name).await, Err(ReplicationError::Handshake { .. })));
    let wrong_ca = PostgresTls { ca_file: path("client.crt"), ..with_certificate.clone() };
    let wrong_ca = ConnectOptions { tls: Some(wrong_ca), ..good.clone() };
    assert!(matches!(ReplicationClient::connect(&wrong_ca).await, Err(ReplicationError::Handshake { .. })));
    let anonymous = PostgresTls { cert_file: None, key_file: None, ..with_certificate };
    let anonymous = ConnectOptions { tls: Some(anonymous), ..good.clone() };
    let error = ReplicationClient::connect(&anonymous).await.unwrap_err();
    assert_eq!(error.code(), Some("28000"), "{error:?}");
    let plain = ConnectOptions { tls: None, ..good.clone() };
    assert_eq!(ReplicationClient::connect(&plain).await.unwrap_err().code(), Some("28000"));

    let password_file = dir.path().join("password");
    fs::write(&password_file, "open sesame\n").unwrap();
    let scram =
        ConnectOptions { user: "scram".to_owned(), password_file: Some(password_file.clone()), ..anonymous.clone() };
    ReplicationClient::connect(&scram).await.unwrap().identify_system().await.unwrap();
    let cleartext = ConnectOptions { user: "postgres".to_owned(), ..scram.clone() };
    let error = ReplicationClient::connect(&cleartext).await.unwrap_err();
    assert!(matches!(error, ReplicationError::AuthenticationRefused(_)), "{error:?}");
    fs::write(&password_file, "open barley").unwrap();
    assert_eq!(ReplicationClient::connect(&scram).await.unwrap_err().code(), Some("28P01"));
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_made_read_and_dropped() {
    if crate::without_real_parts() {
        return;
    }
    let dir = workspace();
    let server = Postgres::create(dir.path(), "primary", 1);
    let mut client = ReplicationClient::connect(&server.connect()).await.unwrap();
    assert_eq!(client.read_slot("pgherd_c_1").await.unwrap(), None);
    let made = client.create_physical_slot("pgherd_c_1", false, true).await.unwrap();
    assert!(made.restart_lsn.is_some() && made.timeline == Some(TimelineId(1)));
    assert_eq!(client.create_physical_slot("pgherd_c_1", false, true).await.unwrap(), made);
    assert_eq!(client.create_physical_slot("lazy", true, false).await.unwrap().restart_lsn, None);
    client.drop_slot("pgherd_c_1").await.unwrap();
    client.drop_slot("pgherd_c_1").await.unwrap();
    assert_eq!(client.read_slot("pgherd_c_1").await.unwrap(), None);
    let error = client.create_physical_slot("Not Valid", false, true).await.unwrap_err();
    assert_eq!(error.code(), Some("42602"), "{error:?}");
    // The connection is of use after an error.
    assert_eq!(client.wal_segment_bytes().await.unwrap(), 1 << 20);
    assert_eq!(client.server_version().await.unwrap() / 10_000, major_version());
    assert_eq!(client.timeline_history(TimelineId(1)).await.unwrap().ancestors, []);
    assert!(client.timeline_history(TimelineId(9)).await.unwrap_err().code().is_some());
    client.close().await;
    crate::wait_until("the temporary slot is gone", async || {
        server.sql("SELECT count(*) FROM pg_replication_slots") == "0"
    })
    .await;
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_named_in_time() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = |port| ConnectOptions {
        host: "127.0.0.1".to_owned(),
        port,
        server_name: "localhost".to_owned(),
        user: "u".to_owned(),
        database: None,
        tls: None,
        password_file: None,
        application_name: String::new(),
        connect_timeout: std::time::Duration::from_millis(300),
    };
    let error = ReplicationClient::connect(&options(closed.port())).await.unwrap_err();
    assert!(matches!(error, ReplicationError::Connect { .. }), "{error:?}");
    let error = ReplicationClient::connect(&options(silent.local_addr().unwrap().port())).await.unwrap_err();
    assert!(matches!(error, ReplicationError::Timeout { .. }), "{error:?}");
}
