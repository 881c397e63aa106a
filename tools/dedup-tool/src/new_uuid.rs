//! `dedup-tool new-uuid`: a copy becomes a volume of its own.

use anyhow::{Context, Result, ensure};
use dedup_cli::{Devices, Status, VolumeArgs, tell};
use dedup_device::OpenMode;
use dedup_volume::Label;
use uuid::Uuid;

/// Give a volume that is a copy of another (cp, a snapshot) a UUID of its own
///
/// It must not be being served. What changes is one sector of the data device: a power cut leaves the old
/// UUID or the new one. The pool's own UUID, by which data and metadata belong together and which goes into
/// every checksum, stays as it is.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    volume: VolumeArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = args.volume.resolve()?.existing()?;
    let devices = Devices::open(&paths, OpenMode::ReadWrite, None)?;
    let label = Label::read(&*devices.data)?;
    let newest = dedup_meta::load_superblocks(&*devices.metadata).newest(Some(label.pool)).cloned()?;
    ensure!(newest.data_device == label.data_device, "data and metadata devices do not belong together");
    let identity = Uuid::new_v4();
    Label { identity: Some(identity), ..label }.replace(&*devices.data)?;
    devices.data.flush().context("the new UUID may not be durable")?;
    let text = Status::new().row("before", label.identity()).row("uuid", identity);
    Ok(tell(|out| write!(out, "{text}"))?)
}
