//! `dedup-tool format`.

use anyhow::Result;
use dedup_cli::{FormatArgs, Size, Status, VolumeArgs, human, tell};
use dedup_volume::DigestAlgorithm;

/// Make a volume
///
/// Creates missing files, sparse but for the log, and the directory. Refuses devices that hold anything
/// recognisable or anything but zeros at either end, unless --force is given. Interrupted at any point, it
/// leaves what was there, no volume, or the new one whole.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    volume: VolumeArgs,
    /// Bytes that clients see; may exceed the data device, for data with many duplicates
    #[arg(long, value_name = "SIZE")]
    logical_size: Size,
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = args.volume.resolve()?;
    let made = dedup_cli::format::format(&paths, args.logical_size.0, &args.format)?;
    let algorithm = DigestAlgorithm::from_u8(made.digest_algorithm).map_or("unknown", DigestAlgorithm::name);
    let text = Status::new()
        .row("volume", &paths.name)
        .row("pool", made.pool)
        .row("logical size", human(args.logical_size.0))
        .row("data device", human(made.data_blocks * u64::from(made.block_size)))
        .row("metadata device", human(made.layout.metadata_blocks * dedup_meta::META_BLOCK_SIZE as u64))
        .row("block size", human(u64::from(made.block_size)))
        .row("digest", algorithm);
    // The volume is made: whether anybody hears of it changes nothing.
    if let Err(error) = tell(|out| write!(out, "{text}")) {
        tracing::warn!("the volume is made, and what it is like cannot be told: {error}");
    }
    Ok(())
}
