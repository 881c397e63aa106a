//! `damage`: lists the blocks of a volume, and damages one of them on request, to see what the other tools
//! make of it.
//!
//! ```text
//!   damage list VOLUME [--fields NAME]                every block by name; every field of one
//!   damage flip VOLUME --block mapping:0:3 --field crc [--bit 5] [--reseal]
//!   damage zero VOLUME --block NAME
//!   damage swap VOLUME --block NAME --with NAME [--renumber] [--reseal]
//!   damage older VOLUME --block NAME [--reseal]       the older superblock's version of it, in its place
//!   damage truncate VOLUME --device metadata --bytes N
//! ```
//!
//! It opens the devices as a writer does, so it refuses a volume that is being served. It is a tool of the
//! tests and asks nothing: what it damages is damaged.

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use dedup_cli::VolumeArgs;
use dedup_device::OpenMode;
use dedup_tests::damage::command::{Change, Flip, Older, Swap, Zero, site};
use dedup_tests::damage::{Atlas, Devices};
use std::fs::OpenOptions;
use std::io::{self, Write};

/// Damage a volume on purpose: for tests, on volumes that nobody needs
#[derive(Parser, Debug)]
#[command(name = "damage")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Print every block that means something: name, type, number on its device, which superblock needs it
    List(On<List>),
    /// Change one bit of a field
    Flip(On<Flip>),
    /// Overwrite a block with zeros
    Zero(On<Zero>),
    /// Exchange two blocks
    Swap(On<Swap>),
    /// Replace a block by the version that the older superblock has of it
    Older(On<Older>),
    /// Cut a device
    Truncate(On<Truncate>),
}

/// Something to do to a volume.
#[derive(Args, Debug)]
struct On<T: Args> {
    #[command(flatten)]
    volume: VolumeArgs,
    #[command(flatten)]
    what: T,
}

#[derive(Args, Debug)]
struct List {
    /// Print the fields of this block instead: name, first byte, bits
    #[arg(long, value_name = "NAME")]
    fields: Option<String>,
}

#[derive(Args, Debug)]
struct Truncate {
    /// Which device
    #[arg(long, value_enum)]
    device: Which,
    /// Its new size
    #[arg(long)]
    bytes: u64,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Which {
    /// The data device
    Data,
    /// The metadata device
    Metadata,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::List(On { volume, what }) => {
            list(&open(&volume, OpenMode::ReadOnly)?, what.fields.as_deref())
        }
        Command::Flip(On { volume, what }) => change(&volume, &Change::Flip(what)),
        Command::Zero(On { volume, what }) => change(&volume, &Change::Zero(what)),
        Command::Swap(On { volume, what }) => change(&volume, &Change::Swap(what)),
        Command::Older(On { volume, what }) => change(&volume, &Change::Older(what)),
        Command::Truncate(On { volume, what }) => truncate(&volume, &what),
    }
}

fn open(volume: &VolumeArgs, mode: OpenMode) -> Result<Devices> {
    let paths = volume.resolve()?.existing()?;
    let opened = dedup_cli::Devices::open(&paths, mode, None)?;
    Ok(Devices { data: opened.data, metadata: opened.metadata })
}

fn change(volume: &VolumeArgs, change: &Change) -> Result<()> {
    let devices = open(volume, OpenMode::ReadWrite)?;
    change.apply(&devices)?;
    devices.data.flush()?;
    Ok(devices.metadata.flush()?)
}

fn truncate(volume: &VolumeArgs, what: &Truncate) -> Result<()> {
    let paths = volume.resolve()?.existing()?;
    let path = match what.device {
        Which::Data => paths.data,
        Which::Metadata => paths.metadata,
    };
    let file = OpenOptions::new().write(true).open(&path).with_context(|| path.display().to_string())?;
    let (bytes, size) = (what.bytes, file.metadata()?.len());
    ensure!(bytes < size, "--bytes {bytes}: expected fewer than {}'s {size}", path.display());
    file.set_len(bytes)?;
    Ok(file.sync_all()?)
}

fn list(devices: &Devices, fields: Option<&str>) -> Result<()> {
    let atlas = Atlas::of(devices).context("no volume to list")?;
    let mut out = io::stdout().lock();
    if let Some(name) = fields {
        for field in atlas.fields(devices, site(&atlas, name)?) {
            writeln!(out, "{}\t{}\t{}", field.name, field.byte(), field.width)?;
        }
        return Ok(());
    }
    for site in &atlas.sites {
        writeln!(out, "{}\t{}\t{}\t{:?}", site.name, site.kind(), site.at, site.age)?;
    }
    Ok(())
}
