//! The real command-line programs: kubectl, helm, and this project's own scripts.

use std::{path::PathBuf, process::Stdio};

use tokio::{io::AsyncWriteExt, process::Command};

use crate::Result;

/// The checkout's root: the folder that this program runs in, or one above it. The place where it was compiled may be gone
/// (cargo takes programs from a shared target folder whichever checkout they were compiled in).
#[must_use]
pub fn root() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let above = here.ancestors().find(|folder| folder.join("e2e/cluster/cluster.sh").exists());
    above.unwrap_or(&here).to_path_buf()
}

/// Runs a program and returns what it printed.
///
/// # Errors
/// The program could not be started or failed; the text has its arguments and what it printed on stderr.
pub async fn run(program: &str, arguments: &[&str], input: Option<&str>) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("failed to start {program}: {error}"))?;
    if let (Some(text), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(text.as_bytes()).await?;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout);
    Err(format!("{program} {} failed ({}): {}{}", arguments.join(" "), output.status, stderr.trim(), stdout.trim())
        .into())
}

/// Runs kubectl in a namespace.
///
/// # Errors
/// As [`run`].
pub async fn kubectl(namespace: &str, arguments: &[&str]) -> Result<String> {
    let mut all = vec!["-n", namespace];
    all.extend_from_slice(arguments);
    run("kubectl", &all, None).await
}

/// Applies a manifest with plain `kubectl apply`.
///
/// # Errors
/// As [`run`]; a rejection by the API server is in the text.
pub async fn apply(namespace: &str, manifest: &str) -> Result<String> {
    run("kubectl", &["-n", namespace, "apply", "-f", "-"], Some(manifest)).await
}

/// Runs one of the scripts under `e2e/cluster`.
///
/// # Errors
/// As [`run`].
pub async fn script(name: &str, arguments: &[&str]) -> Result<String> {
    run(&root().join("e2e/cluster").join(name).to_string_lossy(), arguments, None).await
}
