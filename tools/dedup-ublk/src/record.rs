//! What is remembered of a device beside the kernel: which volume it is of, and how that was opened.
//!
//! One file a device in the runtime directory, `ublk-<id>.json`, with what it takes to serve the device
//! again: the arguments it was added with, the working directory they are relative to, and the pool. The
//! directory outlives the process and need not outlive the machine, as the device does not: a record of
//! another boot counts as none. What the server had acknowledged is kept by the volume.

use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where Linux says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A device and its volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number of the device.
    pub id: u32,
    /// The boot it was made in.
    pub boot: String,
    /// The process that serves it, or did.
    pub pid: u32,
    /// What to call the volume.
    pub volume: String,
    /// The pool; empty for a null device.
    pub pool: String,
    /// Whether a server that dies can be replaced.
    pub recoverable: bool,
    /// What the arguments are relative to.
    pub directory: PathBuf,
    /// The arguments that it was added with.
    pub arguments: Vec<String>,
}

/// Which boot this is; empty if the system does not say.
pub fn this_boot() -> String {
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

impl Record {
    /// Writes it, whole or not at all.
    pub fn save(&self, runtime: &Path) -> io::Result<()> {
        let path = path(runtime, self.id);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(new, path)
    }

    /// The record of device `id`, if there is one of this boot.
    pub fn load(runtime: &Path, id: u32) -> io::Result<Option<Self>> {
        let text = match fs::read(path(runtime, id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let record: Self = serde_json::from_slice(&text)?;
        Ok((record.id == id && record.boot == this_boot()).then_some(record))
    }

    /// Forgets device `id`.
    pub fn remove(runtime: &Path, id: u32) -> io::Result<()> {
        match fs::remove_file(path(runtime, id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn path(runtime: &Path, id: u32) -> PathBuf {
    runtime.join(format!("ublk-{id}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: 3,
            boot: this_boot(),
            pid: 4711,
            volume: "archive".to_owned(),
            pool: "6e1f".to_owned(),
            recoverable: true,
            directory: "/srv".into(),
            arguments: vec!["dedup-ublk".to_owned(), "add".to_owned(), "v".to_owned()],
        }
    }

    #[test]
    fn a_record_is_found_again_under_its_number_and_forgotten_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        record().save(dir.path()).unwrap();
        assert_eq!(Record::load(dir.path(), 3).unwrap(), Some(record()));
        assert_eq!(Record::load(dir.path(), 4).unwrap(), None);
        Record::remove(dir.path(), 3).unwrap();
        Record::remove(dir.path(), 3).unwrap();
        assert_eq!(Record::load(dir.path(), 3).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_of_another_boot_counts_as_none_since_its_device_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        Record { boot: "other".to_owned(), ..record() }.save(dir.path()).unwrap();
        assert_eq!(Record::load(dir.path(), 3).unwrap(), None);
    }

    #[test]
    fn a_record_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(path(dir.path(), 3), "{").unwrap();
        assert!(Record::load(dir.path(), 3).is_err());
    }
}
