//! `del` and `list`: devices as the kernel and the records have them.

use super::kernel::{self, done, refused};
use anyhow::{Context, Result, bail, ensure};
use dedup_cli::control::runtime_directory;
use dedup_cli::{Status, human};
use dedup_ublk::args::{DelArgs, ListArgs};
use dedup_ublk::command::SECTOR;
use dedup_ublk::record::{self, Record};
use dedup_ublk::unflushed;
use libublk::ctrl::UblkCtrl;
use libublk::sys;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use serde::Serialize;
use std::fs;
use std::io;
use std::path::Path;

/// Where the driver's devices are listed.
const CLASS: &str = "/sys/class/ublk-char";
/// What this program's processes are called.
const PROGRAM: &str = "dedup-ublk";

/// A device, as `list` tells it.
#[derive(Serialize)]
struct Device {
    id: u32,
    device: String,
    state: &'static str,
    volume: Option<String>,
    pool: Option<String>,
    size: u64,
    read_only: bool,
    queues: u16,
    depth: u16,
    io_size: u32,
    recoverable: bool,
    user_copy: bool,
    unprivileged: bool,
    pid: i32,
}

/// The numbers of all devices, rising.
pub(crate) fn ids() -> Vec<u32> {
    let entries = fs::read_dir(CLASS).into_iter().flatten().flatten();
    let mut ids: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok()).collect();
    ids.sort_unstable();
    ids
}

/// What the driver says of device `id`.
pub(crate) fn info(id: u32) -> Result<sys::ublksrv_ctrl_dev_info> {
    Ok(open(id)?.dev_info())
}

/// A word for a state of the driver's.
pub(crate) fn state_name(state: u16) -> &'static str {
    match u32::from(state) {
        sys::UBLK_S_DEV_DEAD => "stopped",
        sys::UBLK_S_DEV_LIVE => "live",
        sys::UBLK_S_DEV_QUIESCED => "waiting for a server",
        sys::UBLK_S_DEV_FAIL_IO => "failing",
        _ => "in an unknown state",
    }
}

fn open(id: u32) -> Result<UblkCtrl> {
    if !ids().contains(&id) {
        bail!("there is no device {id}");
    }
    Ok(UblkCtrl::new_simple(id as i32).map_err(refused("tell about the device"))?)
}

/// Takes a device away: a server that lives closes its volume first.
pub(crate) fn del(args: &DelArgs) -> Result<()> {
    let runtime = runtime_directory()?;
    if !ids().contains(&args.id) && Record::load(&runtime, args.id).ok().flatten().is_some() {
        if !args.force {
            nothing_left_over(&runtime, args.id)?;
        }
        return Ok(forget(&runtime, args.id)?);
    }
    kernel::features()?;
    let control = open(args.id)?;
    let info = control.dev_info();
    let path = control.get_bdev_path();
    let is_recorded = Record::load(&runtime, args.id).ok().flatten().is_some();
    let server = Server::of(&info);
    server.is_ours(is_recorded, args.force).with_context(|| format!("device {} is not removed", args.id))?;
    if !args.force && in_use(&path)? {
        bail!("{path} is in use, mounted perhaps; unmount it first, or use --force");
    }
    if !args.force && u32::from(info.state) == sys::UBLK_S_DEV_QUIESCED {
        nothing_unflushed(&runtime, args.id)
            .with_context(|| format!("device {} waits for a server: recover it, or use --force", args.id))?;
    }
    let live = server != Server::None;
    let server = live
        .then(|| Pid::from_raw(info.ublksrv_pid))
        .flatten()
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    done("stop the device", control.stop_dev())?;
    // Gone when its server has seen the stop; that needs no permission to ask.
    if let Some(server) = server {
        wait_for(&server)?;
    }
    if ids().contains(&args.id) {
        done("remove the device", control.del_dev())?;
    }
    if live || !args.force {
        nothing_unflushed(&runtime, args.id)
            .context("the server has ended without making everything durable")?;
    }
    Ok(forget(&runtime, args.id)?)
}

/// The process behind a device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Server {
    /// It has ended.
    None,
    /// It lives, and this is its program.
    Live { pid: i32, program: String },
}

impl Server {
    fn of(info: &sys::ublksrv_ctrl_dev_info) -> Self {
        // A stopped device has process -1.
        if u32::from(info.state) != sys::UBLK_S_DEV_LIVE || info.ublksrv_pid <= 0 {
            return Self::None;
        }
        let program = fs::read_to_string(format!("/proc/{}/comm", info.ublksrv_pid)).unwrap_or_default();
        Self::Live { pid: info.ublksrv_pid, program: program.trim().to_owned() }
    }

    /// # Errors
    /// If the device is another program's. The driver does not say whose it is; what does is the record, or else the server's name.
    fn is_ours(&self, is_recorded: bool, force: bool) -> Result<()> {
        match self {
            _ if is_recorded => Ok(()),
            Self::Live { program, .. } if program == PROGRAM => Ok(()),
            Self::Live { pid, program } => bail!(
                "it is served by process {pid} ({program}) and was not added by {PROGRAM}; remove it with the program that added it"
            ),
            Self::None if force => Ok(()),
            Self::None => bail!(
                "nobody serves it, and there is no record that {PROGRAM} added it: it may be waiting for a server of another program; \
                 --force removes it even so"
            ),
        }
    }
}

/// # Errors
/// If there are changes of device `id` that only a server which recovers it would make durable.
fn nothing_unflushed(runtime: &Path, id: u32) -> Result<()> {
    let stem = record::stem(runtime, id);
    let bytes = unflushed::left(&stem)?;
    ensure!(
        bytes == 0,
        "changes that were acknowledged and not flushed would be lost: {} in {}.0 and .1",
        human(bytes),
        stem.display()
    );
    Ok(())
}

/// # Errors
/// If an earlier device `id`, of this boot, has left changes that its server could not make durable.
pub(crate) fn nothing_left_over(runtime: &Path, id: u32) -> Result<()> {
    // A damaged record says nothing of a volume, so nothing can be done for it.
    if Record::load(runtime, id).ok().flatten().is_none() {
        return Ok(());
    }
    nothing_unflushed(runtime, id).with_context(|| {
        format!(
            "an earlier device {id} could not make everything durable: `dedup-ublk recover {id}` replays it, \
             `dedup-ublk del {id} --force` drops it"
        )
    })
}

/// Whether somebody has the block device to himself, as file systems do.
fn in_use(path: &str) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(_) => Ok(false),
        Err(Errno::BUSY) => Ok(true),
        // Stopped or never started.
        Err(Errno::NOENT | Errno::NXIO | Errno::NODEV) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("{path}: cannot see whether it is in use")),
    }
}

fn wait_for(process: &rustix::fd::OwnedFd) -> io::Result<()> {
    let mut ended = [PollFd::new(process, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut ended, None) {
            Err(Errno::INTR) => {}
            result => return result.map(|_| ()).map_err(Into::into),
        }
    }
}

/// Removes what a server that died has left beside the kernel.
pub(crate) fn forget(runtime: &Path, id: u32) -> io::Result<()> {
    Record::remove(runtime, id)?;
    for extension in ["0", "1"] {
        match fs::remove_file(record::stem(runtime, id).with_extension(extension)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Tells which devices there are.
pub(crate) fn list(args: &ListArgs) -> Result<()> {
    kernel::features()?;
    let runtime = runtime_directory()?;
    let ids = args.id.map_or_else(ids, |id| vec![id]);
    let devices = ids.into_iter().map(|id| device(id, &runtime)).collect::<Result<Vec<_>>>()?;
    Ok(args.output.print(&devices, |devices| devices.iter().fold(Status::new(), row))?)
}

fn device(id: u32, runtime: &Path) -> Result<Device> {
    let control = open(id)?;
    let info = control.dev_info();
    let mut params = sys::ublk_params { len: size_of::<sys::ublk_params>() as u32, ..Default::default() };
    done("tell the device's parameters", control.get_params(&mut params))?;
    let record = Record::load(runtime, id).ok().flatten();
    let has = |flag: u32| info.flags & u64::from(flag) != 0;
    Ok(Device {
        id,
        device: control.get_bdev_path(),
        state: state_name(info.state),
        volume: record.as_ref().map(|record| record.volume.clone()),
        pool: record.map(|record| record.pool),
        size: params.basic.dev_sectors * SECTOR,
        read_only: params.basic.attrs & sys::UBLK_ATTR_READ_ONLY != 0,
        queues: info.nr_hw_queues,
        depth: info.queue_depth,
        io_size: info.max_io_buf_bytes,
        recoverable: has(sys::UBLK_F_USER_RECOVERY),
        user_copy: has(sys::UBLK_F_USER_COPY),
        unprivileged: has(sys::UBLK_F_UNPRIVILEGED_DEV),
        pid: info.ublksrv_pid,
    })
}

fn row(status: Status, device: &Device) -> Status {
    let volume = device.volume.as_deref().unwrap_or("(not of this user)");
    let size = human(device.size);
    let Device { state, queues, depth, pid, .. } = device;
    status
        .row(&device.device, format!("{volume}, {size}, {state}, {queues} queues of {depth}, process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dedup_ublk::command::{Command, Kind};
    use dedup_ublk::unflushed::Unflushed;

    /// A device got the number of one that had gone without its files; they were taken for the new one's when its server had died.
    #[test]
    fn forgetting_a_device_removes_all_that_is_its_own_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for id in [3, 31] {
            Unflushed::create(&record::stem(dir.path(), id), 1, 1 << 20).unwrap();
            fs::write(record::stem(dir.path(), id).with_extension("json"), "left over").unwrap();
        }
        forget(dir.path(), 3).unwrap();
        forget(dir.path(), 3).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["ublk-31.0", "ublk-31.1", "ublk-31.json"]);
    }

    /// `del` took away whatever device had the number, also one of another program.
    #[test]
    fn a_device_of_another_program_is_left_alone_and_one_that_nobody_knows_takes_force() {
        let live = |program: &str| Server::Live { pid: 7, program: program.to_owned() };
        for force in [false, true] {
            let error = live("ublk").is_ours(false, force).unwrap_err().to_string();
            assert!(error.contains("process 7 (ublk)"), "{error}");
            assert!(live(PROGRAM).is_ours(false, force).is_ok());
            assert!(live("renamed").is_ours(true, force).is_ok());
            assert!(Server::None.is_ours(true, force).is_ok());
            assert_eq!(Server::None.is_ours(false, force).is_ok(), force);
        }
    }

    /// `del` of a device that waited for a server removed what that was to replay.
    #[test]
    fn acknowledged_changes_without_a_flush_are_named_before_they_are_lost() {
        let dir = tempfile::tempdir().unwrap();
        nothing_unflushed(dir.path(), 3).unwrap();
        let unflushed = Unflushed::create(&record::stem(dir.path(), 3), 1, 1 << 20).unwrap();
        nothing_unflushed(dir.path(), 3).unwrap();
        let command = Command { kind: Kind::Discard, offset: 0, len: 4096, fua: false };
        assert!(unflushed.append(&command, &[]).unwrap());
        let error = nothing_unflushed(dir.path(), 3).unwrap_err().to_string();
        assert!(error.contains("would be lost") && error.contains("ublk-3.0"), "{error}");
        nothing_unflushed(dir.path(), 31).unwrap();
    }
}
