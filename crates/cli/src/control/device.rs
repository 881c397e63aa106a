//! Which data device a volume is on, as every process of this machine sees it.
//!
//! A volume is known by its device and not by its UUID, since a copy has the same UUID (`cp -r`, a snapshot
//! of a logical volume): who asks for the one must not be told of, or change, the other.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A data device: `file-8-1-4711` by file system and inode, or `block-253-3` by its numbers, through whatever
/// links it was named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceId(String);

impl DeviceId {
    /// That of the file or block device at `path`.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let numbers = |device: u64| {
            let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
            format!("{major}-{minor}")
        };
        Ok(Self(match metadata.file_type().is_block_device() {
            true => format!("block-{}", numbers(metadata.rdev())),
            false => format!("file-{}-{}", numbers(metadata.dev()), metadata.ino()),
        }))
    }

    /// The name of its server's socket.
    pub(super) fn socket_name(&self) -> String {
        format!("{self}.sock")
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_what_it_leads_to_and_a_copy_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("data"), "same").unwrap();
        fs::copy(path("data"), path("copy")).unwrap();
        std::os::unix::fs::symlink("data", path("link")).unwrap();
        let id = |name: &str| DeviceId::of(&path(name)).unwrap();
        assert_eq!(id("link"), id("data"));
        assert_ne!(id("copy"), id("data"));
        assert!(DeviceId::of(&path("nothing")).is_err());
    }
}
