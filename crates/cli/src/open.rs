//! From the command line of a server to an open volume: what is there, a new one, or one in memory.
//!
//! ```text
//!   --mdbackend inram ──────────────────────────> format data, metadata in memory ─┐
//!   --reconstruct no ───> refuse what holds data ──> format ─┐                     ├─> Volume::open
//!   --create, both blank ──────────────────────────> format ─┴─> open the devices ─┘
//! ```
//!
//! Every front end takes the same options and means the same by them. Not here: how the volume is served
//! (`serve`).

use crate::format::{FormatError, format, format_in_ram, is_blank, yes_no_parser};
use crate::serve::Control;
use crate::{Devices, FormatArgs, Io, Size, VolumeError as PathsError, VolumePaths, human, journal_options};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, ValueEnum};
use dedup_device::{DeviceError, OpenMode};
use dedup_volume::{CheckOnRead, JournalOptions, OpenOptions, OpenProgress, Status, Volume, VolumeError};
use std::sync::Arc;

/// How a server opens its volume, and whether it makes it first.
#[derive(clap::Args, Clone, Debug)]
pub struct OpenArgs {
    /// Serve for reading only; writes nothing, and other readers may open the volume too
    #[arg(long, conflicts_with_all = ["create", "discard"])]
    pub read_only: bool,
    /// Serve even if part of the log that was durable is lost: the volume as it was before the loss, to copy
    /// out what is left
    #[arg(long, requires = "read_only")]
    pub rescue: bool,
    /// Format the volume first, if both devices are empty or missing
    #[arg(long, requires = "logical_size")]
    pub create: bool,
    /// Bytes that clients see, for a volume that is made; on one that exists, it must be what was given then
    #[arg(long, value_name = "SIZE")]
    pub logical_size: Option<Size>,
    /// Parameters of a volume that is made.
    #[command(flatten)]
    pub format: FormatArgs,
    /// yes: open what is there; no: start empty, by formatting anew (refused if the volume holds data, unless
    /// --force is given)
    #[arg(long, value_name = "yes|no", default_value = "yes", action = ArgAction::Set, value_parser = yes_no_parser())]
    pub reconstruct: bool,
    /// Where metadata is kept
    #[arg(long, value_name = "BACKEND", value_enum, default_value_t = Backend::Cowbtree)]
    pub mdbackend: Backend,
    /// How every read is verified
    #[arg(long, value_name = "HOW", default_value = "crc", value_parser = check_on_read_parser())]
    pub check_on_read: CheckOnRead,
    /// How the data device is used [default: direct, if the file system and the block size allow it]
    #[arg(long, value_name = "HOW", value_enum)]
    pub io: Option<Io>,
    /// Memory for metadata blocks
    #[arg(long, value_name = "SIZE", default_value = "128M")]
    pub cache_size: Size,
    /// Memory for blocks of data, each once however many places share it: for --io direct, since buffered
    /// data is in the kernel's page cache; 0: none
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub data_cache_size: Size,
    /// Memory at most for the filter that saves lookups for what is not stored: 10 bits for each block that
    /// the data device has; 0: none
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub filter_size: Size,
    /// A flush after at most this much new data writes the data into the log too, and waits for one device
    /// instead of two; 0: never
    #[arg(long, value_name = "SIZE", default_value = "128K")]
    pub log_data: Size,
    /// Pass freed blocks down to the data device: files give the space back, SSDs are told
    #[arg(long)]
    pub discard: bool,
}

/// The metadata backends, with dm-dedup's names.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// On the metadata device, crash-consistent
    Cowbtree,
    /// In memory: the volume is formatted at each start and gone at its end
    Inram,
}

/// Why a server has no volume to serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Options that contradict each other.
    #[error(
        "--read-only serves what is there; it cannot be combined with --mdbackend inram or --reconstruct no"
    )]
    ReadOnly,
    /// A volume is to be made, and its size is not known.
    #[error("{reason}")]
    NoSize {
        /// Why one is made, and what is needed.
        reason: &'static str,
    },
    /// `--reconstruct no` on a volume with data in it.
    #[error("cannot start empty: the volume holds {} of data, which --reconstruct no would discard; use --force if that is meant", human(*.used))]
    HoldsData {
        /// Bytes in use.
        used: u64,
    },
    /// `--reconstruct no` on devices that hold something unknown.
    #[error(
        "cannot start empty: what the devices hold is no volume that can be looked into; use --force to overwrite it"
    )]
    NoVolume(#[source] Box<OpenError>),
    /// One of the devices is missing.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// A device cannot be opened or locked.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The volume cannot be made.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The volume cannot be opened.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl OpenArgs {
    /// How to open the volume.
    pub fn options(&self) -> OpenOptions {
        OpenOptions {
            read_only: self.read_only,
            rescue: self.rescue,
            check_on_read: self.check_on_read,
            verify_match: self.format.verify_match,
            flushrq: self.format.flushrq,
            block_size: self.format.block_size,
            algorithm: self.format.crypto_alg,
            cache_bytes: self.cache_size.0,
            data_cache_bytes: self.data_cache_size.0,
            filter_bytes_max: self.filter_size.0,
            log_data: self.log_data.0,
            discard: self.discard,
            in_ram: self.mdbackend == Backend::Inram,
            ..OpenOptions::default()
        }
    }

    /// Opens the volume that `paths` name, formatting it first if the options say so.
    pub fn open(&self, paths: &VolumePaths) -> Result<Volume, OpenError> {
        self.open_and(paths, &OpenProgress::default(), &mut || ())
    }

    /// As [`open`](Self::open), for a server: whoever asks for its status is answered as soon as the devices
    /// are locked.
    pub fn open_served(&self, paths: &VolumePaths) -> Result<(Arc<Volume>, Control), OpenError> {
        let (mut control, progress) = (None, OpenProgress::default());
        let begin = || Control::begin(&paths.data, progress.clone());
        let volume = self.open_and(paths, &progress, &mut || control = Some(begin()))?;
        let volume = Arc::new(volume);
        let control = control.unwrap_or_else(begin);
        control.opened(&volume);
        Ok((volume, control))
    }

    /// Opens it, telling how far that is, and does `locked` when the devices are.
    fn open_and(
        &self,
        paths: &VolumePaths,
        progress: &OpenProgress,
        locked: &mut dyn FnMut(),
    ) -> Result<Volume, OpenError> {
        if self.read_only && (self.mdbackend == Backend::Inram || !self.reconstruct) {
            return Err(OpenError::ReadOnly);
        }
        if self.mdbackend == Backend::Inram {
            return self.open_in_ram(paths, locked);
        }
        if !self.reconstruct {
            self.start_empty(paths)?;
        } else if self.create && is_blank(paths)? {
            make(paths, self.logical_size, &self.format)?;
        }
        let mode = if self.read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let devices = Devices::open(&paths.clone().existing()?, mode, self.io)?;
        locked();
        self.check_sizes(&devices)?;
        let (journal, progress) = (Some(journal(paths)?), progress.clone());
        let options = OpenOptions { journal, force: self.format.force, progress, ..self.options() };
        let volume = Volume::open(devices.data, devices.metadata, &options)?;
        check("--logical-size", self.logical_size, volume.logical_size())?;
        Ok(volume)
    }

    fn open_in_ram(&self, paths: &VolumePaths, locked: &mut dyn FnMut()) -> Result<Volume, OpenError> {
        let reason = "--mdbackend inram formats at each start: it needs --logical-size";
        let logical_size = self.logical_size.ok_or(OpenError::NoSize { reason })?;
        let devices = format_in_ram(paths, logical_size.0, &self.format, self.io)?;
        locked();
        tracing::warn!(
            "metadata is in memory: FLUSH makes data durable but no mapping, and when this process ends, everything stored is lost"
        );
        Ok(Volume::open(devices.data, devices.metadata, &self.options())?)
    }

    /// Formats anew. What the arguments leave open stays as it was.
    fn start_empty(&self, paths: &VolumePaths) -> Result<(), OpenError> {
        if is_blank(paths)? {
            return make(paths, self.logical_size, &self.format);
        }
        let force = self.format.force;
        match look(paths) {
            Ok(old) if old.logical_used_blocks > 0 && !force => {
                Err(OpenError::HoldsData { used: old.logical_used })
            }
            Ok(old) => {
                let as_before = FormatArgs {
                    block_size: self.format.block_size.or(u32::try_from(old.block_size).ok()),
                    crypto_alg: self.format.crypto_alg.or(Some(old.crypto_alg)),
                    flushrq: self.format.flushrq.or(Some(old.flushrq)),
                    verify_match: self.format.verify_match.or(Some(old.verify_match)),
                    // It is known what would be refused: a volume without data.
                    force: true,
                    ..self.format.clone()
                };
                make(paths, self.logical_size.or(Some(Size(old.logical_size))), &as_before)
            }
            Err(error) if !force => Err(OpenError::NoVolume(Box::new(error))),
            Err(_) => make(paths, self.logical_size, &self.format),
        }
    }

    /// Sizes that were given must be those of the volume that is there.
    fn check_sizes(&self, devices: &Devices) -> Result<(), VolumeError> {
        check("--data-size", self.format.data_size, devices.data.size())?;
        check("--metadata-size", self.format.metadata_size, devices.metadata.size())
    }
}

/// The status of the volume that is there, without changing it.
fn look(paths: &VolumePaths) -> Result<Status, OpenError> {
    let devices = Devices::open(&paths.clone().existing()?, OpenMode::ReadOnly, None)?;
    let journal = Some(journal(paths)?);
    let options = OpenOptions { read_only: true, background: false, journal, ..OpenOptions::default() };
    Ok(Volume::open(devices.data, devices.metadata, &options)?.status())
}

fn journal(paths: &VolumePaths) -> Result<JournalOptions, OpenError> {
    let of = |source| DeviceError::Io { path: paths.metadata.clone(), operation: "look at", source };
    Ok(journal_options(&paths.metadata).map_err(of)?)
}

fn make(paths: &VolumePaths, logical_size: Option<Size>, args: &FormatArgs) -> Result<(), OpenError> {
    let reason = "there is no volume: to make one, --logical-size is needed";
    let logical_size = logical_size.ok_or(OpenError::NoSize { reason })?;
    let superblock = format(paths, logical_size.0, args)?;
    tracing::info!("formatted pool {}", superblock.pool);
    Ok(())
}

fn check(parameter: &'static str, asked: Option<Size>, expected: u64) -> Result<(), VolumeError> {
    match asked {
        Some(Size(found)) if found != expected => Err(VolumeError::Mismatch {
            parameter,
            expected: Size(expected).to_string(),
            found: Size(found).to_string(),
        }),
        _ => Ok(()),
    }
}

fn check_on_read_parser() -> impl TypedValueParser<Value = CheckOnRead> {
    PossibleValuesParser::new(["crc", "digest", "off"]).map(|name| match &*name {
        "digest" => CheckOnRead::Digest,
        "off" => CheckOnRead::Off,
        _ => CheckOnRead::Crc,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Tool {
        #[command(flatten)]
        open: OpenArgs,
    }

    #[test]
    fn the_defaults_are_those_of_the_volume() {
        let args = Tool::try_parse_from(["tool"]).unwrap().open;
        let (options, defaults) = (args.options(), OpenOptions::default());
        assert_eq!(format!("{options:?}"), format!("{defaults:?}"));
        assert!(args.reconstruct);
    }

    #[test]
    fn each_name_of_a_check_means_what_it_says() {
        for (name, expected) in
            [("crc", CheckOnRead::Crc), ("digest", CheckOnRead::Digest), ("off", CheckOnRead::Off)]
        {
            let args = Tool::try_parse_from(["tool", "--check-on-read", name]).unwrap().open;
            assert_eq!(args.options().check_on_read, expected);
        }
    }
}
