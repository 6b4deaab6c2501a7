//! Writes the manifest of every custom resource into a folder, and the reference for users into a file:
//! `crdgen crds docs/api.md`. With `--check` it writes nothing and fails if a file differs. It talks to no cluster.
#![forbid(unsafe_code)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use pgherd_crds::{
    manifest::{ManifestError, file_name, render_manifest},
    reference::render_reference,
};

/// Why the manifests were not written.
#[derive(Debug, thiserror::Error)]
enum CrdgenError {
    #[error("usage: crdgen [--check] FOLDER [REFERENCE.md]")]
    Usage,
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("failed to write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not what the types say: run `make crds`")]
    Drift { path: PathBuf },
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
            eprintln!("error: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), CrdgenError> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let check = arguments.first().is_some_and(|a| a == "--check");
    if check {
        arguments.remove(0);
    }
    let (folder, reference) = match arguments.as_slice() {
        [folder] => (folder, None),
        [folder, reference] => (folder, Some(reference)),
        _ => return Err(CrdgenError::Usage),
    };
    for definition in pgherd_crds::all() {
        write(&Path::new(folder).join(file_name(&definition)), &render_manifest(&definition)?, check)?;
    }
    match reference {
        Some(path) => write(Path::new(path), &render_reference()?, check),
        None => Ok(()),
    }
}

/// Leaves a file that is current alone, so that its time says when it changed.
fn write(path: &Path, text: &str, check: bool) -> Result<(), CrdgenError> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if check {
        return Err(CrdgenError::Drift { path: path.to_owned() });
    }
    fs::write(path, text).map_err(|source| CrdgenError::Write { path: path.to_owned(), source })?;
    println!("wrote {}", path.display());
    Ok(())
}
