//! Making a volume out of two paths: what `dedup-tool format` and `dedup-nbd --create` share.
//!
//! ```text
//!  open and lock what is there ─> refuse what holds anything (unless forced) ─> rehearse in memory
//!      ─> erase old superblocks, flush ─> lengths, sync ─> dedup_volume::format: label, metadata, superblock last
//! ```
//!
//! Invariants: nothing is changed before everything that can be checked has been, and what was made
//! nevertheless goes again if it fails; killed at any point, it leaves what was there, no volume, or the new
//! one whole.

use crate::{Devices, Io, Size, VolumePaths};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use dedup_device::{BlockDevice, DeviceError, FileDevice, IoMode, MemDevice, OpenMode};
use dedup_meta::Superblock;
use dedup_volume::{DigestAlgorithm, FormatOptions, VolumeError, geometry, refuse_if_in_use};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// The default block size, in bytes: dm-dedup's, and a page.
pub const BLOCK_SIZE: u32 = 4096;
/// Data blocks beyond the logical ones, as a part of them: overwritten blocks are free only after a commit,
/// so a full volume needs room for what is written between two of them.
const SPARE_PART: u64 = 64;
/// The least spare, in bytes.
const SPARE_MIN: u64 = 16 << 20;

/// Parameters of a new volume. Those left away get the defaults that the help names.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct FormatArgs {
    /// Size of the data device, if it is a regular file [default: what it has, or for a new one the logical
    /// size and a spare]
    ///
    /// The spare is 1/64 of the logical size and at least 16M, plus a block for the label: with it, a volume
    /// that is full of unique data can still be overwritten, since a block that is replaced becomes free only
    /// with the next commit. Choose less than the logical size if you expect duplicates; writes fail with "no
    /// space" when the device is full.
    #[arg(long, value_name = "SIZE")]
    pub data_size: Option<Size>,
    /// Size of the metadata device, if it is a regular file [default: what it has, or for a new one what a
    /// full volume needs]
    #[arg(long, value_name = "SIZE")]
    pub metadata_size: Option<Size>,
    /// Bytes in a block, a power of two from 512 to 1M [default: 4K]
    #[arg(long, value_name = "SIZE", value_parser = parse_block_size)]
    pub block_size: Option<u32>,
    /// Digest that finds duplicates; with md5 and sha1 every match is compared byte by byte [default: sha256]
    #[arg(long, value_name = "NAME", value_parser = algorithm_parser())]
    pub crypto_alg: Option<DigestAlgorithm>,
    /// Commit every N block writes; 0: only when the client asks (FLUSH, FUA) [default: 0]
    #[arg(long, value_name = "N")]
    pub flushrq: Option<u32>,
    /// Whether to compare the bytes of every match before it is believed [default: no]
    #[arg(long, value_name = "yes|no", value_parser = yes_no_parser())]
    pub verify_match: Option<bool>,
    /// Overwrite whatever the devices hold, where a volume is made; open one although what its dead server
    /// had acknowledged cannot be had
    #[arg(long)]
    pub force: bool,
}

/// Why no volume could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A device cannot be opened, created or resized.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The parameters do not fit, the devices are in use, or writing failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The system refused something.
    #[error("{}: cannot {operation}: {source}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A block device has the size that it has.
    #[error("{}: {option} {expected} was asked for, but the block device has {found} bytes and is used as a whole: leave the option away", .path.display())]
    FixedSize {
        /// The block device.
        path: PathBuf,
        /// `--data-size` or `--metadata-size`.
        option: &'static str,
        /// Bytes asked for.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A block would be written by rewriting its neighbours.
    #[error("{}: --block-size {block_size} is below the device's physical sector of {sector} bytes, so that a power cut during one write could damage other blocks; use --block-size {sector}, or --force", .path.display())]
    Sector {
        /// The data device.
        path: PathBuf,
        /// Bytes asked for.
        block_size: u32,
        /// Bytes that the medium writes as a whole.
        sector: usize,
    },
}

/// One of the two devices before it is touched.
struct Target<'a> {
    path: &'a Path,
    /// Locked; `None` if there is nothing yet.
    old: Option<FileDevice>,
    /// Bytes that it shall have.
    size: u64,
}

/// Formats the devices of `paths` as one volume of `logical_size` bytes, creating what is missing.
pub fn format(paths: &VolumePaths, logical_size: u64, args: &FormatArgs) -> Result<Superblock, FormatError> {
    let options = options(logical_size, args)?;
    let data = Target::data(paths, args, &options)?;
    let metadata = Target::metadata(paths, args, &options, data.size)?;
    rehearse(data.size, metadata.size, &options)?;
    data.check_sector(&options)?;
    if let Some(old) = &metadata.old {
        dedup_volume::erase(old)?;
    }
    let mut made = Made::default();
    made.directory(paths)?;
    let data = made.device(data)?;
    let metadata: Arc<dyn BlockDevice> = Arc::new(made.device(metadata)?);
    let superblock = dedup_volume::format(&data, &metadata, &options)?;
    made.keep();
    Ok(superblock)
}

/// What was made where nothing was. It goes again when this is dropped, unless it is to stay: who was refused
/// finds all as it was.
#[derive(Debug, Default)]
struct Made {
    files: Vec<PathBuf>,
    directory: Option<PathBuf>,
}

impl Made {
    /// Makes the volume's directory, durably.
    fn directory(&mut self, paths: &VolumePaths) -> Result<(), FormatError> {
        let Some(directory) = paths.directory.as_deref().filter(|directory| !directory.is_dir()) else {
            return Ok(());
        };
        fs::create_dir(directory).map_err(failed(directory, "create the directory"))?;
        self.directory = Some(directory.to_owned());
        let parent = parent(directory);
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed(parent, "sync the directory"))
    }

    /// Makes a device.
    fn device(&mut self, target: Target<'_>) -> Result<FileDevice, FormatError> {
        if target.old.is_none() {
            self.files.push(target.path.to_owned());
        }
        target.make()
    }

    fn keep(mut self) {
        (self.files, self.directory) = (Vec::new(), None);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // What cannot be removed is no volume, and is formatted the next time.
        self.files.iter().for_each(|file| drop(fs::remove_file(file)));
        self.directory.iter().for_each(|directory| drop(fs::remove_dir(directory)));
    }
}

/// Where the path's last component stands.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Formats only the data device, and keeps the metadata in memory. Gives both, ready to be opened as a
/// volume.
pub fn format_in_ram(
    paths: &VolumePaths,
    logical_size: u64,
    args: &FormatArgs,
    io: Option<Io>,
) -> Result<Devices, FormatError> {
    let options = options(logical_size, args)?;
    let data = Target::data(paths, args, &options)?;
    let metadata_size = metadata_size(args, &options, data.size)?;
    rehearse(data.size, metadata_size, &options)?;
    data.check_sector(&options)?;
    let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(metadata_size));
    let mut made = Made::default();
    made.directory(paths)?;
    // The label comes first, so from here on a pool that was on the device is no more.
    dedup_volume::format(&made.device(data)?, &metadata, &options)?;
    made.keep();
    let data = crate::devices::open_data(&paths.data, OpenMode::ReadWrite, io)?;
    Ok(Devices { data: Arc::new(data), metadata })
}

/// Whether neither device holds anything yet: then a volume can be made without loss.
pub fn is_blank(paths: &VolumePaths) -> Result<bool, FormatError> {
    for (path, role) in [(&paths.data, "data"), (&paths.metadata, "metadata")] {
        match Target::examine(path, role, "", None, 0, false) {
            Ok(_) => {}
            Err(FormatError::Volume(VolumeError::InUse { .. })) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// What a new data device gets if nobody says otherwise, in bytes; see [`FormatArgs::data_size`].
pub fn data_size(logical_size: u64, block_size: u32) -> u64 {
    let block = u64::from(block_size);
    let spare = (logical_size / SPARE_PART).max(SPARE_MIN).next_multiple_of(block);
    logical_size.saturating_add(spare).saturating_add(block)
}

impl<'a> Target<'a> {
    fn data(paths: &'a VolumePaths, args: &FormatArgs, options: &FormatOptions) -> Result<Self, FormatError> {
        let default = data_size(options.logical_size, options.block_size);
        Self::examine(&paths.data, "data", "--data-size", args.data_size, default, args.force)
    }

    fn metadata(
        paths: &'a VolumePaths,
        args: &FormatArgs,
        options: &FormatOptions,
        data_size: u64,
    ) -> Result<Self, FormatError> {
        let needed = metadata_size(&FormatArgs::default(), options, data_size)?;
        let asked = args.metadata_size;
        let target =
            Self::examine(&paths.metadata, "metadata", "--metadata-size", asked, needed, args.force)?;
        if target.size < needed {
            tracing::warn!(
                "the metadata device has {} and a full volume may need {}: writes can fail before the data device is full",
                crate::human(target.size),
                crate::human(needed)
            );
        }
        Ok(target)
    }

    /// Opens what is there, and refuses it if it holds anything.
    fn examine(
        path: &'a Path,
        role: &'static str,
        option: &'static str,
        asked: Option<Size>,
        default: u64,
        force: bool,
    ) -> Result<Self, FormatError> {
        if !path.try_exists().map_err(failed(path, "examine"))? {
            return Ok(Self { path, old: None, size: asked.map_or(default, |size| size.0) });
        }
        let is_block_device =
            fs::metadata(path).map_err(failed(path, "examine"))?.file_type().is_block_device();
        let old = FileDevice::open(path, OpenMode::ReadWrite, IoMode::Buffered)?;
        let found = old.size();
        if !force {
            refuse_if_in_use(&old, role)?;
            refuse_odd_tail(&old, role)?;
        }
        let size = match asked {
            Some(Size(expected)) if is_block_device && expected != found => {
                return Err(FormatError::FixedSize { path: path.to_owned(), option, expected, found });
            }
            Some(size) => size.0,
            None if found == 0 => default,
            None => found,
        };
        Ok(Self { path, old: Some(old), size })
    }

    fn check_sector(&self, options: &FormatOptions) -> Result<(), FormatError> {
        let sector = match &self.old {
            Some(old) => old.physical_sector(),
            None => {
                // The directory may be to be made too.
                let above = self.path.ancestors().skip(1).map(|path| match path.as_os_str().is_empty() {
                    true => Path::new("."),
                    false => path,
                });
                let directory = above.into_iter().find(|path| path.is_dir()).unwrap_or(Path::new("."));
                FileDevice::physical_sector_in(directory).map_err(failed(directory, "examine"))?
            }
        };
        let block_size = options.block_size;
        if (block_size as usize) < sector && !options.force {
            return Err(FormatError::Sector { path: self.path.to_owned(), block_size, sector });
        }
        Ok(())
    }

    /// Sets the length, durably, and opens the device for formatting.
    ///
    /// The lock is gone for a moment, because a device's size is fixed while it is open; if somebody else
    /// makes a volume there meanwhile, formatting finds and refuses it.
    fn make(self) -> Result<FileDevice, FormatError> {
        let found = self.old.as_ref().map_or(0, |old| old.size());
        drop(self.old);
        if self.size < found {
            let file = File::options().write(true).open(self.path).map_err(failed(self.path, "open"))?;
            file.set_len(self.size).map_err(failed(self.path, "cut"))?;
        }
        Ok(FileDevice::create(self.path, self.size, IoMode::Buffered)?)
    }
}

/// The parser of digest names.
pub fn algorithm_parser() -> impl TypedValueParser<Value = DigestAlgorithm> {
    PossibleValuesParser::new(DigestAlgorithm::ALL.map(DigestAlgorithm::name))
        .try_map(|name| name.parse::<DigestAlgorithm>())
}

/// The parser of `yes` and `no`.
pub fn yes_no_parser() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new(["yes", "no"]).map(|answer| answer == "yes")
}

/// A block size on a command line.
fn parse_block_size(text: &str) -> Result<u32, String> {
    let size: Size = text.parse().map_err(|error: crate::SizeError| error.to_string())?;
    // What does not fit is too large in any case.
    let size = u32::try_from(size.0).unwrap_or(u32::MAX);
    geometry::check_block_size(size).map_err(|error| error.to_string())?;
    Ok(size)
}

fn options(logical_size: u64, args: &FormatArgs) -> Result<FormatOptions, FormatError> {
    let defaults = FormatOptions::new(logical_size, Uuid::new_v4(), Uuid::new_v4());
    let options = FormatOptions {
        block_size: args.block_size.unwrap_or(BLOCK_SIZE),
        algorithm: args.crypto_alg.unwrap_or(defaults.algorithm),
        flushrq: args.flushrq.unwrap_or(defaults.flushrq),
        verify_match: args.verify_match.unwrap_or(defaults.verify_match),
        force: args.force,
        ..defaults
    };
    geometry::check_block_size(options.block_size)?;
    geometry::logical_blocks(options.logical_size, options.block_size)?;
    if let Some(Size(size)) = args.data_size {
        geometry::check_data_size(size, options.block_size)?;
    }
    Ok(options)
}

fn metadata_size(args: &FormatArgs, options: &FormatOptions, data_size: u64) -> Result<u64, FormatError> {
    let logical_blocks = geometry::logical_blocks(options.logical_size, options.block_size)?;
    let data_blocks = data_size / u64::from(options.block_size);
    Ok(args.metadata_size.map_or_else(|| geometry::metadata_size(logical_blocks, data_blocks), |size| size.0))
}

/// Formats memory of the same sizes: whatever does not fit is said before anything is touched.
fn rehearse(data_size: u64, metadata_size: u64, options: &FormatOptions) -> Result<(), FormatError> {
    let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(metadata_size));
    dedup_volume::format(&MemDevice::new(data_size), &metadata, options)?;
    Ok(())
}

/// The bytes behind the last whole 4 KiB, which the search for signatures leaves out.
fn refuse_odd_tail(device: &FileDevice, role: &'static str) -> Result<(), FormatError> {
    let mut tail = vec![0; (device.size() % 4096) as usize];
    let offset = device.size() - tail.len() as u64;
    device.read(offset, &mut tail).map_err(failed(device.path(), "read"))?;
    if tail.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    Err(VolumeError::InUse { device: role, found: "data of an unknown kind".to_owned() }.into())
}

fn failed(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> FormatError {
    let path = path.to_owned();
    move |source| FormatError::Io { path, operation, source }
}

#[cfg(test)]
mod tests;
