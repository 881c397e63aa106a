//! A volume's two devices, opened and locked as its tools want them.
//!
//! ```text
//!   data      --io direct or buffered; by default direct, if the file system and the volume's block size allow it
//!   metadata  direct, if the file system allows it
//! ```
//!
//! Opening takes the locks: exclusive for writing, shared for reading. Not here: whether the two belong
//! together and what is on them; that is for `dedup_volume` to say.

use crate::VolumePaths;
use dedup_device::{BlockDevice, DeviceError, FileDevice, IoMode, MemDevice, OpenMode};
use dedup_volume::Label;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

/// How the data device is used where `--io` does not say: a page cache below a volume that caches nothing of
/// its own data keeps what the client's own cache has already, and writes it when it likes.
const IO_DEFAULT: Io = Io::Direct;
/// Bytes read for a peek at the label.
const LABEL_BYTES: usize = 4096;

/// How the data device is read and written: the `--io` option.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// Around the page cache
    Direct,
    /// Through the page cache
    Buffered,
}

impl From<Io> for IoMode {
    fn from(io: Io) -> Self {
        match io {
            Io::Direct => Self::Direct,
            Io::Buffered => Self::Buffered,
        }
    }
}

/// The two devices of a volume, locked as long as they live.
#[derive(Clone, Debug)]
pub struct Devices {
    /// Holds the label and the blocks.
    pub data: Arc<dyn BlockDevice>,
    /// Holds everything else.
    pub metadata: Arc<dyn BlockDevice>,
}

impl Devices {
    /// Opens both. `io` is for the data device; `None` leaves the choice to the file system and the volume's
    /// block size.
    ///
    /// # Errors
    /// Those of [`FileDevice::open`]; a lock that another process holds names that process.
    pub fn open(paths: &VolumePaths, mode: OpenMode, io: Option<Io>) -> Result<Self, DeviceError> {
        let data = open_data(&paths.data, mode, io)?;
        Ok(Self { data: Arc::new(data), metadata: Arc::new(open_metadata(&paths.metadata, mode)?) })
    }
}

/// Opens a data device.
pub(crate) fn open_data(path: &Path, mode: OpenMode, io: Option<Io>) -> Result<FileDevice, DeviceError> {
    if let Some(io) = io {
        return FileDevice::open(path, mode, io.into());
    }
    let device = match FileDevice::open(path, mode, IO_DEFAULT.into()) {
        Err(DeviceError::DirectRefused { .. }) => {
            tracing::info!("{}: no direct I/O on this file system, using buffered I/O", path.display());
            return FileDevice::open(path, mode, IoMode::Buffered);
        }
        result => result?,
    };
    let alignment = device.io_alignment();
    match Label::read(&device) {
        Ok(label) if !(label.block_size as usize).is_multiple_of(alignment) => {
            tracing::info!(
                "{}: direct I/O needs multiples of {alignment} bytes and the blocks have {}, using buffered I/O",
                path.display(),
                label.block_size
            );
            // Two openings of one process conflict like any others.
            drop(device);
            FileDevice::open(path, mode, IoMode::Buffered)
        }
        // Whether a missing label is an error is for the caller to say.
        _ => Ok(device),
    }
}

fn open_metadata(path: &Path, mode: OpenMode) -> Result<FileDevice, DeviceError> {
    match FileDevice::open(path, mode, IoMode::Direct) {
        Err(DeviceError::DirectRefused { .. }) => FileDevice::open(path, mode, IoMode::Buffered),
        result => result,
    }
}

/// The label of a data device, read without taking a lock: to find the process that has it open. `None` if
/// there is no valid one.
pub fn peek_label(data: &Path) -> io::Result<Option<Label>> {
    // Opening a FIFO would wait for its other end.
    let kind = std::fs::metadata(data)?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(LABEL_BYTES);
    File::open(data)?.take(LABEL_BYTES as u64).read_to_end(&mut bytes)?;
    let device = MemDevice::new(LABEL_BYTES as u64);
    device.write(0, &bytes)?;
    Ok(Label::read(&device).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VolumeArgs;
    use uuid::Uuid;

    fn volume(block_size: u32) -> (tempfile::TempDir, VolumePaths, Label) {
        let dir = tempfile::tempdir().unwrap();
        let paths = VolumeArgs::directory(dir.path()).resolve().unwrap();
        let label = Label {
            pool: Uuid::from_u128(7),
            data_device: Uuid::from_u128(8),
            size: 1 << 20,
            block_size,
            identity: None,
        };
        label.write(&FileDevice::create(&paths.data, 1 << 20, IoMode::Buffered).unwrap()).unwrap();
        drop(FileDevice::create(&paths.metadata, 1 << 20, IoMode::Buffered).unwrap());
        (dir, paths, label)
    }

    #[test]
    fn a_label_can_be_read_while_its_device_is_locked() {
        let (_dir, paths, label) = volume(4096);
        let devices = Devices::open(&paths, OpenMode::ReadWrite, None).unwrap();
        assert!(matches!(
            Devices::open(&paths, OpenMode::ReadOnly, None),
            Err(DeviceError::Locked { owner, .. }) if owner.contains(&std::process::id().to_string())
        ));
        assert_eq!(peek_label(&paths.data).unwrap(), Some(label));
        assert_eq!(peek_label(&paths.metadata).unwrap(), None);
        drop(devices);
    }

    #[test]
    fn the_default_is_such_that_a_block_can_be_written_alone() {
        for block_size in [512, 4096] {
            let (_dir, paths, label) = volume(block_size);
            let data = open_data(&paths.data, OpenMode::ReadWrite, None).unwrap();
            assert!((label.block_size as usize).is_multiple_of(data.io_alignment()));
        }
    }

    #[test]
    fn looking_for_a_label_does_not_wait_for_a_pipe_and_takes_a_short_file() {
        let dir = tempfile::tempdir().unwrap();
        let short = dir.path().join("short");
        std::fs::write(&short, "short").unwrap();
        assert_eq!(peek_label(&short).unwrap(), None);
        assert_eq!(peek_label(Path::new("/dev/null")).unwrap(), None);
        assert!(peek_label(&dir.path().join("none")).is_err());
    }
}
