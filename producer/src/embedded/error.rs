//! How an operation on the embedded file fails. No text holds a bound value, only SQL and paths.

use std::path::PathBuf;

use rusqlite::{Error, ErrorCode};

/// Why an operation changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DbError {
    /// No room: nothing of the operation was kept. Works again as soon as there is room, of which SQLite's log takes up to some 5 MB before it is
    /// written back to the file.
    #[error("the disk under the embedded queue is full; nothing was changed")]
    Full,
    /// Other processes kept the file locked for longer than the limit.
    #[error("the embedded queue is locked by another process; nothing was changed")]
    Busy,
    /// The file cannot be read or written.
    #[error("the embedded queue cannot be read or written: {0}")]
    Io(String),
    /// The path cannot be opened at all.
    #[error("{} cannot be opened: {detail}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// The file, or what it should hold, is not there, and nothing was made.
    #[error("{} {what}", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What is missing, as the end of a sentence.
        what: &'static str,
    },
    /// The file is not ours and was not touched.
    #[error("{} is not a Postrider file; it was left as it is", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file was made by a newer version.
    #[error("{} has format {found}, this version knows format {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The newest known one.
        known: i64,
    },
    /// A statement was refused, for instance by a constraint.
    #[error("the embedded queue refused a statement: {0}")]
    Sql(String),
    /// The operation panicked and was undone.
    #[error("an operation on the embedded queue panicked and was undone")]
    Panicked,
    /// The thread that owns the file is gone.
    #[error("the embedded queue is closed")]
    Closed,
}

impl DbError {
    /// Whether the same operation may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Full | Self::Busy | Self::Io(_))
    }
}

impl From<Error> for DbError {
    fn from(error: Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::NotADatabase
                | ErrorCode::FileLockingProtocolFailed,
            ) => Self::Io(error.to_string()),
            _ => Self::Sql(error.to_string()),
        }
    }
}
