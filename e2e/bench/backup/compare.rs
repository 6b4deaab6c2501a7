//! Whether what came back is what was there: every file of the databases, byte by byte, and PostgreSQL's own look where there is a
//! manifest.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use pgherd_e2e::Result;

use crate::place::{Place, Side};

/// Caches that PostgreSQL builds anew; no tool brings them back.
const CACHE: &str = "pg_internal.init";

/// Compares `/work/restored` with `/work/data`, which must stand still. Says what was looked at.
pub(crate) async fn compare(place: &Place) -> Result<String> {
    let (data, restored) = (place.work("data/base"), place.work("restored/base"));
    let (wanted, found) = (list(&data)?, list(&restored)?);
    if let Some(name) = wanted.symmetric_difference(&found).next() {
        return Err(format!("{} is on one side only", name.display()).into());
    }
    for name in &wanted {
        if !is_same(&data.join(name), &restored.join(name))? {
            return Err(format!("{} is not the same", name.display()).into());
        }
    }
    let all = format!("{} files compared", wanted.len());
    if !place.work("restored/backup_manifest").exists() {
        return Ok(all);
    }
    place.run(Side::Other, &["pg_verifybackup", "--quiet", "/work/restored"]).await?;
    Ok(format!("{all}, pg_verifybackup"))
}

/// The files of all databases, by their path below `base`.
fn list(base: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut names = BTreeSet::new();
    for database in fs::read_dir(base)? {
        let database = database?;
        for file in fs::read_dir(database.path())? {
            let name = file?.file_name();
            if name != CACHE {
                names.insert(Path::new(&database.file_name()).join(name));
            }
        }
    }
    Ok(names)
}

fn is_same(one: &Path, other: &Path) -> Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let mut pieces = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = one.read(&mut pieces.0)?;
        if count == 0 {
            return Ok(true);
        }
        other.read_exact(&mut pieces.1[..count])?;
        if pieces.0[..count] != pieces.1[..count] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_makes_a_difference() {
        let folder = std::env::temp_dir().join(format!("pgherd-compare-{}", std::process::id()));
        fs::create_dir_all(folder.join("5")).unwrap();
        let (one, other) = (folder.join("5/1"), folder.join("5/2"));
        fs::write(&one, vec![7; 3 << 20]).unwrap();
        fs::write(&other, vec![7; 3 << 20]).unwrap();
        fs::write(folder.join("5").join(CACHE), "").unwrap();
        assert!(is_same(&one, &other).unwrap());
        let mut changed = vec![7; 3 << 20];
        changed[(2 << 20) + 5] = 8;
        fs::write(&other, &changed).unwrap();
        assert!(!is_same(&one, &other).unwrap());
        fs::write(&other, "7").unwrap();
        assert!(!is_same(&one, &other).unwrap());
        assert_eq!(list(&folder).unwrap(), [PathBuf::from("5/1"), PathBuf::from("5/2")].into());
        fs::remove_dir_all(folder).unwrap();
    }
}
