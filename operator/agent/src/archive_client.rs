//! `pgherd archive-wal` and `pgherd restore-wal`: what PostgreSQL calls for its WAL. They only ask the agent over the unix
//! socket; without an agent nothing is known, which is not the same as "absent".

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use crate::{
    archive::{Answer, Request},
    layout::Layout,
};

/// Longer than the agent's own bound.
const PATIENCE: Duration = Duration::from_secs(150);
/// PostgreSQL takes an exit code above 125 of restore_command for a fault and not for the end of the archive.
const UNKNOWN: u8 = 255;

/// Archives one file: 0 when it is in the archive, else 1, and PostgreSQL tries again. Never a code above 125, which
/// `shell_archive` in PostgreSQL takes for a signal: the archiver would end.
#[must_use]
pub fn archive_wal(path: &str, name: &str) -> ExitCode {
    let request = Request::Archive { path: path.to_owned(), name: name.to_owned() };
    ExitCode::from(decide_archive_exit(ask(&Layout::pod().agent_socket(), &request)))
}

fn decide_archive_exit(answer: io::Result<Answer>) -> u8 {
    u8::from(decide_exit(answer) != 0)
}

/// Fetches one file: 0 when it is there, 1 when the archive surely has none, else 255 in a recovery, which an outage must
/// not end early. A standby's recovery does not end for want of a file, but 255 would end its server: it gets 1 and goes
/// on from the primary. PostgreSQL calls this in PGDATA. pg_rewind, which gives a whole path, gets 1 as well: 255 would end it without
/// a word about which file it needs.
#[must_use]
pub fn restore_wal(name: &str, dest: &str) -> ExitCode {
    let request = Request::Restore { name: name.to_owned(), path: dest.to_owned() };
    let answer = ask(&Layout::pod().agent_socket(), &request);
    ExitCode::from(decide_restore_exit(answer, has_other_source(Path::new("."), dest)))
}

/// Whether no recovery ends for want of this file.
fn has_other_source(pgdata: &Path, dest: &str) -> bool {
    Path::new(dest).is_absolute() || pgdata.join("standby.signal").exists()
}

fn decide_restore_exit(answer: io::Result<Answer>, goes_on: bool) -> u8 {
    match decide_exit(answer) {
        UNKNOWN if goes_on => 1,
        code => code,
    }
}

/// The exit code of a fetch. The reason goes to the server's log.
fn decide_exit(answer: io::Result<Answer>) -> u8 {
    match answer {
        Ok(Answer::Done) => 0,
        Ok(Answer::Absent) => 1,
        Ok(Answer::Failed(why)) => {
            eprintln!("pgherd: {why}");
            UNKNOWN
        }
        Err(error) => {
            eprintln!("pgherd: the agent can't be reached: {error}");
            UNKNOWN
        }
    }
}

fn ask(socket: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_ends_the_archiver() {
        assert_eq!(decide_archive_exit(Ok(Answer::Done)), 0);
        assert_eq!(decide_archive_exit(Ok(Answer::Failed("x".into()))), 1);
        assert_eq!(decide_archive_exit(Ok(Answer::Absent)), 1);
    }

    #[test]
    fn a_standby_goes_on_without_the_store() {
        assert_eq!(decide_restore_exit(Ok(Answer::Failed("x".into())), true), 1);
        assert_eq!(decide_restore_exit(Ok(Answer::Done), true), 0);
        assert_eq!(decide_restore_exit(Ok(Answer::Failed("x".into())), false), 255);
    }

    #[test]
    fn what_pg_rewind_asks_for_is_told_by_its_path() {
        let pgdata = tempfile::tempdir().unwrap();
        assert!(!has_other_source(pgdata.path(), "pg_wal/RECOVERYXLOG"));
        assert!(has_other_source(pgdata.path(), "/data/pg_wal/000000010000000000000001"));
        std::fs::write(pgdata.path().join("standby.signal"), "").unwrap();
        assert!(has_other_source(pgdata.path(), "pg_wal/RECOVERYXLOG"));
    }

    #[test]
    fn only_a_sure_answer_ends_a_recovery() {
        assert_eq!(decide_exit(Ok(Answer::Done)), 0);
        assert_eq!(decide_exit(Ok(Answer::Absent)), 1);
        assert_eq!(decide_exit(Ok(Answer::Failed("x".into()))), 255);
        assert_eq!(
            decide_exit(ask(
                Path::new("/nowhere/agent.sock"),
                &Request::Restore { name: "n".into(), path: "p".into() }
            )),
            255
        );
    }
}
