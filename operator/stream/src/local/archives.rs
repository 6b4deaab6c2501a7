//! From the walk to chunks of the archives: headers, files, and the end of each archive. Blocks; opens files but does not read them.

use std::{
    collections::HashSet,
    fs::{self, Metadata},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{
    LocalError,
    chunk::{ChunkWriter, Content, SourceFile, open},
    rules::RelationFile,
    session::ServerFacts,
    tablespaces::Space,
    tar_header::{HeaderFields, HeaderKind, render_header},
    walk::{CONTROL_FILE, Found, Walk},
};
use crate::{
    backup::render_data_path,
    tar::{TAR_BLOCK, padding},
};

/// Files below this size are read in one go: the kernel needs no hint.
const HINT_BYTES: u64 = 128 << 10;
const BASE: &str = "base";

/// What the archives are made of.
#[derive(Clone, Debug)]
pub(super) struct Sources {
    /// The data directory.
    pub(super) data: PathBuf,
    pub(super) spaces: Vec<Space>,
    /// Name of the folder of this server's version in a tablespace.
    pub(super) version_dir: String,
    pub(super) version: u32,
    pub(super) pages_per_segment: u32,
    pub(super) checksums: bool,
    /// Permission bits of new files and folders, as the server makes them.
    pub(super) file_mode: u32,
    pub(super) dir_mode: u32,
}

impl Sources {
    /// Looks at the tablespaces; only what is there after `pg_backup_start` is certain.
    pub(super) fn observe(data: &Path, facts: &ServerFacts) -> Result<Self, LocalError> {
        let mode = fs::metadata(data).map_err(LocalError::reading(data))?.permissions().mode();
        // As `data_directory_mode` has it: a group may read, or nobody.
        let (file_mode, dir_mode) = if mode & 0o050 == 0o050 { (0o640, 0o750) } else { (0o600, 0o700) };
        Ok(Self {
            data: data.to_owned(),
            spaces: super::tablespaces::list_tablespaces(data)?,
            version_dir: format!("PG_{}_{}", facts.version / 10_000, facts.catalogue_version),
            version: facts.version,
            pages_per_segment: facts.pages_per_segment,
            checksums: facts.checksums,
            file_mode,
            dir_mode,
        })
    }

    fn inside(&self) -> HashSet<String> {
        self.spaces.iter().filter_map(|space| space.inside.clone()).collect()
    }

    /// Bytes of each archive as they are now: first the tablespaces, then the data directory, without WAL.
    pub(super) fn estimate(&self) -> Result<Vec<u64>, LocalError> {
        let mut sizes = Vec::new();
        for space in self.spaces.iter().map(Some).chain([None]) {
            let mut bytes = 0u64;
            self.visit(space, &mut |found| {
                bytes += TAR_BLOCK as u64;
                if let Found::File { metadata, .. } = found {
                    bytes += metadata.len() + padding(metadata.len());
                }
                Ok(())
            })?;
            sizes.push(bytes);
        }
        Ok(sizes)
    }

    /// Walks through a tablespace, or through the data directory.
    fn visit(
        &self,
        space: Option<&Space>,
        visit: &mut dyn FnMut(Found<'_>) -> Result<(), LocalError>,
    ) -> Result<(), LocalError> {
        let (dir_mode, version) = (self.dir_mode, self.version);
        let Some(space) = space else {
            let inside = self.inside();
            let walk = Walk { root: &self.data, databases: BASE, data: Some(&inside), dir_mode, version };
            return walk.visit_all("", visit);
        };
        let top = space.place.join(&self.version_dir);
        let metadata = match fs::symlink_metadata(&top) {
            // Dropped meanwhile, which WAL replay does as well.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(LocalError::reading(&top))?,
        };
        visit(Found::Directory { path: &self.version_dir, mode: metadata.permissions().mode(), metadata: &metadata })?;
        let walk = Walk { root: &space.place, databases: &self.version_dir, data: None, dir_mode, version };
        walk.visit_all(&self.version_dir, visit)
    }

    /// Sends all archives; the data directory's is left open, for what comes after `pg_backup_stop`.
    pub(super) fn send(&self, writer: &mut ChunkWriter) -> Result<(), LocalError> {
        for space in &self.spaces {
            let archive = space.oid.to_string();
            writer.begin_archive(format!("{archive}.tar"), space.location.clone())?;
            self.visit(Some(space), &mut |found| self.send_one(writer, &archive, found))?;
            writer.push_bytes(&[0; 2 * TAR_BLOCK])?;
        }
        writer.begin_archive(format!("{BASE}.tar"), String::new())?;
        self.visit(None, &mut |found| self.send_one(writer, BASE, found))?;
        writer.flush()
    }

    fn send_one(&self, writer: &mut ChunkWriter, archive: &str, found: Found<'_>) -> Result<(), LocalError> {
        match found {
            Found::Directory { path, mode, metadata } => {
                writer.push_bytes(&header(path, HeaderKind::Directory, mode, 0, metadata)?)
            }
            Found::File { path, place, relation, .. } => {
                let Some(file) = open(place)? else { return Ok(()) };
                // Of the file that is open: what lay there before may have gone since the walk saw it.
                let metadata = file.metadata().map_err(LocalError::reading(place))?;
                let size = metadata.len();
                if size >= HINT_BYTES {
                    // A hint only.
                    let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
                }
                writer.push_bytes(&header(path, HeaderKind::File, metadata.mode(), size, &metadata)?)?;
                writer.push_file(SourceFile {
                    path: render_data_path(archive, path),
                    size,
                    modified: metadata.mtime(),
                    place: place.to_owned(),
                    content: Content::Opened(file),
                    first_page: relation.filter(|_| self.checksums).map(|file| self.first_page(file)),
                    is_segment: false,
                })
            }
        }
    }

    fn first_page(&self, file: RelationFile) -> u32 {
        file.segment.saturating_mul(self.pages_per_segment)
    }

    /// What is not read from the data directory as it is found there.
    pub(super) fn send_known(&self, writer: &mut ChunkWriter, path: &str, content: Vec<u8>) -> Result<(), LocalError> {
        let fields = HeaderFields {
            kind: HeaderKind::File,
            mode: self.file_mode,
            user: nix::unistd::geteuid().as_raw(),
            group: nix::unistd::getegid().as_raw(),
            size: content.len() as u64,
            modified: jiff::Timestamp::now().as_second(),
        };
        let name = render_header(path, &fields).ok_or_else(|| LocalError::TooLong(path.to_owned()))?;
        writer.push_bytes(&name)?;
        writer.push_file(SourceFile {
            path: path.to_owned(),
            size: fields.size,
            modified: fields.modified,
            place: self.data.join(path),
            content: Content::Known(content),
            first_page: None,
            is_segment: false,
        })
    }

    /// The control file. Read before the end of the backup: on a standby it says from where on the copy is consistent.
    pub(super) fn read_control(&self) -> Result<Vec<u8>, LocalError> {
        let path = self.data.join(CONTROL_FILE);
        // The server writes it in place, and a write that is under way can be as long as it likes.
        for _ in 0..CONTROL_READS {
            let content = fs::read(&path).map_err(LocalError::reading(&path))?;
            if is_whole_control(&content) {
                return Ok(content);
            }
            std::thread::yield_now();
        }
        Err(LocalError::ControlChanges)
    }
}

const CONTROL_READS: usize = 10_000;
/// `crc`, the last field of `ControlFileData`, begins before this in every version; a sector holds the whole struct.
const CONTROL_STRUCT: usize = 512;
/// Neither does it begin sooner: the struct begins with identifiers, positions and a checkpoint.
const CONTROL_LEAST: usize = 128;

/// Whether the control file is as one write left it. Where its checksum lies differs by version: it is the CRC-32C of all before it.
fn is_whole_control(content: &[u8]) -> bool {
    let fits = |at: usize| {
        let stored = content.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)?;
        Some(crc32c::crc32c(content.get(..at)?) == stored)
    };
    (CONTROL_LEAST..CONTROL_STRUCT).step_by(4).any(|at| fits(at) == Some(true))
}

/// The header of what the file system has.
pub(super) fn header(
    path: &str,
    kind: HeaderKind,
    mode: u32,
    size: u64,
    metadata: &Metadata,
) -> Result<[u8; TAR_BLOCK], LocalError> {
    let fields =
        HeaderFields { kind, mode, user: metadata.uid(), group: metadata.gid(), size, modified: metadata.mtime() };
    render_header(path, &fields).ok_or_else(|| LocalError::TooLong(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_file_is_whole_where_its_checksum_says_so_in_any_versions_layout() {
        for at in [288, 292, 296] {
            let mut content: Vec<u8> = (0..8192).map(|byte| if byte < at { (byte % 251) as u8 } else { 0 }).collect();
            let crc = crc32c::crc32c(&content[..at]);
            content[at..at + 4].copy_from_slice(&crc.to_le_bytes());
            assert!(is_whole_control(&content));
            content[40] ^= 1;
            assert!(!is_whole_control(&content), "the same however often it is read");
        }
        assert!(!is_whole_control(&[0; 8192]) && !is_whole_control(&[1; 200]) && !is_whole_control(&[]));
    }
}
