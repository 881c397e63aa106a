//! Any text as a size, and any words as the parameters of a tool that formats: parsed or refused. A size
//! prints as what parses back to it; parameters that are taken make a volume or are refused with a reason.

use clap::Parser;
use dedup_cli::{FormatArgs, LogArgs, OpenArgs, OutputArgs, Size, VolumeArgs, format::data_size, human};
use dedup_device::{BlockDevice, MemDevice};
use dedup_volume::{FormatOptions, format, geometry};
use std::sync::Arc;
use uuid::Uuid;

/// Options as `dedup-tool format` has them.
#[derive(Parser)]
struct Tool {
    #[command(flatten)]
    volume: VolumeArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    log: LogArgs,
    #[arg(long)]
    logical_size: Option<Size>,
}

/// Options as `dedup-nbd` has them, but for those of the network.
#[derive(Parser)]
struct Server {
    #[command(flatten)]
    volume: VolumeArgs,
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// Devices above this are not made: what they need of memory is in proportion.
const METADATA_BYTES_MAX: u64 = 1 << 30;

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(size) = text.parse::<Size>() {
        assert_eq!(size.to_string().parse(), Ok(size));
        assert!(!human(size.0).is_empty());
    }
    let words = || std::iter::once("tool").chain(text.split('\n'));
    if let Ok(server) = Server::try_parse_from(words()) {
        let _ = server.volume.resolve();
        assert!(!format!("{:?}", server.open).is_empty());
    }
    let Ok(tool) = Tool::try_parse_from(words()) else { return };
    let _ = tool.volume.resolve();
    let Some(Size(logical_size)) = tool.logical_size else { return };
    volume(logical_size, &tool.format);
}

fn volume(logical_size: u64, args: &FormatArgs) {
    let block_size = args.block_size.unwrap_or(dedup_cli::format::BLOCK_SIZE);
    let Ok(logical_blocks) = geometry::logical_blocks(logical_size, block_size) else { return };
    let data_bytes = args.data_size.map_or_else(|| data_size(logical_size, block_size), |size| size.0);
    let data_blocks = data_bytes / u64::from(block_size);
    let metadata_bytes = args
        .metadata_size
        .map_or_else(|| geometry::metadata_size(logical_blocks, data_blocks), |size| size.0);
    if metadata_bytes > METADATA_BYTES_MAX {
        return;
    }
    let options = FormatOptions {
        block_size,
        ..FormatOptions::new(logical_size, Uuid::from_u128(1), Uuid::from_u128(2))
    };
    let metadata: Arc<dyn BlockDevice> = Arc::new(MemDevice::new(metadata_bytes));
    let made = format(&MemDevice::new(data_bytes), &metadata, &options);
    if args.metadata_size.is_none() && args.data_size.is_none() {
        made.expect("default sizes hold a volume");
    }
}
