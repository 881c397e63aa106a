//! The command line.

use clap::{Parser, Subcommand, ValueEnum};
use dedup_cli::{LogArgs, OpenArgs, OutputArgs, Size, VolumeArgs};

/// The driver's limits (`linux/ublk_cmd.h`), where this server has no lower ones.
const DEPTH_MAX: i64 = 4096;
const QUEUES_MAX: i64 = 64;

/// Serve a deduplicated volume as a local block device, /dev/ublkbN
#[derive(Parser, Debug)]
#[command(name = "dedup-ublk", version)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a device of a volume and serve it
    ///
    /// Serves until SIGTERM or SIGINT, or until `del`; then takes the device away, makes everything durable
    /// and exits. SIGHUP makes everything durable and exits, and the device stays: what is sent to it waits
    /// until `recover`. A second signal exits at once; then, as after a crash, the device waits for `recover`
    /// and nothing that was acknowledged is lost.
    Add(Box<AddArgs>),
    /// Serve a device whose server has died or has been told to leave it to a successor
    Recover(RecoverArgs),
    /// Take a device away, after its server has made everything durable
    Del(DelArgs),
    /// Tell which devices there are
    List(ListArgs),
}

/// Arguments of `add`.
#[derive(clap::Args, Debug, Clone)]
pub struct AddArgs {
    /// Which volume.
    #[command(flatten)]
    pub volume: VolumeArgs,
    /// The device's shape.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// How to open the volume.
    #[command(flatten)]
    pub open: OpenArgs,
    /// What to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What the device is to be like.
#[derive(clap::Args, Debug, Clone)]
#[command(group = clap::ArgGroup::new("recovery").args(["no_recovery", "or_recover", "unprivileged"]))]
pub struct DeviceArgs {
    /// Number of the device, N of /dev/ublkbN [default: the first free one]
    #[arg(long, value_name = "N")]
    pub id: Option<u32>,
    /// Queues: requests of different CPUs do not meet before the engine [default: one a CPU, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=QUEUES_MAX))]
    pub queues: Option<u16>,
    /// Requests in flight in each queue
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=DEPTH_MAX))]
    pub depth: u16,
    /// Threads for each queue: batches in work at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Largest request; longer ones are cut by the kernel
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_io_size)]
    pub io_size: Size,
    /// Bytes that are addressed as one: 512, 1K, 2K or 4K. It decides where a partition table is, so keep
    /// what the disk was made with
    #[arg(long, value_name = "SIZE", default_value = "512", value_parser = parse_logical_block)]
    pub logical_block_size: Size,
    /// Without it a server that dies is replaced with `recover`, and its device stays; with it the device
    /// fails and goes
    #[arg(long)]
    pub no_recovery: bool,
    /// If device --id waits for a server of this volume, recover it instead of adding one: for service
    /// managers
    #[arg(long, requires = "id")]
    pub or_recover: bool,
    /// Make a device that an ordinary user may serve, where the kernel allows it; it is not recoverable
    #[arg(long)]
    pub unprivileged: bool,
    /// How data comes from the kernel
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Copy::Auto)]
    pub copy: Copy,
    /// Open the volume, and serve nothing instead: drops writes, reads zeros. Measures the cost of the front
    /// end
    #[arg(long, hide = true)]
    pub null: bool,
    /// Acknowledge flushes without making anything durable: for tests, to see that they notice
    #[arg(long, hide = true)]
    pub ignore_flush: bool,
}

/// How data gets between the kernel and the server.
#[derive(ValueEnum, Clone, std::marker::Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// By the server, if the kernel can (6.5 and later)
    Auto,
    /// By the server, in its worker threads
    User,
    /// By the kernel, in the queue's thread
    Kernel,
}

/// Arguments of `recover`.
#[derive(clap::Args, Debug)]
pub struct RecoverArgs {
    /// Number of the device
    #[arg(value_name = "N")]
    pub id: u32,
    /// Even if what the dead server had acknowledged and not committed cannot be had: it is given up
    #[arg(long)]
    pub force: bool,
    /// What to log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Arguments of `del`.
#[derive(clap::Args, Debug)]
pub struct DelArgs {
    /// Number of the device
    #[arg(value_name = "N")]
    pub id: u32,
    /// Even if it is mounted or otherwise in use: whoever uses it gets I/O errors. Even if nothing says that
    /// this program has added it, unless it is being served by another
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `list`.
#[derive(clap::Args, Debug)]
pub struct ListArgs {
    /// Number of a device [default: all]
    #[arg(value_name = "N")]
    pub id: Option<u32>,
    /// How to print.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// A size in pages, up to the driver's 32 MiB.
fn parse_io_size(text: &str) -> Result<Size, String> {
    parse_power(text, 4096, 32 << 20)
}

fn parse_logical_block(text: &str) -> Result<Size, String> {
    parse_power(text, 512, 4096)
}

fn parse_power(text: &str, min: u64, max: u64) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error: dedup_cli::SizeError| error.to_string())?;
    if !size.0.is_power_of_two() || !(min..=max).contains(&size.0) {
        return Err(format!("expected a power of two from {} to {}", Size(min), Size(max)));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Command, String> {
        let all = ["dedup-ublk"].iter().chain(args);
        Args::try_parse_from(all).map(|args| args.command).map_err(|error| error.to_string())
    }

    fn device(args: &[&str]) -> Result<DeviceArgs, String> {
        match parse(&[&["add", "v"], args].concat())? {
            Command::Add(add) => Ok(add.device),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_volume_is_all_that_has_to_be_said() {
        let device = device(&[]).unwrap();
        assert_eq!((device.depth, device.workers, device.io_size.0), (128, 2, 1 << 20));
        assert!(!device.no_recovery && device.id.is_none() && device.copy == Copy::Auto);
    }

    #[test]
    fn what_the_driver_would_refuse_is_refused_here() {
        for args in [
            ["--depth", "0"],
            ["--depth", "4097"],
            ["--queues", "0"],
            ["--workers", "0"],
            ["--io-size", "6K"],
            ["--io-size", "64M"],
            ["--logical-block-size", "256"],
            ["--logical-block-size", "8K"],
        ] {
            assert!(device(&args).is_err(), "{args:?}");
        }
        assert_eq!(device(&["--logical-block-size", "4K"]).unwrap().logical_block_size.0, 4096);
    }

    #[test]
    fn recovering_needs_a_number_and_a_device_that_can_be() {
        assert!(parse(&["recover"]).is_err());
        assert!(device(&["--or-recover"]).is_err());
        assert!(device(&["--id", "3", "--or-recover", "--no-recovery"]).is_err());
        assert!(device(&["--id", "3", "--or-recover"]).unwrap().or_recover);
    }
}
