//! The sets of data: what they hold and how they get there.

use std::{fs, path::Path, process::Stdio};

use clap::ValueEnum;
use pgherd_e2e::Result;
use tokio::io::AsyncWriteExt;

use crate::{
    place::{Place, Side},
    servers::Server,
};

/// A unit of scale of pgbench takes this much, with its index.
const BYTES_OF_SCALE: f64 = 15.6e6;
/// A row of random bytes: four fill a page.
const ROW: usize = 1_900;
/// So many tables a GiB; with indexes each is three files of 8 to 32 KiB.
const TABLES: f64 = 1_700.0;
const GIB: f64 = 1_073_741_824.0;

/// A set of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Set {
    /// pgbench's tables, which compress very well.
    Tables,
    /// Random bytes, which don't compress at all; half the size.
    Random,
    /// Thousands of small tables.
    Small,
}

impl Set {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tables => "tables",
            Self::Random => "random",
            Self::Small => "small",
        }
    }

    /// Fills the server, and has all of it written.
    pub(crate) async fn fill(self, place: &Place, server: &Server<'_>, gib: f64) -> Result<()> {
        match self {
            Self::Tables => {
                let scale = format!("--scale={}", whole(gib * GIB / BYTES_OF_SCALE));
                let pgbench = ["pgbench", "--initialize", "--quiet", &scale, "-h/work/run", "-Upostgres", "postgres"];
                place.run(Side::Other, &pgbench).await.map(drop)?;
            }
            Self::Random => {
                // Not compressed by the server either, which would try.
                server.sql("CREATE TABLE noise (bytes bytea STORAGE PLAIN)").await?;
                copy_noise(place, whole(gib * GIB / 2.0 / 2_048.0)).await?;
            }
            Self::Small => {
                // A transaction keeps a lock for each new table, so it makes a hundred.
                let make = format!(
                    "DO $$ BEGIN FOR i IN 1..{} LOOP
                     EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, note text)', i);
                     EXECUTE format('INSERT INTO small_%s SELECT n, md5((n * %s)::text) FROM generate_series(1, 250) n', i, i);
                     IF i % 100 = 0 THEN COMMIT; END IF; END LOOP; END $$",
                    whole(gib * TABLES)
                );
                server.sql(&make).await?;
            }
        }
        // Nothing is left to change when it is read again.
        server.sql("VACUUM (FREEZE, ANALYZE)").await?;
        server.sql("CHECKPOINT").await.map(drop)
    }
}

fn whole(value: f64) -> u64 {
    value.max(1.0) as u64
}

/// Copies rows of random bytes into the table `noise`, in PostgreSQL's binary format.
async fn copy_noise(place: &Place, rows: u64) -> Result<()> {
    let copy = [
        "psql",
        "-Xq",
        "-h/work/run",
        "-Upostgres",
        "-vON_ERROR_STOP=1",
        "-c",
        "COPY noise FROM STDIN BINARY",
        "postgres",
    ];
    let mut child = place.command(Side::Other, &copy).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().ok_or("psql has no input")?;
    input.write_all(b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0").await?;
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut chunk = Vec::new();
    for _ in 0..rows {
        // One column, of so many bytes.
        chunk.extend_from_slice(&1_i16.to_be_bytes());
        chunk.extend_from_slice(&i32::try_from(ROW)?.to_be_bytes());
        noise.extend(&mut chunk, ROW);
        if chunk.len() > 1 << 20 {
            input.write_all(&chunk).await?;
            chunk.clear();
        }
    }
    chunk.extend_from_slice(&(-1_i16).to_be_bytes());
    input.write_all(&chunk).await?;
    drop(input);
    let output = child.wait_with_output().await?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
}

/// xorshift64*: quick, the same each time, and nothing that a compressor finds.
struct Noise(u64);

impl Noise {
    fn extend(&mut self, bytes: &mut Vec<u8>, count: usize) {
        let end = bytes.len() + count;
        while bytes.len() < end {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            bytes.extend_from_slice(&self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        bytes.truncate(end);
    }
}

/// Bytes and files of a data directory, without its WAL: what every tool is taken to have moved.
pub(crate) fn size_of(data: &Path) -> Result<(u64, u64)> {
    let (mut bytes, mut files) = (0, 0);
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.metadata()?;
            if kind.is_file() {
                (bytes, files) = (bytes + kind.len(), files + 1);
            } else if kind.is_dir() && entry.file_name() != "pg_wal" {
                folders.push(entry.path());
            }
        }
    }
    Ok((bytes, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_noise_of_the_right_length() {
        let mut bytes = Vec::new();
        Noise(1).extend(&mut bytes, 100_001);
        assert_eq!(bytes.len(), 100_001);
        let mut counts = [0_u32; 256];
        bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        assert!(counts.iter().all(|count| (250..550).contains(count)), "{counts:?}");
    }
}
