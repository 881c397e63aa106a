//! Formatting by path: what is made, what is refused, and what an old volume survives.

use super::*;
use crate::VolumeArgs;

fn paths() -> (tempfile::TempDir, VolumePaths) {
    let dir = tempfile::tempdir().unwrap();
    let paths = VolumeArgs::directory(dir.path().join("v")).resolve().unwrap();
    (dir, paths)
}

fn forced() -> FormatArgs {
    FormatArgs { force: true, ..FormatArgs::default() }
}

#[test]
fn missing_files_and_the_directory_are_made_sparse_and_of_the_computed_sizes() {
    let (_dir, paths) = paths();
    let superblock = format(&paths, 1 << 30, &FormatArgs::default()).unwrap();
    let (data, metadata) = (fs::metadata(&paths.data).unwrap(), fs::metadata(&paths.metadata).unwrap());
    assert_eq!(data.len(), (1 << 30) + (16 << 20) + 4096);
    assert_eq!(metadata.len(), superblock.layout.metadata_blocks * 4096);
    let stored = std::os::unix::fs::MetadataExt::blocks(&data) * 512;
    assert!(stored < 1 << 20, "{stored} bytes are no sparse file");
}

#[test]
fn the_spare_is_a_64th_and_at_least_16_mib() {
    assert_eq!(data_size(64 << 30, 4096), (65 << 30) + 4096);
    assert_eq!(data_size(1 << 20, 1 << 20), (1 << 20) + (16 << 20) + (1 << 20));
}

#[test]
fn without_force_nothing_that_holds_anything_is_touched() {
    let (_dir, paths) = paths();
    fs::create_dir(paths.directory.as_ref().unwrap()).unwrap();
    for path in [&paths.data, &paths.metadata] {
        fs::write(path, "short but precious").unwrap();
        let error = format(&paths, 1 << 30, &FormatArgs::default()).unwrap_err();
        assert!(error.to_string().contains("use --force"), "{error}");
        assert_eq!(fs::read(path).unwrap(), b"short but precious");
        assert!(!is_blank(&paths).unwrap());
        fs::write(path, "").unwrap();
    }
    assert!(is_blank(&paths).unwrap());
    format(&paths, 1 << 30, &FormatArgs::default()).unwrap();
    assert!(!is_blank(&paths).unwrap());
}

#[test]
fn parameters_that_do_not_fit_leave_an_old_volume_alone_even_with_force() {
    let (_dir, paths) = paths();
    let old = format(&paths, 1 << 30, &FormatArgs::default()).unwrap();
    let before = fs::read(&paths.metadata).unwrap();
    let small = FormatArgs { metadata_size: Some(Size(1 << 20)), ..forced() };
    let error = format(&paths, 1 << 30, &small).unwrap_err().to_string();
    assert!(error.contains("metadata device is too small"), "{error}");
    let small = FormatArgs { data_size: Some(Size(4096)), ..forced() };
    let error = format(&paths, 1 << 30, &small).unwrap_err().to_string();
    assert!(error.contains("data device is too small"), "{error}");
    assert!(format(&paths, 1000, &forced()).unwrap_err().to_string().contains("logical size"));
    assert!(fs::read(&paths.metadata).unwrap() == before);
    let data = MemDevice::new(4096);
    data.write(0, &fs::read(&paths.data).unwrap()[..4096]).unwrap();
    assert_eq!(dedup_volume::Label::read(&data).unwrap().pool, old.pool);
}

#[test]
fn an_old_volume_is_gone_after_a_forced_format_of_any_size() {
    for (data, metadata) in [(None, None), (Some(64 << 20), Some(8 << 20)), (Some(4 << 30), Some(512 << 20))]
    {
        let (_dir, paths) = paths();
        let old = format(&paths, 1 << 30, &FormatArgs::default()).unwrap();
        let sizes = FormatArgs { data_size: data.map(Size), metadata_size: metadata.map(Size), ..forced() };
        let new = format(&paths, 2 << 30, &sizes).unwrap();
        let devices = Devices::open(&paths, OpenMode::ReadOnly, None).unwrap();
        let survey = dedup_meta::load_superblocks(&*devices.metadata);
        assert!(survey.newest(Some(old.pool)).is_err());
        assert_eq!(survey.newest(None).unwrap().pool, new.pool);
        assert!(data.is_none_or(|size| devices.data.size() == size));
        assert!(metadata.is_none_or(|size| devices.metadata.size() == size));
        // Nor does one come back from where the copies at the old end stood.
        let content = fs::read(&paths.metadata).unwrap();
        assert!(!content.windows(16).any(|bytes| bytes == old.pool.as_bytes().as_slice()));
    }
}

#[test]
fn a_format_in_ram_makes_no_metadata_file_and_refuses_the_data_device_of_a_pool() {
    let (_dir, paths) = paths();
    let devices = format_in_ram(&paths, 1 << 30, &FormatArgs::default(), None).unwrap();
    assert!(!paths.metadata.exists());
    drop(devices);
    let error = format_in_ram(&paths, 1 << 30, &FormatArgs::default(), None).unwrap_err();
    assert!(error.to_string().contains("the data label of a deduplicated volume"), "{error}");
    format_in_ram(&paths, 1 << 30, &forced(), None).unwrap();
}

#[test]
fn block_sizes_are_checked_while_parsing() {
    assert_eq!(parse_block_size("4K"), Ok(4096));
    for bad in ["5000", "256", "2M", "8G", "x"] {
        assert!(parse_block_size(bad).is_err(), "{bad}");
    }
    assert!(parse_block_size("5000").unwrap_err().contains("a power of two from 512 to 1048576 bytes"));
}

/// A directory and an empty file stayed behind a format that was refused.
#[test]
fn a_format_that_is_refused_leaves_nothing_behind() {
    let (dir, paths) = paths();
    let small = FormatArgs { metadata_size: Some(Size(1 << 20)), ..FormatArgs::default() };
    format(&paths, 1 << 30, &small).unwrap_err();
    let odd = FormatArgs { block_size: Some(512), data_size: Some(Size(1 << 62)), ..FormatArgs::default() };
    let error = format(&paths, 1 << 30, &odd).unwrap_err().to_string();
    assert!(error.contains("data size: expected fewer than 2^48 blocks"), "{error}");
    // More than a file can be long: nothing finds that before the file is made.
    let huge =
        FormatArgs { block_size: Some(1 << 20), data_size: Some(Size(1 << 63)), ..FormatArgs::default() };
    let metadata = FormatArgs { metadata_size: Some(Size(64 << 20)), ..huge };
    format(&paths, 1 << 30, &metadata).unwrap_err();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    format(&paths, 1 << 30, &FormatArgs::default()).unwrap();
}

/// `format` refused a file of the right length that cannot be resized.
#[test]
fn a_file_of_the_right_length_is_not_resized() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    fs::write(&path, [0; 4096]).unwrap();
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    drop(FileDevice::create(&path, 4096, IoMode::Buffered).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before, "its length was set again");
}
