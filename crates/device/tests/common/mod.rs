//! Files to test on: in the build directory, because `/tmp` may be a file system without direct I/O.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not take for tests"
)]

use dedup_device::{DeviceError, FileDevice, IoMode};
use std::path::PathBuf;
use tempfile::TempDir;

/// A directory on the file system that the project is built on, and a path in it.
pub(crate) fn temp_path() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("device");
    (dir, path)
}

/// A new file device. The directory must outlive it.
pub(crate) fn file_device(size: u64, io: IoMode) -> (TempDir, FileDevice) {
    let (dir, path) = temp_path();
    let device = FileDevice::create(path, size, io).unwrap();
    (dir, device)
}

/// A new file device with direct I/O, or a word about why the test proves nothing here.
pub(crate) fn direct_or_skip(size: u64) -> Option<(TempDir, FileDevice)> {
    let (dir, path) = temp_path();
    match FileDevice::create(&path, size, IoMode::Direct) {
        Ok(device) => Some((dir, device)),
        Err(refused @ DeviceError::DirectRefused { .. }) => {
            eprintln!("SKIPPED, direct I/O is not tested: {refused}");
            None
        }
        Err(e) => panic!("{e}"),
    }
}
