//! What only files do: creating, locking, alignment, bypassing the page cache.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not take for tests")]

mod common;

use common::{direct_or_skip, file_device, temp_path};
use dedup_device::{BlockDevice, DeviceError, FileDevice, IoMode, OpenMode, WriteOp};
use rustix::fs::{FallocateFlags, fallocate};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

#[test]
fn a_created_file_is_sparse_and_has_its_size() {
    let (dir, device) = file_device(1 << 30, IoMode::Buffered);
    assert_eq!(device.size(), 1 << 30);
    let metadata = std::fs::metadata(dir.path().join("device")).unwrap();
    assert_eq!(metadata.len(), 1 << 30);
    assert!(metadata.blocks() * 512 < 1 << 20);
}

#[test]
fn creating_extends_a_file_and_never_cuts_one() {
    let (_dir, path) = temp_path();
    std::fs::write(&path, [5; 8192]).unwrap();
    match FileDevice::create(&path, 4096, IoMode::Buffered) {
        Err(DeviceError::WouldShrink { expected: 4096, found: 8192, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::read(&path).unwrap(), [5; 8192]);
    let device = FileDevice::create(&path, 16384, IoMode::Buffered).unwrap();
    let mut bytes = [9; 16384];
    device.read(0, &mut bytes).unwrap();
    assert!(bytes[..8192].iter().all(|b| *b == 5) && bytes[8192..].iter().all(|b| *b == 0));
}

#[test]
fn what_was_flushed_is_there_when_the_file_is_opened_again() {
    for io in [IoMode::Buffered, IoMode::Direct] {
        let (_dir, path) = temp_path();
        let device = match FileDevice::create(&path, 1 << 20, io) {
            Err(DeviceError::DirectRefused { .. }) => continue,
            created => created.unwrap(),
        };
        device.write(4096, &[3; 4096]).unwrap();
        device.flush().unwrap();
        drop(device);
        let device = FileDevice::open(&path, OpenMode::ReadOnly, io).unwrap();
        let mut bytes = [0; 4096];
        device.read(4096, &mut bytes).unwrap();
        assert_eq!(bytes, [3; 4096]);
    }
}

/// What simulated disks cannot show: that a flush of real files reaches the kernel, and that what the kernel
/// says of it arrives. The test runs itself again under `strace`, which lets the second `fdatasync` fail.
#[test]
fn a_flush_is_one_fdatasync_and_its_error_arrives_and_is_not_retried() {
    const TRACED: &str = "DEDUP_TEST_TRACED";
    if std::env::var_os(TRACED).is_some() {
        let (_dir, device) = file_device(1 << 20, IoMode::Buffered);
        device.write(0, &[1; 4096]).unwrap();
        device.flush().unwrap();
        let error = device.flush().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
        device.flush().unwrap();
        return;
    }
    let (_dir, calls) = temp_path();
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=2", "-o"])
        .arg(&calls)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "a_flush_is_one_fdatasync_and_its_error_arrives_and_is_not_retried"])
        .env(TRACED, "1")
        .output();
    let traced = match traced {
        Ok(traced) if !String::from_utf8_lossy(&traced.stderr).contains("PTRACE") => traced,
        _ => {
            return eprintln!(
                "SKIPPED, flushes are not traced: there is no strace here, or it may not trace"
            );
        }
    };
    let told = String::from_utf8_lossy(&traced.stdout);
    assert!(traced.status.success() && told.contains("1 passed"), "{told}");
    let calls = std::fs::read_to_string(calls).unwrap();
    let answers: Vec<bool> = calls.lines().map(|call| call.contains("= 0")).collect();
    assert_eq!(answers, [true, false, true], "{calls}");
}

#[test]
fn a_read_only_device_refuses_to_change() {
    let (_dir, path) = temp_path();
    std::fs::write(&path, [5; 8192]).unwrap();
    let device = FileDevice::open(&path, OpenMode::ReadOnly, IoMode::Buffered).unwrap();
    assert_eq!(device.write(0, &[1; 512]).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(device.discard(0, 4096).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(std::fs::read(&path).unwrap(), [5; 8192]);
}

#[test]
fn writers_exclude_everyone_and_readers_only_writers() {
    let (_dir, path) = temp_path();
    let open = |mode| FileDevice::open(&path, mode, IoMode::Buffered);
    let writer = FileDevice::create(&path, 4096, IoMode::Buffered).unwrap();
    assert!(matches!(open(OpenMode::ReadWrite), Err(DeviceError::Locked { .. })));
    assert!(matches!(open(OpenMode::ReadOnly), Err(DeviceError::Locked { .. })));
    let shrunk = FileDevice::create(&path, 8192, IoMode::Buffered);
    assert!(matches!(shrunk, Err(DeviceError::Locked { .. })));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096, "a locked file was extended");
    drop(writer);
    let (one, two) = (open(OpenMode::ReadOnly).unwrap(), open(OpenMode::ReadOnly).unwrap());
    assert!(matches!(open(OpenMode::ReadWrite), Err(DeviceError::Locked { .. })));
    drop((one, two));
    open(OpenMode::ReadWrite).unwrap();
}

/// A server that was killed with I/O under way held its locks for a moment longer, until the kernel had
/// closed its io_uring, and the next one was refused: "in use by unknown process". Here the holder in the
/// lock table is a program that has ended, and its lock lives on in a descriptor that it shares.
#[test]
fn a_lock_whose_holder_is_dead_is_waited_for() {
    let (_dir, path) = temp_path();
    std::fs::write(&path, [5; 4096]).unwrap();
    let mut shell = std::process::Command::new("sh")
        .args(["-c", "exec 9<>\"$0\"; flock -x 9; echo locked; sleep 0.3"])
        .arg(&path)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 6];
    std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut said).unwrap();
    assert_eq!(&said, b"locked");
    FileDevice::open(&path, OpenMode::ReadWrite, IoMode::Buffered).unwrap();
    shell.wait().unwrap();
}

#[test]
fn a_refused_opening_names_the_process_that_has_the_device() {
    let (_dir, path) = temp_path();
    let _writer = FileDevice::create(&path, 4096, IoMode::Buffered).unwrap();
    let refused = FileDevice::open(&path, OpenMode::ReadOnly, IoMode::Buffered).unwrap_err().to_string();
    let command = std::fs::read_to_string(format!("/proc/{}/comm", std::process::id())).unwrap();
    let owner = format!("process {} ({})", std::process::id(), command.trim());
    assert!(refused.contains(&owner), "{refused}");
}

#[test]
fn a_device_is_a_file_or_a_block_device() {
    let (dir, path) = temp_path();
    let open = |path| FileDevice::open(path, OpenMode::ReadOnly, IoMode::Buffered);
    assert!(matches!(open(dir.path()), Err(DeviceError::WrongType { found: "a directory", .. })));
    let null = open(std::path::Path::new("/dev/null"));
    assert!(matches!(null, Err(DeviceError::WrongType { found: "a character device", .. })));
    // To open this one would be to wait for whoever writes to it.
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert!(matches!(open(&fifo), Err(DeviceError::WrongType { found: "a FIFO", .. })));
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(matches!(open(&socket), Err(DeviceError::WrongType { found: "a socket", .. })));
    assert!(matches!(open(&path), Err(DeviceError::Io { .. })));
}

#[test]
fn direct_io_leaves_an_odd_tail_alone() {
    let Some((_dir, device)) = direct_or_skip((1 << 20) + 100) else { return };
    assert_eq!(device.size(), 1 << 20);
    assert!(device.io_alignment() >= 512);
}

#[test]
fn a_physical_sector_is_a_power_of_two_of_at_least_512() {
    let (_dir, device) = file_device(4096, IoMode::Buffered);
    assert!(device.physical_sector() >= 512 && device.physical_sector().is_power_of_two());
}

#[test]
fn a_bypassed_cache_still_shows_what_was_written() {
    let (_dir, device) = file_device(10_000, IoMode::Buffered);
    device.write(9_000, &[1; 1000]).unwrap();
    if !device.bypass_cache().unwrap() {
        eprintln!("SKIPPED, bypassing the cache is not tested: the file system refuses direct I/O");
        return;
    }
    let mut bytes = [0; 1000];
    device.read(9_000, &mut bytes).unwrap();
    assert_eq!(bytes, [1; 1000]);
    device.write(9_500, &[2; 500]).unwrap();
    device.read(9_000, &mut bytes).unwrap();
    assert!(bytes[..500] == [1; 500] && bytes[500..] == [2; 500]);
}

#[test]
fn a_file_that_was_cut_behind_our_back_fails_reads_instead_of_inventing_bytes() {
    let (dir, device) = file_device(10_000, IoMode::Buffered);
    let cut =
        |len| std::fs::File::options().write(true).open(dir.path().join("device")).unwrap().set_len(len);
    let read = || device.read(8192 + 100, &mut [0; 400]).unwrap_err().kind();
    cut(8192 + 450).unwrap();
    assert_eq!(read(), std::io::ErrorKind::UnexpectedEof);
    if device.bypass_cache().unwrap() {
        assert_eq!(read(), std::io::ErrorKind::UnexpectedEof);
    }
}

/// Whether the file system can give space back at all.
fn punches_holes() -> bool {
    let (_dir, path) = temp_path();
    std::fs::write(&path, [1; 8192]).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096).is_ok()
}

#[test]
fn preallocated_space_is_taken_and_no_byte_changes() {
    for device in [Some(file_device(8 << 20, IoMode::Buffered)), direct_or_skip(8 << 20)] {
        let Some((dir, device)) = device else { continue };
        device.write(1 << 20, &vec![7; 1 << 20]).unwrap();
        device.flush().unwrap();
        device.preallocate(0, 4 << 20).unwrap();
        let metadata = std::fs::metadata(dir.path().join("device")).unwrap();
        if punches_holes() {
            assert!(metadata.blocks() * 512 >= 4 << 20, "{} bytes used", metadata.blocks() * 512);
        }
        assert_eq!(metadata.len(), 8 << 20);
        let mut found = vec![1; 8 << 20];
        device.read(0, &mut found).unwrap();
        assert!(
            found
                .iter()
                .enumerate()
                .all(|(i, byte)| *byte == if (1 << 20..2 << 20).contains(&i) { 7 } else { 0 })
        );
        device.preallocate(8 << 20, 512).unwrap_err();
    }
}

#[test]
fn a_file_tells_what_of_it_has_space_and_how_much_room_there_is_for_more() {
    for device in [Some(file_device(8 << 20, IoMode::Buffered)), direct_or_skip(8 << 20)] {
        let Some((_dir, device)) = device else { continue };
        for at in [1 << 20, 5 << 20] {
            device.write(at, &vec![7; 1 << 20]).unwrap();
        }
        device.flush().unwrap();
        assert!(device.room_below().unwrap() > 0);
        if !punches_holes() {
            continue;
        }
        assert_eq!(device.allocated(0..8 << 20).unwrap(), Some(1 << 20..2 << 20));
        assert_eq!(device.allocated((1 << 20) + 4096..3 << 20).unwrap(), Some((1 << 20) + 4096..2 << 20));
        assert_eq!(device.allocated(2 << 20..8 << 20).unwrap(), Some(5 << 20..6 << 20));
        assert_eq!(device.allocated(2 << 20..5 << 20).unwrap(), None);
        assert_eq!(device.allocated(6 << 20..8 << 20).unwrap(), None, "behind the last data");
        assert_eq!(device.allocated(5 << 20..(5 << 20) + 4096).unwrap(), Some(5 << 20..(5 << 20) + 4096));
    }
}

#[test]
fn reserved_space_is_written_and_so_no_hole() {
    let (dir, device) = file_device(8 << 20, IoMode::Buffered);
    device.reserve(1 << 20, (2 << 20) + 4096).unwrap();
    device.flush().unwrap();
    let used_bytes = std::fs::metadata(dir.path().join("device")).unwrap().blocks() * 512;
    assert!(((2 << 20) + 4096..4 << 20).contains(&used_bytes), "{used_bytes} bytes used");
    device.reserve(7 << 20, 2 << 20).unwrap_err();
}

#[test]
fn a_discard_gives_the_space_back() {
    if !punches_holes() {
        eprintln!("SKIPPED, discard is not tested: the file system does not punch holes");
        return;
    }
    for device in [Some(file_device(4 << 20, IoMode::Buffered)), direct_or_skip(4 << 20)] {
        let Some((dir, device)) = device else { continue };
        let used_bytes = || std::fs::metadata(dir.path().join("device")).unwrap().blocks() * 512;
        device.write(0, &vec![1; 4 << 20]).unwrap();
        device.flush().unwrap();
        device.discard(0, 3 << 20).unwrap();
        assert!(used_bytes() < 2 << 20, "{} bytes used", used_bytes());
        assert_eq!(device.size(), 4 << 20);
    }
}

#[test]
#[ignore = "overwrites the block device that DEDUP_TEST_BLOCK_DEVICE names (8 MiB or more)"]
fn a_block_device_is_a_device() {
    let path = std::env::var_os("DEDUP_TEST_BLOCK_DEVICE").unwrap();
    for io in [IoMode::Direct, IoMode::Buffered] {
        let device = FileDevice::create(&path, 8 << 20, io).unwrap();
        assert!(device.size() >= 8 << 20 && device.physical_sector() >= 512);
        let pages: Vec<_> = (1..=100_u8).map(|fill| [fill; 4096]).collect();
        let mut writes: Vec<_> = (0..).zip(&pages).map(|(n, p)| WriteOp::new(n * 8192, vec![p])).collect();
        device.write_batch(&mut writes);
        writes.into_iter().for_each(|op| op.result.unwrap());
        device.flush().unwrap();
        device.discard(0, 8192).unwrap();
        assert!(device.bypass_cache().unwrap());
        let mut page = [0; 4096];
        device.read(99 * 8192, &mut page).unwrap();
        assert_eq!(page, [100; 4096]);
        let second = FileDevice::open(&path, OpenMode::ReadWrite, io).unwrap_err();
        assert!(matches!(second, DeviceError::Locked { .. }), "{second}");
        drop(device);
        let larger = FileDevice::create(&path, 1 << 50, io);
        assert!(matches!(larger, Err(DeviceError::TooSmall { .. })), "{larger:?}");
    }
}
