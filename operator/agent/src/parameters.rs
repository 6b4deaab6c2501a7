//! The user's parameters, before any configuration has them: PostgreSQL itself is asked whether it would start with them. A running
//! server passes over a value that it does not take; its next start fails by it, on one instance after the other.

use std::{collections::BTreeMap, ffi::OsStr, fs, io, path::Path};

use pgherd_core::{instance::InstanceConfig, pg::conf::render_parameters};

use crate::{
    actions::describe_chain,
    board::Board,
    layout::Layout,
    local_state::write_durably,
    postgres::binaries::{Binaries, ProgramError},
};

type Parameters = BTreeMap<String, String>;

/// Why PostgreSQL could not be asked.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("writing what is asked about")]
    Write(#[source] io::Error),
    #[error("postgres -C fails whatever it is asked about: {0}")]
    Useless(String),
}

/// The configuration with parameters that PostgreSQL starts with: one that it refuses keeps the value that was accepted last, or is left
/// out where there is none. What is refused is shown on the board. Where PostgreSQL can't be asked nothing is changed: a start says then
/// what is wrong.
pub async fn accept_parameters(layout: &Layout, board: &Board, config: InstanceConfig) -> InstanceConfig {
    let record = layout.accepted_parameters();
    let before: Parameters =
        fs::read(&record).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let Sorted { accepted, refused } = match sort(layout, &config.parameters, &before).await {
        Ok(sorted) => sorted,
        Err(error) => {
            tracing::warn!(error = %describe_chain(&error), "the parameters are not checked");
            Sorted { accepted: config.parameters.clone(), refused: Vec::new() }
        }
    };
    if before != accepted
        && let Ok(text) = serde_json::to_vec(&accepted)
        && let Err(error) = write_durably(&record, &text)
    {
        tracing::warn!(error = %error, "the accepted parameters are not remembered");
    }
    board.update(|status| status.refused_parameters = refused);
    InstanceConfig { parameters: accepted, ..config }
}

struct Sorted {
    /// What the server runs with.
    accepted: Parameters,
    /// Names with PostgreSQL's words.
    refused: Vec<String>,
}

async fn sort(layout: &Layout, wanted: &Parameters, before: &Parameters) -> Result<Sorted, CheckError> {
    let binaries = Binaries::observe()?;
    let folder = layout.run.join("parameters");
    if ask(&binaries, &folder, wanted).await?.is_none() {
        return Ok(Sorted { accepted: wanted.clone(), refused: Vec::new() });
    }
    if let Some(why) = ask(&binaries, &folder, &Parameters::new()).await? {
        return Err(CheckError::Useless(why));
    }
    // One at a time: unknown names hide wrong values, and no text has to be understood.
    let mut sorted = Sorted { accepted: Parameters::new(), refused: Vec::new() };
    for (name, value) in wanted {
        let alone = |value: &String| Parameters::from([(name.clone(), value.clone())]);
        let Some(why) = ask(&binaries, &folder, &alone(value)).await? else {
            sorted.accepted.insert(name.clone(), value.clone());
            continue;
        };
        sorted.refused.push(format!("{name}: {why}"));
        // By another version of PostgreSQL, perhaps.
        if let Some(value) = before.get(name)
            && ask(&binaries, &folder, &alone(value)).await?.is_none()
        {
            sorted.accepted.insert(name.clone(), value.clone());
        }
    }
    Ok(sorted)
}

/// Why PostgreSQL does not start with these; None where it does.
async fn ask(binaries: &Binaries, folder: &Path, parameters: &Parameters) -> Result<Option<String>, CheckError> {
    fs::create_dir_all(folder).map_err(CheckError::Write)?;
    fs::write(folder.join("postgresql.conf"), render_parameters(parameters)).map_err(CheckError::Write)?;
    fs::write(folder.join("postgresql.auto.conf"), "").map_err(CheckError::Write)?;
    // It reads the configuration, says one value and ends: it takes no lock and looks at no data.
    let args = [OsStr::new("-D"), folder.as_os_str(), OsStr::new("-C"), OsStr::new("data_directory")];
    let output = binaries.output("postgres", &args, &[]).await?;
    Ok((!output.status.success()).then(|| parse_reason(&String::from_utf8_lossy(&output.stderr))))
}

/// The reason, its detail and its hint, without the places that they are followed by.
fn parse_reason(log: &str) -> String {
    let said = |severity: &str| {
        let (_, text) = log.lines().find_map(|line| line.split_once(severity))?;
        Some(text.split(" in file \"").next().unwrap_or(text).trim().to_owned())
    };
    let reason = said(" LOG:  ").or_else(|| said(" FATAL:  "));
    let all: Vec<String> = [reason, said(" DETAIL:  "), said(" HINT:  ")].into_iter().flatten().collect();
    if all.is_empty() { log.trim().chars().take(200).collect() } else { all.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_told_with_its_hint_and_without_the_candidates_place() {
        let unit = "2026-11-30 07:36:04.287 GMT [27599] LOG:  invalid value for parameter \"work_mem\": \"12 potatoes\"\n\
                    2026-11-30 07:36:04.287 GMT [27599] HINT:  Valid units for this parameter are \"B\" and \"kB\".\n\
                    2026-11-30 07:36:04.287 GMT [27599] FATAL:  configuration file \"/run/p/postgresql.conf\" contains errors\n";
        let told = "invalid value for parameter \"work_mem\": \"12 potatoes\"; Valid units for this parameter are \"B\" and \"kB\".";
        assert_eq!(parse_reason(unit), told);
        let unknown = "t GMT [1] LOG:  unrecognized configuration parameter \"no_such\" in file \"/run/p/postgresql.conf\" line 2\n\
                       t GMT [1] FATAL:  configuration file \"/run/p/postgresql.conf\" contains errors\n";
        assert_eq!(parse_reason(unknown), "unrecognized configuration parameter \"no_such\"");
        assert_eq!(parse_reason("postgres: not found\n"), "postgres: not found");
    }
}
