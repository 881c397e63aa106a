//! Which volume is meant: a directory, or two devices by name.
//!
//! ```text
//!   VOLUME/data      -> a file, or a link to a block device          --data-dev PATH
//!   VOLUME/metadata  -> a file, or a link to a block device    or    --metadata-dev PATH
//! ```

use crate::control::DeviceId;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Arguments that name a volume. The parser sees to it that either the directory or both devices are given.
#[derive(clap::Args, Clone, Debug)]
pub struct VolumeArgs {
    /// Directory of the volume; `data` and `metadata` in it are files or links to block devices
    #[arg(
        value_name = "VOLUME",
        required_unless_present_any = ["data_dev", "metadata_dev"],
        conflicts_with_all = ["data_dev", "metadata_dev"],
    )]
    volume: Option<PathBuf>,
    /// File or block device that holds the blocks (instead of VOLUME)
    #[arg(long, value_name = "PATH", requires = "metadata_dev")]
    data_dev: Option<PathBuf>,
    /// File or block device that holds the metadata (instead of VOLUME)
    #[arg(long, value_name = "PATH", requires = "data_dev")]
    metadata_dev: Option<PathBuf>,
}

/// Where a volume's two devices are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumePaths {
    /// The data device.
    pub data: PathBuf,
    /// The metadata device.
    pub metadata: PathBuf,
    /// The directory, if the volume was named by one.
    pub directory: Option<PathBuf>,
    /// What to call the volume in messages: the directory's name, or the data device's.
    pub name: String,
}

/// Why arguments name no volume.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// VOLUME exists and is no directory.
    #[error("{}: expected a directory with `data` and `metadata` in it, found a {found}; name devices with --data-dev and --metadata-dev", .path.display())]
    NotADirectory {
        /// The path given.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// One of the two devices is not there.
    #[error("{}: expected the volume's {role} device, found nothing; is the volume formatted?", .path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// `data` or `metadata`.
        role: &'static str,
    },
    /// Both devices are the same file.
    #[error("{}: expected two devices, found the same one as data and as metadata", .path.display())]
    Same {
        /// The one path.
        path: PathBuf,
    },
    /// Neither a directory nor both devices are named (only if the arguments did not come through the
    /// parser).
    #[error("expected VOLUME, or both --data-dev and --metadata-dev")]
    Unnamed,
}

impl VolumeArgs {
    /// Arguments as if the directory `volume` had been given.
    pub fn directory(volume: impl Into<PathBuf>) -> Self {
        Self { volume: Some(volume.into()), data_dev: None, metadata_dev: None }
    }

    /// Whether no volume is named: only if a tool has told the parser that it can do without.
    pub fn is_empty(&self) -> bool {
        self.volume.is_none() && self.data_dev.is_none() && self.metadata_dev.is_none()
    }

    /// The paths meant. Neither they nor the directory need to exist: see [`VolumePaths::existing`].
    pub fn resolve(&self) -> Result<VolumePaths, VolumeError> {
        let paths = match (&self.volume, &self.data_dev, &self.metadata_dev) {
            (Some(directory), None, None) => {
                not_something_else(directory)?;
                let (data, metadata) = (directory.join("data"), directory.join("metadata"));
                VolumePaths { data, metadata, directory: Some(directory.clone()), name: name(directory) }
            }
            (None, Some(data), Some(metadata)) => VolumePaths {
                data: data.clone(),
                metadata: metadata.clone(),
                directory: None,
                name: name(data),
            },
            _ => return Err(VolumeError::Unnamed),
        };
        // By what they are: one file may have several names, also without links (hard links, mounts).
        let same = match (DeviceId::of(&paths.data), DeviceId::of(&paths.metadata)) {
            (Ok(data), Ok(metadata)) => data == metadata,
            _ => paths.data == paths.metadata,
        };
        if same { Err(VolumeError::Same { path: paths.data }) } else { Ok(paths) }
    }
}

impl VolumePaths {
    /// These paths, if both devices are there: for every tool that does not create them.
    pub fn existing(self) -> Result<Self, VolumeError> {
        for (role, path) in [("data", &self.data), ("metadata", &self.metadata)] {
            // Other failures (permissions) are the opener's to report, with the system's reason.
            if let Ok(false) = path.try_exists() {
                return Err(VolumeError::Missing { path: path.clone(), role });
            }
        }
        Ok(self)
    }
}

/// `Ok` if `path` is a directory or may become one.
fn not_something_else(path: &Path) -> Result<(), VolumeError> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(()) };
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Ok(());
    }
    let found = if kind.is_file() {
        "regular file"
    } else if kind.is_block_device() {
        "block device"
    } else {
        "special file"
    };
    Err(VolumeError::NotADirectory { path: path.to_owned(), found })
}

/// The last component, also of `.` and `some/..`.
fn name(path: &Path) -> String {
    let full = path.file_name().is_none().then(|| fs::canonicalize(path).ok()).flatten();
    let name = full.as_deref().unwrap_or(path).file_name().unwrap_or("volume".as_ref());
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Tool {
        #[command(flatten)]
        volume: VolumeArgs,
    }

    fn resolve(args: &[&str]) -> Result<VolumePaths, String> {
        let tool = Tool::try_parse_from(["tool"].iter().chain(args)).map_err(|error| error.to_string())?;
        tool.volume.resolve().map_err(|error| error.to_string())
    }

    #[test]
    fn a_directory_names_both_devices_and_the_volume() {
        let paths = resolve(&["/srv/none/archive"]).unwrap();
        let expected = VolumePaths {
            data: "/srv/none/archive/data".into(),
            metadata: "/srv/none/archive/metadata".into(),
            directory: Some("/srv/none/archive".into()),
            name: "archive".into(),
        };
        assert_eq!(paths, expected);
    }

    #[test]
    fn two_devices_are_named_after_the_data_device() {
        let paths = resolve(&["--data-dev", "/dev/none1", "--metadata-dev", "/dev/none2"]).unwrap();
        let expected = VolumePaths {
            data: "/dev/none1".into(),
            metadata: "/dev/none2".into(),
            directory: None,
            name: "none1".into(),
        };
        assert_eq!(paths, expected);
    }

    #[test]
    fn the_current_directory_gives_its_name() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(resolve(&["."]).unwrap().name, here.file_name().unwrap().to_string_lossy());
    }

    #[test]
    fn anything_but_one_directory_or_two_devices_is_a_usage_error_that_names_what_is_missing_or_too_much() {
        let cases: [(&[&str], &str); 5] = [
            (&[], "VOLUME"),
            (&["--data-dev", "/a"], "--metadata-dev <PATH>"),
            (&["--metadata-dev", "/a"], "--data-dev <PATH>"),
            (&["v", "--data-dev", "/a", "--metadata-dev", "/b"], "'[VOLUME]' cannot be used with"),
            (&["v", "--metadata-dev", "/b"], "cannot be used with"),
        ];
        for (args, part) in cases {
            let error = resolve(args).unwrap_err();
            assert!(error.contains(part), "{args:?} gave {error}");
        }
    }

    #[test]
    fn a_device_in_place_of_the_directory_is_told_from_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = resolve(&[file.path().to_str().unwrap()]).unwrap_err();
        assert!(error.contains("found a regular file; name devices with --data-dev"), "{error}");
        let error = resolve(&["/dev/null"]).unwrap_err();
        assert!(error.contains("found a special file"), "{error}");
    }

    #[test]
    fn one_file_under_two_names_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("data"), "").unwrap();
        std::os::unix::fs::symlink("data", dir.path().join("metadata")).unwrap();
        let error = VolumeArgs::directory(dir.path()).resolve().unwrap_err();
        assert!(matches!(error, VolumeError::Same { .. }), "{error}");
        assert!(resolve(&["--data-dev", "/none", "--metadata-dev", "/none"]).is_err());
        // A hard link was found "in use by process N", which was this very process.
        fs::remove_file(dir.path().join("metadata")).unwrap();
        fs::hard_link(dir.path().join("data"), dir.path().join("metadata")).unwrap();
        let error = VolumeArgs::directory(dir.path()).resolve().unwrap_err();
        assert!(matches!(error, VolumeError::Same { .. }), "{error}");
    }

    #[test]
    fn a_missing_device_is_named_with_its_role() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("data"), "").unwrap();
        let paths = VolumeArgs::directory(dir.path()).resolve().unwrap();
        let error = paths.clone().existing().unwrap_err();
        assert_eq!(error, VolumeError::Missing { path: dir.path().join("metadata"), role: "metadata" });
        fs::write(dir.path().join("metadata"), "").unwrap();
        assert_eq!(paths.clone().existing(), Ok(paths));
    }
}
