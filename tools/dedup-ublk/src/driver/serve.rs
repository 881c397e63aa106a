//! `add` and `recover`: from arguments to a device that is served, and its end.
//!
//! ```text
//!   add       open ─> ADD_DEV ───┐
//!   recover   record ─> open ────┴─> queues, START_DEV or END_RECOVERY ─> record, ready ─> wait
//!
//!   SIGTERM, SIGINT, del   STOP_DEV (the kernel drains) ─> queues end ─> DEL_DEV ─> close the volume ─> forget
//!   SIGHUP                 no batch begins, those that run end ─> flush ─> exit; the device and the record stay
//!   death                  the device waits, and the record stays; what was acknowledged is in the volume's journal, which the open takes in
//! ```

use super::kernel::{self, done, refused};
use super::queue::{self, Setup};
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use dedup_cli::control::runtime_directory;
use dedup_cli::serve::{Control, Hangup, Reason, Stop, notify_ready, notify_stopping};
use dedup_cli::{Backend, human};
use dedup_ublk::Target;
use dedup_ublk::args::{AddArgs, Args, Command, DeviceArgs, RecoverArgs};
use dedup_ublk::batch::{IgnoreFlush, Null, flush};
use dedup_ublk::limits::Limits;
use dedup_ublk::record::{self, Record};
use dedup_ublk::workers::Shared;
use dedup_volume::{Status, Volume};
use libublk::UblkFlags;
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::sys;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

/// Queues unless asked otherwise: more rarely help before the engine is the limit.
const QUEUES_DEFAULT_MAX: usize = 4;
/// Exit status of a server that has left its device to a successor: sysexits' "try again".
const LEFT: u8 = 75;
/// The library's name for what is behind a device.
const TARGET_NAME: &str = "dedup";

/// Adds a device and serves it.
pub(crate) fn add(args: &AddArgs) -> Result<()> {
    // Before anything is opened: a signal during a long replay must not be lost.
    let stop = Stop::on_signals(Hangup::HandOver).context("cannot handle signals")?;
    let features = kernel::features()?;
    let runtime = runtime_directory()?;
    if args.device.or_recover
        && let Some(id) = args.device.id
        && let Some(record) = waiting(&runtime, id)?
    {
        let (now, before) = (args.volume.resolve()?, add_args(&record)?.volume.resolve()?);
        ensure!(
            now.data.canonicalize()? == record.directory.join(before.data).canonicalize()?,
            "device {id} waits for a server of {}, not of {}; recover it with `dedup-ublk recover {id}`, or remove it",
            record.volume,
            now.name
        );
        // Options may have changed.
        let (directory, arguments) = own_arguments()?;
        let record = Record { directory, arguments, ..record };
        return Server::start(for_recovery(args.clone(), false), stop, runtime, Some(record), 0)?.run();
    }
    let flags = kernel::flags(&args.device, recoverable(args), features)?;
    Server::start(args.clone(), stop, runtime, None, flags)?.run()
}

/// Serves device `id` in place of the server that is gone.
pub(crate) fn recover(args: &RecoverArgs) -> Result<()> {
    let id = args.id;
    let stop = Stop::on_signals(Hangup::HandOver).context("cannot handle signals")?;
    let runtime = runtime_directory()?;
    kernel::features()?;
    let record = waiting(&runtime, id)?
        .with_context(|| format!("there is no device {id} that waits for a server of this user"))?;
    // Its arguments are relative to that.
    env::set_current_dir(&record.directory)
        .with_context(|| format!("{}: the directory it was added from", record.directory.display()))?;
    let args = for_recovery(add_args(&record)?, args.force);
    Server::start(args, stop, runtime, Some(record), 0)?.run()
}

/// The record of device `id`, if the kernel has it waiting for a server.
fn waiting(runtime: &Path, id: u32) -> Result<Option<Record>> {
    if !super::manage::ids().contains(&id) {
        return Ok(None);
    }
    let info = super::manage::info(id)?;
    if u32::from(info.state) != sys::UBLK_S_DEV_QUIESCED {
        bail!(
            "device {id} is {}, served by process {}; only one whose server is gone can be recovered",
            super::manage::state_name(info.state),
            info.ublksrv_pid
        );
    }
    let record = Record::load(runtime, id)?.with_context(|| {
        format!("device {id} waits for a server, but nothing in {} says of which volume", runtime.display())
    })?;
    Ok(Some(record))
}

/// The arguments that a device was added with.
fn add_args(record: &Record) -> Result<AddArgs> {
    match Args::try_parse_from(&record.arguments)?.command {
        Command::Add(args) => Ok(*args),
        _ => bail!("the record of device {} is not of an `add`", record.id),
    }
}

/// What was asked for when the device was added, without what was to be done once: the volume must never be
/// made again. `force`: open it also if what was acknowledged cannot be had.
fn for_recovery(mut args: AddArgs, force: bool) -> AddArgs {
    args.open.create = false;
    args.open.reconstruct = true;
    args.open.format.force = force;
    args
}

/// Whether the device is to outlive its server: if the volume does, and the kernel allows it, which it does
/// not for unprivileged ones.
fn recoverable(args: &AddArgs) -> bool {
    let DeviceArgs { no_recovery, unprivileged, null, .. } = args.device;
    !no_recovery && !unprivileged && !null && args.open.mdbackend == Backend::Cowbtree
}

/// A device and the volume behind it.
struct Server {
    args: AddArgs,
    runtime: PathBuf,
    volume: Arc<Volume>,
    socket: Control,
    status: Status,
    limits: Limits,
    control: UblkCtrl,
    shared: Arc<Shared>,
    stop: Stop,
    /// The record that is recovered from.
    before: Option<Record>,
    name: String,
}

impl Server {
    fn start(
        args: AddArgs,
        stop: Stop,
        runtime: PathBuf,
        before: Option<Record>,
        flags: u64,
    ) -> Result<Self> {
        let paths = args.volume.resolve()?;
        let (volume, socket) = args.open.open_served(&paths)?;
        let status = volume.status();
        let device = &args.device;
        let limits = Limits::of(&volume, device.logical_block_size.0 as u32, device.io_size.0 as u32);
        if let Some(record) = &before {
            ensure!(
                record.pool == status.pool,
                "device {} is of pool {}, and its volume is now pool {}",
                record.id,
                record.pool,
                status.pool
            );
        }
        let control = control(&args, before.as_ref(), flags)?;
        let target: Box<dyn Target> = match (device.null, device.ignore_flush) {
            (true, _) => Box::new(Null),
            (false, true) => Box::new(IgnoreFlush(Arc::clone(&volume))),
            (false, false) => Box::new(Arc::clone(&volume)),
        };
        let shared = Arc::new(Shared::new(target));
        let name = paths.name;
        Ok(Self { args, runtime, volume, socket, status, limits, control, shared, stop, before, name })
    }

    /// Serves until there is a reason to end, and ends in good order.
    fn run(self) -> Result<()> {
        let Self { args, runtime, volume, socket, status, limits, control, shared, stop, before, name } =
            self;
        let id = control.dev_info().dev_id;
        let record = new_record(&args, &status, id, name, before.as_ref())?;
        if before.is_some() {
            done("begin the recovery", control.start_user_recover())?;
        }
        let setup = Setup { shared: Arc::clone(&shared), workers: usize::from(args.device.workers) };
        let sender = stop.sender();
        let serving = Serving {
            stop: Mutex::new(stop),
            volume,
            status,
            shared,
            record,
            runtime: runtime.clone(),
            failure: OnceLock::new(),
        };
        let serving = Arc::new(serving);
        let watcher = Arc::clone(&serving);
        let ran = control.run_target(
            |dev: &mut UblkDev| {
                prepare(dev, &limits);
                Ok(())
            },
            move |queue, dev: &UblkDev| serve_queue(queue, dev, &setup, &sender),
            move |control: &UblkCtrl| watcher.until_the_end(control),
        );
        if let Err(error) = ran {
            // The queues' threads wait for commands; only the end of the process frees the device.
            let _ = control.del_dev_async();
            control.disown();
            return Err(refused("start the device")(error).into());
        }
        // Another process may have removed it.
        let _ = control.del_dev();
        drop(control);
        drop(socket);
        close(Arc::into_inner(serving).context("a queue is still served")?, &runtime)
    }
}

/// The device, new or taken over.
fn control(args: &AddArgs, before: Option<&Record>, flags: u64) -> Result<UblkCtrl> {
    let device = &args.device;
    let builder = UblkCtrlBuilder::default().name(TARGET_NAME);
    let control = match before {
        Some(record) => {
            let info = super::manage::info(record.id)?;
            builder
                .id(record.id as i32)
                .nr_queues(info.nr_hw_queues)
                .depth(info.queue_depth)
                .io_buf_bytes(info.max_io_buf_bytes)
                .ctrl_flags(info.flags)
                .dev_flags(UblkFlags::UBLK_DEV_F_RECOVER_DEV)
                .build()
        }
        None => {
            let cpus = thread::available_parallelism().map_or(1, |cpus| cpus.get());
            let queues = device.queues.unwrap_or(cpus.min(QUEUES_DEFAULT_MAX) as u16);
            builder
                .id(device.id.map_or(-1, |id| id as i32))
                .nr_queues(queues)
                .depth(device.depth)
                .io_buf_bytes(device.io_size.0 as u32)
                .ctrl_flags(flags)
                .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV)
                .build()
        }
    };
    Ok(control.map_err(refused(if before.is_some() { "take the device over" } else { "add the device" }))?)
}

fn new_record(
    args: &AddArgs,
    status: &Status,
    id: u32,
    volume: String,
    before: Option<&Record>,
) -> Result<Record> {
    // The arguments of this process, unless it was told only the device's number.
    let (directory, arguments) = match before {
        Some(record) => (record.directory.clone(), record.arguments.clone()),
        None => own_arguments()?,
    };
    Ok(Record {
        id,
        boot: record::this_boot(),
        pid: std::process::id(),
        volume,
        pool: status.pool.clone(),
        recoverable: recoverable(args),
        directory,
        arguments,
    })
}

/// This process's arguments, and what they are relative to.
fn own_arguments() -> Result<(PathBuf, Vec<String>)> {
    let arguments = env::args_os().map(|argument| argument.into_string());
    let arguments = arguments.collect::<Result<_, _>>().map_err(|argument| {
        anyhow::anyhow!("{}: not UTF-8; a device's arguments are recorded as text", argument.display())
    })?;
    Ok((env::current_dir()?, arguments))
}

fn prepare(dev: &mut UblkDev, limits: &Limits) {
    dev.tgt.dev_size = limits.size;
    dev.tgt.params = kernel::params(limits);
    // Beside a completion for each command, those of the eventfd.
    dev.tgt.cq_depth = dev.dev_info.queue_depth.saturating_mul(2);
}

/// A queue's thread. When one ends the device is going away, and the server with it.
fn serve_queue(id: u16, dev: &UblkDev, setup: &Setup, stop: &Sender<Reason>) {
    if let Err(error) = queue::serve(id, dev, setup) {
        tracing::error!("queue {id}: {error:#}");
        // The driver waits for all queues: without this one the device never starts, and hangs if it has.
        dedup_cli::exit::now(dedup_cli::exit::FAILURE);
    }
    // The receiver is gone only when the process is about to be.
    let _ = stop.send(Reason::Stop);
}

/// What lives while the device is served.
struct Serving {
    stop: Mutex<Stop>,
    volume: Arc<Volume>,
    status: Status,
    shared: Arc<Shared>,
    record: Record,
    runtime: PathBuf,
    /// Why the device was stopped, if nobody asked for it.
    failure: OnceLock<anyhow::Error>,
}

impl Serving {
    /// Runs once the device is there; when it returns, the device is stopped.
    fn until_the_end(&self, control: &UblkCtrl) {
        if let Err(error) = remember(&self.record, &self.runtime) {
            let _ = self.failure.set(error);
            let _ = control.stop_dev();
            return;
        }
        self.announce(control);
        let stop = self.stop.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let reason = stop.watch(&self.volume, &self.status);
        notify_stopping();
        match reason {
            Reason::Stop => {
                tracing::info!("stopping");
                // It is gone already if another process had it stopped.
                let _ = control.stop_dev();
            }
            Reason::HandOver => self.leave(control),
        }
    }

    fn announce(&self, control: &UblkCtrl) {
        let path = control.get_bdev_path();
        let status = &self.status;
        let info = control.dev_info();
        tracing::info!(
            "serving {} as {path}: {} in blocks of {}, {}{}; {} queues of {}, data copied by the {}",
            self.record.volume,
            human(status.logical_size),
            human(status.block_size),
            status.crypto_alg,
            if self.volume.is_read_only() { ", read-only" } else { "" },
            info.nr_hw_queues,
            info.queue_depth,
            if info.flags & u64::from(sys::UBLK_F_USER_COPY) != 0 { "server" } else { "kernel" },
        );
        // Whoever closed standard output does not want to know.
        let _ = dedup_cli::tell(|out| writeln!(out, "{path}"));
        notify_ready(&format!("{} as {path}", self.record.volume));
    }

    /// Makes everything durable and ends the process; the device stays.
    fn leave(&self, control: &UblkCtrl) {
        if !self.record.recoverable {
            tracing::warn!("this device is not recoverable, so it goes with its server");
            let _ = control.stop_dev();
            return;
        }
        tracing::info!("leaving the device to a successor");
        self.shared.leave();
        if let Err(error) = flush(&*self.shared.target) {
            tracing::error!("cannot flush: {error}; the successor takes in what was acknowledged");
        }
        // Without any destructor: the library's would take the device away.
        dedup_cli::exit::now(LEFT);
    }
}

/// Makes the device known to `recover` and `list`.
///
/// # Errors
/// If it can be recovered only with a record, and has none: then it would wait for ever once its server is
/// dead.
fn remember(record: &Record, runtime: &Path) -> Result<()> {
    let Err(error) = record.save(runtime) else { return Ok(()) };
    // The record that this server has recovered from says all that matters; a mounted file system is not to
    // fail for the rest.
    if record.recoverable && Record::load(runtime, record.id).ok().flatten().is_none() {
        return Err(error).with_context(|| {
            format!(
                "cannot record device {} in {}, so it could not be recovered",
                record.id,
                runtime.display()
            )
        });
    }
    tracing::warn!("what is recorded of this device is not up to date: {error}");
    Ok(())
}

/// Closes the volume and forgets the device.
fn close(serving: Serving, runtime: &Path) -> Result<()> {
    let Serving { volume, shared, record, failure, .. } = serving;
    let shared = Arc::into_inner(shared).context("a queue is still served")?;
    // It holds the volume.
    drop(shared);
    let stats = volume.status();
    let volume = Arc::into_inner(volume).context("the volume is still in use")?;
    volume.close().context("cannot close the volume")?;
    Record::remove(runtime, record.id)?;
    tracing::info!(
        "closed: {} of data in {}, {} operations",
        human(stats.logical_used),
        human(stats.data_used),
        stats.commit.published
    );
    failure.into_inner().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add_args(options: &[&str]) -> AddArgs {
        match Args::try_parse_from([&["dedup-ublk", "add", "v"], options].concat()).unwrap().command {
            Command::Add(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_device_that_keeps_what_it_is_given_is_recoverable() {
        assert!(recoverable(&add_args(&[])));
        for options in [&["--null"][..], &["--no-recovery"], &["--unprivileged"], &["--mdbackend", "inram"]] {
            assert!(!recoverable(&add_args(options)), "{options:?}");
        }
    }

    /// The runtime directory was full; the device was served with a warning, and could not be recovered when
    /// its server had died.
    #[test]
    fn a_recoverable_device_without_a_record_is_an_error_and_others_need_none() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("run");
        let record = |recoverable| Record {
            id: 3,
            boot: record::this_boot(),
            pid: 1,
            volume: "v".to_owned(),
            pool: "p".to_owned(),
            recoverable,
            directory: "/".into(),
            arguments: vec![],
        };
        let error = remember(&record(true), &runtime).unwrap_err().to_string();
        assert!(error.contains("device 3") && error.contains("recovered"), "{error}");
        remember(&record(false), &runtime).unwrap();
        std::fs::create_dir(&runtime).unwrap();
        remember(&record(true), &runtime).unwrap();
        // A successor that cannot write its own finds the one that it was started from.
        std::fs::create_dir(runtime.join("ublk-3.new")).unwrap();
        remember(&record(true), &runtime).unwrap();
    }
}
