//! A server that speaks just enough of the replication protocol to send a base backup of any size and content, faster than a
//! real one could be filled.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use sha2::{Digest, Sha256};

const SEGMENT: usize = 1 << 20;
const FILE: usize = 64 << 20;
pub(crate) const SYSTEM_ID: &str = "7300000000000000001";

/// What the files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Random bytes.
    Noise,
    /// Rows of text, as pgbench makes them: about 20:1.
    Rows,
    /// Half random, half blank, the same MiB again and again: about 2:1, and sent faster than it can be compressed.
    Halves,
}

/// What it says of incremental backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incrementals {
    /// It is PostgreSQL 15.
    Unknown,
    /// It makes them: one file of the first is told as some blocks.
    Made,
    /// It takes the manifest and then refuses with this message.
    Refused(&'static str),
}

/// What a server does, and what it was told.
struct Scene {
    content: Content,
    megabytes: usize,
    incrementals: Incrementals,
    manifests: Arc<Mutex<Vec<Vec<u8>>>>,
    begun: Mutex<u64>,
}

/// A listening server; its thread ends with the process.
pub(crate) struct FakeServer {
    pub(crate) sockets: PathBuf,
    pub(crate) port: u16,
    /// The manifests that were uploaded.
    pub(crate) manifests: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl FakeServer {
    /// Serves a data directory of `megabytes`.
    pub(crate) fn start(parent: &Path, content: Content, megabytes: usize) -> Self {
        Self::start_with(parent, content, megabytes, Incrementals::Unknown)
    }

    /// The same, with incremental backups.
    pub(crate) fn start_with(parent: &Path, content: Content, megabytes: usize, incrementals: Incrementals) -> Self {
        let manifests = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&manifests);
        let scene = Arc::new(Scene { content, megabytes, incrementals, manifests: told, begun: Mutex::new(0) });
        let (sockets, port) = (parent.join("fake"), 5432);
        std::fs::create_dir_all(&sockets).unwrap();
        let listener = UnixListener::bind(sockets.join(format!(".s.PGSQL.{port}"))).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                // A client that goes away in the middle is what some tests are about.
                let scene = Arc::clone(&scene);
                std::thread::spawn(move || drop(serve(stream, &scene)));
            }
        });
        Self { sockets, port, manifests }
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], &u32::try_from(body.len() + 4).unwrap().to_be_bytes()[..], body].concat()
}

fn row(columns: &[&str]) -> Vec<u8> {
    let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for column in columns {
        body.extend_from_slice(&u32::try_from(column.len()).unwrap().to_be_bytes());
        body.extend_from_slice(column.as_bytes());
    }
    message(b'D', &body)
}

fn rows(columns: &[&str]) -> Vec<u8> {
    [message(b'T', &0u16.to_be_bytes()), row(columns), message(b'C', b"SELECT\0")].concat()
}

fn serve(mut stream: UnixStream, scene: &Scene) -> io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    io::copy(&mut (&stream).take(u64::from(u32::from_be_bytes(length)) - 4), &mut io::sink())?;
    stream.write_all(&message(b'R', &0u32.to_be_bytes()))?;
    stream.write_all(&message(b'Z', b"I"))?;
    loop {
        let (tag, body) = read_message(&mut stream)?;
        if tag != b'Q' {
            return Ok(());
        }
        let sql = String::from_utf8(body).unwrap();
        if sql.starts_with("IDENTIFY_SYSTEM") {
            stream.write_all(&rows(&[SYSTEM_ID, "1", "0/2000028"]))?;
        } else if sql.contains("server_version_num") {
            let known = scene.incrementals != Incrementals::Unknown;
            stream.write_all(&rows(&[if known { "170006" } else { "150013" }]))?;
        } else if sql.contains("wal_segment_size") {
            stream.write_all(&rows(&["1MB"]))?;
        } else if sql.starts_with("CREATE_REPLICATION_SLOT") || sql.starts_with("READ_REPLICATION_SLOT") {
            stream.write_all(&rows(&["physical", "0/2000028", "1"]))?;
        } else if sql.starts_with("UPLOAD_MANIFEST") {
            take_manifest(&mut stream, scene)?;
        } else if sql.starts_with("BASE_BACKUP") {
            let incremental = sql.contains("INCREMENTAL");
            match scene.incrementals {
                Incrementals::Refused(why) if incremental => {
                    let error = format!("SERROR\0VERROR\0C55000\0M{why}\0\0");
                    stream.write_all(&message(b'E', error.as_bytes()))?;
                }
                _ => send_backup(&mut stream, scene, incremental)?,
            }
        }
        stream.write_all(&message(b'Z', b"I"))?;
    }
}

fn read_message(stream: &mut UnixStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize - 4;
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((head[0], body))
}

fn take_manifest(stream: &mut UnixStream, scene: &Scene) -> io::Result<()> {
    stream.write_all(&message(b'G', &[0, 0, 0]))?;
    let mut manifest = Vec::new();
    loop {
        match read_message(stream)? {
            (b'd', piece) => manifest.extend_from_slice(&piece),
            (b'c', _) => break,
            (tag, _) => panic!("message {tag} within a manifest"),
        }
    }
    scene.manifests.lock().unwrap().push(manifest);
    stream.write_all(&message(b'C', b"UPLOAD_MANIFEST\0"))
}

fn copy_data(stream: &mut UnixStream, tag: u8, bytes: &[u8]) -> io::Result<()> {
    for piece in bytes.chunks(32 << 10) {
        let mut head = vec![b'd'];
        head.extend_from_slice(&u32::try_from(piece.len() + 5).unwrap().to_be_bytes());
        head.push(tag);
        stream.write_all(&head)?;
        stream.write_all(piece)?;
    }
    Ok(())
}

fn send_backup(stream: &mut UnixStream, scene: &Scene, incremental: bool) -> io::Result<()> {
    let (content, megabytes) = (scene.content, scene.megabytes);
    let begun = {
        let mut begun = scene.begun.lock().unwrap();
        *begun += 1;
        *begun - 1
    };
    // All within one segment.
    let (start, stop) = (format!("0/{:X}", 0x200_0028 + begun * 0x100), format!("0/{:X}", 0x200_0100 + begun * 0x100));
    stream.write_all(&rows(&[&start, "1"]))?;
    let size = (megabytes * 1024).to_string();
    // The OID and the place of the data directory are NULL.
    let mut tablespace = 3u16.to_be_bytes().to_vec();
    tablespace.extend_from_slice(&[0xFF; 8]);
    tablespace.extend_from_slice(&u32::try_from(size.len()).unwrap().to_be_bytes());
    tablespace.extend_from_slice(size.as_bytes());
    stream.write_all(&[message(b'T', &0u16.to_be_bytes()), message(b'D', &tablespace)].concat())?;
    stream.write_all(&message(b'C', b"SELECT\0"))?;
    stream.write_all(&message(b'H', &[0, 0, 0]))?;
    stream.write_all(&message(b'd', b"nbase.tar\0\0"))?;
    let mut manifest = String::from("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n");
    let mut buffer = vec![0u8; 1 << 20];
    let mut state = 88_172_645_463_325_252u64;
    fill(&mut buffer, content, &mut state);
    let mut left = megabytes << 20;
    let mut number = 0;
    while left > 0 {
        let length = left.min(FILE);
        let blocks = if incremental && number == 0 { "INCREMENTAL." } else { "" };
        let path = format!("base/5/{blocks}{}", 16_384 + number);
        copy_data(stream, b'd', &header(&path, b'0', length))?;
        let mut crc = 0;
        for _ in 0..length >> 20 {
            if content != Content::Halves {
                fill(&mut buffer, content, &mut state);
            }
            crc = crc32c::crc32c_append(crc, &buffer);
            copy_data(stream, b'd', &buffer)?;
        }
        list(&mut manifest, &path, length, crc);
        left -= length;
        number += 1;
    }
    let control = vec![7u8; 8192];
    copy_data(stream, b'd', &[&header("global/pg_control", b'0', control.len())[..], &control].concat())?;
    list(&mut manifest, "global/pg_control", control.len(), crc32c::crc32c(&control));
    let wal = vec![1u8; SEGMENT];
    copy_data(stream, b'd', &[&header("pg_wal/000000010000000000000020", b'0', SEGMENT)[..], &wal].concat())?;
    copy_data(stream, b'd', &[0; 1024])?;
    stream.write_all(&message(b'd', b"m"))?;
    manifest.truncate(manifest.len() - 2);
    write!(
        manifest,
        "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": 1, \"Start-LSN\": \"{start}\", \"End-LSN\": \"{stop}\" }}\n],\n",
    )
    .unwrap();
    let sum: String = Sha256::digest(manifest.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(manifest, "\"Manifest-Checksum\": \"{sum}\"}}").unwrap();
    copy_data(stream, b'd', manifest.as_bytes())?;
    stream.write_all(&message(b'c', b""))?;
    stream.write_all(&rows(&[&stop, "1"]))?;
    stream.write_all(&message(b'C', b"BASE_BACKUP\0"))
}

fn list(manifest: &mut String, path: &str, length: usize, crc: u32) {
    let sum: String = crc.to_le_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(
        manifest,
        "{{ \"Path\": \"{path}\", \"Size\": {length}, \"Last-Modified\": \"2026-01-01 00:00:00 GMT\", \
         \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{sum}\" }},"
    )
    .unwrap();
}

fn fill(buffer: &mut [u8], content: Content, state: &mut u64) {
    match content {
        Content::Noise => {
            for chunk in buffer.chunks_exact_mut(8) {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                chunk.copy_from_slice(&state.to_le_bytes());
            }
        }
        Content::Halves => {
            for chunk in buffer.chunks_exact_mut(128) {
                chunk.fill(b' ');
                fill(&mut chunk[..64], Content::Noise, state);
            }
        }
        Content::Rows => {
            for (index, chunk) in buffer.chunks_exact_mut(128).enumerate() {
                chunk.fill(b' ');
                *state += 1;
                chunk[..8].copy_from_slice(&state.to_le_bytes());
                chunk[8..16].copy_from_slice(&(index as u64).to_le_bytes());
            }
        }
    }
}

/// A ustar header like PostgreSQL's.
pub(crate) fn header(path: &str, kind: u8, size: usize) -> [u8; 512] {
    let mut block = [0u8; 512];
    block[..path.len()].copy_from_slice(path.as_bytes());
    block[100..107].copy_from_slice(b"0000600");
    block[124..136].copy_from_slice(format!("{size:011o} ").as_bytes());
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * 32;
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}
