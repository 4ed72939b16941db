//! The file itself: readable by its user alone, and never a link to somewhere else.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::error::DbError;

/// Rights of the file, its log and its index: those of its owner.
#[cfg(unix)]
const MODE: u32 = 0o600;
/// The rights of everybody else, which no file keeps.
#[cfg(unix)]
const OTHERS: u32 = 0o007;

/// Makes the file where it is missing, for its user alone whatever the umask says. SQLite gives its log and its index the rights of
/// the file. Refuses a link in the place of any of them.
pub(super) fn prepare(path: &Path) -> Result<(), DbError> {
    let failed = |error: io::Error| DbError::Open { path: path.to_owned(), detail: error.to_string() };
    match make(path) {
        // A link that leads nowhere is there already, too.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    for path in all_of(path) {
        match fs::symlink_metadata(&path) {
            Ok(found) => refuse(&path, found.file_type())?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn refuse(path: &Path, kind: fs::FileType) -> Result<(), DbError> {
    let detail = if kind.is_symlink() {
        "it is a symbolic link; name the file that it points to"
    } else if !kind.is_file() {
        "it is not a regular file; name another path"
    } else {
        return Ok(());
    };
    Err(DbError::Open { path: path.to_owned(), detail: detail.to_owned() })
}

#[cfg(unix)]
fn make(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(MODE))
}

/// Takes the rights of everybody else away from a file of ours that has them. Rights that somebody gave its group stay.
#[cfg(unix)]
pub(super) fn close_to_others(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    for path in all_of(path) {
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        let mode = found.mode() & 0o7777;
        if !found.is_file() || mode & OTHERS == 0 {
            continue;
        }
        match fs::set_permissions(&path, fs::Permissions::from_mode(mode & !OTHERS)) {
            Ok(()) => {
                tracing::info!(file = %path.display(), "Everybody could read this file; now only its owner and group can");
            }
            // Only its owner may; whoever shares it goes on.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                tracing::warn!(file = %path.display(), "Everybody can read this file, which holds mail; its owner should run chmod o-rwx");
            }
            // SQLite removed its log or its index meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The file, its log and its index.
fn all_of(path: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    })
}

#[cfg(not(unix))]
fn make(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create_new(true).open(path).map(drop)
}

#[cfg(not(unix))]
pub(super) fn close_to_others(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// The path with the links and dots of its folder resolved. The file may be missing, its folder may not. The file's own name stays as it is, so that
/// a link is seen.
pub(super) fn canonical(path: &Path) -> Result<PathBuf, DbError> {
    let failed = |detail: String| DbError::Open { path: path.to_owned(), detail };
    let name = path.file_name().ok_or_else(|| failed("the path names no file".to_owned()))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(fs::canonicalize(folder).map_err(|error| failed(format!("its folder: {error}")))?.join(name))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tempfile::TempDir;

    use super::*;
    use crate::embedded::Db;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("the file").permissions().mode() & 0o777
    }

    #[track_caller]
    fn refused(path: &Path, reason: &str) {
        let text = Db::open(path).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(reason), "{text}");
    }

    #[tokio::test]
    async fn only_its_user_can_read_the_file_its_log_and_its_index() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("queue.db");
        let db = Db::open(&path).unwrap();
        db.ensure("CREATE TABLE IF NOT EXISTS one (id INTEGER)").await.unwrap();
        assert_eq!(all_of(&path).map(|path| mode(&path)), [0o600; 3]);
    }

    #[tokio::test]
    async fn a_file_that_everybody_could_read_is_closed_to_them_and_stays_open_to_its_group() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("queue.db");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        let db = Db::open(&path).unwrap();
        db.ensure("CREATE TABLE IF NOT EXISTS one (id INTEGER)").await.unwrap();
        assert_eq!(all_of(&path).map(|path| mode(&path)), [0o660; 3]);
    }

    #[test]
    fn a_link_is_refused_in_the_place_of_the_file_and_of_its_log() {
        let folder = TempDir::new().unwrap();
        let (path, target) = (folder.path().join("queue.db"), folder.path().join("target"));
        symlink(&target, &path).unwrap();
        refused(&path, "is a symbolic link");
        assert!(!target.exists(), "nothing was made behind the link");
        fs::remove_file(&path).unwrap();
        symlink(&target, folder.path().join("queue.db-wal")).unwrap();
        refused(&path, "queue.db-wal cannot be opened: it is a symbolic link");
        refused(folder.path(), "it is not a regular file");
    }

    #[tokio::test]
    async fn a_folder_may_be_reached_by_a_link() {
        let folder = TempDir::new().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        let db = Db::open(link.join("queue.db")).unwrap();
        assert_eq!(db.path(), fs::canonicalize(&real).unwrap().join("queue.db"));
    }
}
