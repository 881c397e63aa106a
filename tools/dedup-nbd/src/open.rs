//! From the command line to an open volume: what is there, a new one, or one in memory.

use crate::args::{Args, Backend};
use anyhow::{Context, Result, bail};
use dedup_cli::format::{format, format_in_ram, is_blank};
use dedup_cli::{Devices, FormatArgs, Size, VolumePaths, human};
use dedup_device::OpenMode;
use dedup_volume::{OpenOptions, Status, Volume, VolumeError};

/// Opens the volume that the arguments ask for, formatting it first if they say so.
pub(crate) fn open(args: &Args, paths: &VolumePaths) -> Result<Volume> {
    if args.read_only && (args.mdbackend == Backend::Inram || !args.reconstruct) {
        bail!(
            "--read-only serves what is there; it cannot be combined with --mdbackend inram or --reconstruct no"
        );
    }
    if args.mdbackend == Backend::Inram {
        return open_in_ram(args, paths);
    }
    if !args.reconstruct {
        start_empty(args, paths).context("cannot start empty")?;
    } else if args.create && is_blank(paths)? {
        make(paths, args.logical_size, &args.format)?;
    }
    let mode = if args.read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
    let devices = Devices::open(&paths.clone().existing()?, mode, args.io)?;
    check_sizes(args, &devices)?;
    let volume = Volume::open(devices.data, devices.metadata, &args.open_options())?;
    check("--logical-size", args.logical_size, volume.logical_size())?;
    Ok(volume)
}

fn open_in_ram(args: &Args, paths: &VolumePaths) -> Result<Volume> {
    let logical_size =
        args.logical_size.context("--mdbackend inram formats at each start: it needs --logical-size")?;
    let devices = format_in_ram(paths, logical_size.0, &args.format, args.io)?;
    tracing::warn!(
        "metadata is in memory: FLUSH makes data durable but no mapping, and when this process ends, everything stored is lost"
    );
    Ok(Volume::open(devices.data, devices.metadata, &args.open_options())?)
}

/// Formats anew. What the arguments leave open stays as it was.
fn start_empty(args: &Args, paths: &VolumePaths) -> Result<()> {
    if is_blank(paths)? {
        return make(paths, args.logical_size, &args.format);
    }
    let force = args.format.force;
    match look(paths) {
        Ok(old) if old.logical_used_blocks > 0 && !force => bail!(
            "the volume holds {} of data, which --reconstruct no would discard; use --force if that is meant",
            human(old.logical_used)
        ),
        Ok(old) => {
            let as_before = FormatArgs {
                block_size: args.format.block_size.or(u32::try_from(old.block_size).ok()),
                crypto_alg: args.format.crypto_alg.or(Some(old.crypto_alg)),
                flushrq: args.format.flushrq.or(Some(old.flushrq)),
                verify_match: args.format.verify_match.or(Some(old.verify_match)),
                // It is known what would be refused: a volume without data.
                force: true,
                ..args.format.clone()
            };
            make(paths, args.logical_size.or(Some(Size(old.logical_size))), &as_before)
        }
        Err(error) if !force => Err(error).context(
            "what the devices hold is no volume that can be looked into; use --force to overwrite it",
        ),
        Err(_) => make(paths, args.logical_size, &args.format),
    }
}

/// The status of the volume that is there, without changing it.
fn look(paths: &VolumePaths) -> Result<Status> {
    let devices = Devices::open(&paths.clone().existing()?, OpenMode::ReadOnly, None)?;
    let options = OpenOptions { read_only: true, background: false, ..OpenOptions::default() };
    Ok(Volume::open(devices.data, devices.metadata, &options)?.status())
}

fn make(paths: &VolumePaths, logical_size: Option<Size>, args: &FormatArgs) -> Result<()> {
    let logical_size = logical_size.context("there is no volume: to make one, --logical-size is needed")?;
    let superblock = format(paths, logical_size.0, args)?;
    tracing::info!("formatted pool {}", superblock.pool);
    Ok(())
}

/// Sizes that were given must be those of the volume that is there.
fn check_sizes(args: &Args, devices: &Devices) -> Result<(), VolumeError> {
    check("--data-size", args.format.data_size, devices.data.size())?;
    check("--metadata-size", args.format.metadata_size, devices.metadata.size())
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
