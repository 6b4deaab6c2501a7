//! Finds PostgreSQL's programs in whatever image the user chose, and runs the short-lived ones. The server itself is
//! started in [`super::process`].

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use tokio::process::Command;

/// What the agent calls.
const PROGRAMS: [&str; 4] = ["initdb", "postgres", "pg_controldata", "pg_rewind"];

/// Why a program could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The image has none.
    #[error(
        "the image has no PostgreSQL (initdb was not found in PATH, /usr/lib/postgresql/*/bin or /usr/pgsql-*/bin)"
    )]
    NotFound,
    /// It could not be started.
    #[error("failed to run {program}")]
    Spawn {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed; its last words are in the text.
    #[error("{program} failed: {output}")]
    Failed {
        /// The program.
        program: String,
        /// The end of what it printed.
        output: String,
    },
}

/// The folder of PostgreSQL's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries(PathBuf);

impl Binaries {
    /// Looks in PATH, then in the folders of the Debian and Red Hat packages, the newest version first.
    ///
    /// # Errors
    /// [`ProgramError::NotFound`].
    pub fn observe() -> Result<Self, ProgramError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self::find(&path, Path::new("/usr"))
    }

    fn find(path: &OsStr, usr: &Path) -> Result<Self, ProgramError> {
        let mut folders: Vec<PathBuf> = std::env::split_paths(path).collect();
        folders.extend(versioned(&usr.join("lib/postgresql"), ""));
        folders.extend(versioned(usr, "pgsql-"));
        // Some systems link only a part of them into PATH.
        let complete = |folder: &PathBuf| PROGRAMS.iter().all(|name| folder.join(name).is_file());
        folders.into_iter().find(complete).map(Self).ok_or(ProgramError::NotFound)
    }

    /// The path of a program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Runs a program to its end, whatever that is. It is killed when the future is dropped.
    ///
    /// # Errors
    /// [`ProgramError::Spawn`] when it can't be started.
    pub async fn output(&self, name: &str, args: &[&OsStr], env: &[(&str, &str)]) -> Result<Output, ProgramError> {
        let mut command = Command::new(self.program(name));
        command.args(args).env("LC_ALL", "C").envs(env.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
        command.output().await.map_err(|source| ProgramError::Spawn { program: name.to_owned(), source })
    }

    /// Runs a program to its end and returns what it printed to stdout. It is killed when the future is dropped.
    ///
    /// # Errors
    /// [`ProgramError`] when it can't be started or exits with another code than 0.
    pub async fn run(&self, name: &str, args: &[&OsStr], env: &[(&str, &str)]) -> Result<String, ProgramError> {
        let output = self.output(name, args, env).await?;
        if output.status.success() {
            if !output.stderr.is_empty() {
                tracing::info!(program = name, output = %last_words(&String::from_utf8_lossy(&output.stderr)), "ran");
            }
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let printed = [output.stdout, output.stderr].concat();
        Err(ProgramError::Failed { program: name.to_owned(), output: last_words(&String::from_utf8_lossy(&printed)) })
    }
}

/// `<folder>/<prefix><version>/bin`, the highest version first.
fn versioned(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let version = |name: &OsStr| name.to_str()?.strip_prefix(prefix)?.split('.').next()?.parse::<u32>().ok();
    let mut found: Vec<(u32, PathBuf)> =
        entries.flatten().filter_map(|entry| Some((version(&entry.file_name())?, entry.path().join("bin")))).collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The last lines of a program's output, short enough for a status.
fn last_words(output: &str) -> String {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let start = lines.len().saturating_sub(4);
    lines.get(start..).unwrap_or_default().join("; ").chars().take(600).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn install(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        for name in PROGRAMS {
            fs::write(folder.join(name), "").unwrap();
        }
    }

    #[test]
    fn the_newest_version_of_the_packages_is_used() {
        let usr = tempfile::tempdir().unwrap();
        install(&usr.path().join("lib/postgresql/9.6/bin"));
        install(&usr.path().join("lib/postgresql/17/bin"));
        install(&usr.path().join("lib/postgresql/15/bin"));
        let found = Binaries::find(OsStr::new("/nowhere"), usr.path()).unwrap();
        assert_eq!(found.program("postgres"), usr.path().join("lib/postgresql/17/bin/postgres"));
    }

    #[test]
    fn path_comes_before_the_packages() {
        let usr = tempfile::tempdir().unwrap();
        install(&usr.path().join("lib/postgresql/17/bin"));
        install(&usr.path().join("custom"));
        let found = Binaries::find(usr.path().join("custom").as_os_str(), usr.path()).unwrap();
        assert_eq!(found.program("initdb"), usr.path().join("custom/initdb"));
    }

    #[test]
    fn a_folder_with_only_a_part_of_the_programs_is_passed_over() {
        let usr = tempfile::tempdir().unwrap();
        let part = usr.path().join("local");
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join("initdb"), "").unwrap();
        fs::write(part.join("postgres"), "").unwrap();
        install(&usr.path().join("lib/postgresql/15/bin"));
        let found = Binaries::find(part.as_os_str(), usr.path()).unwrap();
        assert_eq!(found.program("initdb"), usr.path().join("lib/postgresql/15/bin/initdb"));
    }

    #[test]
    fn an_image_without_postgresql_says_so() {
        let usr = tempfile::tempdir().unwrap();
        let error = Binaries::find(OsStr::new(""), usr.path()).unwrap_err();
        assert!(error.to_string().starts_with("the image has no PostgreSQL (initdb was not found"));
    }
}
