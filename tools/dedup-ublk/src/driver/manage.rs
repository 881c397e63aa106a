//! `del` and `list`: devices as the kernel and the records have them.

use super::kernel::{self, done, refused};
use anyhow::{Context, Result, bail};
use dedup_cli::control::runtime_directory;
use dedup_cli::{Status, human};
use dedup_ublk::args::{DelArgs, ListArgs};
use dedup_ublk::command::SECTOR;
use dedup_ublk::record::Record;
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
        return Ok(Record::remove(&runtime, args.id)?);
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
    Ok(Record::remove(&runtime, args.id)?)
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
    /// If the device is another program's. The driver does not say whose it is; what does is the record, or
    /// else the server's name.
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
}
