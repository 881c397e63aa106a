//! What this kernel's driver can do, and words for when it cannot.

use dedup_ublk::args::{Copy, DeviceArgs};
use dedup_ublk::limits::Limits;
use libublk::UblkError;
use libublk::ctrl::UblkCtrl;
use libublk::sys;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

/// The driver's control device.
const CONTROL: &str = "/dev/ublk-control";
/// Where Linux says which version it is.
const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// Why the kernel does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// No control device.
    #[error(
        "{CONTROL} is not there: load the module with `modprobe ublk_drv`; it comes with Linux 6.0 and later if CONFIG_BLK_DEV_UBLK is \
         set, and this tool needs 6.5 (this is Linux {0})"
    )]
    NoDriver(String),
    /// The control device cannot be opened.
    #[error(
        "{CONTROL} cannot be opened: {0}; only root may, unless it was made accessible (see docs/ublk.md)"
    )]
    Control(#[source] io::Error),
    /// A driver without GET_FEATURES.
    #[error(
        "the module ublk_drv of Linux {0} is too old: it does not tell what it can do; 6.5 or later is needed"
    )]
    TooOld(String),
    /// A feature that was asked for.
    #[error("{option}: the module ublk_drv of Linux {release} cannot do that; it came with Linux {since}")]
    Lacks {
        /// What was asked for.
        option: &'static str,
        /// The version that has it.
        since: &'static str,
        /// This kernel.
        release: String,
    },
    /// A command to the driver failed.
    #[error("the driver refuses to {operation}: {source}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// `libublk`'s error with the system's reason, which it does not print.
pub(crate) fn refused(operation: &'static str) -> impl FnOnce(UblkError) -> KernelError {
    move |error| {
        let source = match error {
            UblkError::IOError(error) => error,
            UblkError::UringIOError(code) | UblkError::OtherError(code) if code < 0 => {
                io::Error::from_raw_os_error(-code)
            }
            other => io::Error::other(other.to_string()),
        };
        KernelError::Refused { operation, source }
    }
}

/// As `libublk` gives a busy device: as a success.
pub(crate) fn done(operation: &'static str, result: Result<i32, UblkError>) -> Result<(), KernelError> {
    match result.map_err(refused(operation))? {
        code if code < 0 => Err(refused(operation)(UblkError::OtherError(code))),
        _ => Ok(()),
    }
}

/// The driver's features.
pub(crate) fn features() -> Result<u64, KernelError> {
    if !Path::new(CONTROL).exists() {
        return Err(KernelError::NoDriver(release()));
    }
    OpenOptions::new().read(true).write(true).open(CONTROL).map_err(KernelError::Control)?;
    UblkCtrl::get_features().ok_or_else(|| KernelError::TooOld(release()))
}

/// Which Linux this is.
fn release() -> String {
    fs::read_to_string(RELEASE)
        .map_or_else(|_| "of unknown version".to_owned(), |text| text.trim().to_owned())
}

/// The flags of a new device: what was asked for, as far as `features` has it.
pub(crate) fn flags(args: &DeviceArgs, features: u64) -> Result<u64, KernelError> {
    let has = |flag: u32| features & u64::from(flag) != 0;
    let lacks = |option, since| KernelError::Lacks { option, since, release: release() };
    let mut flags = 0;
    match args.copy {
        Copy::Kernel => {}
        Copy::Auto if !has(sys::UBLK_F_USER_COPY) => {}
        Copy::Auto => flags |= sys::UBLK_F_USER_COPY,
        Copy::User if !has(sys::UBLK_F_USER_COPY) => return Err(lacks("--copy user", "6.5")),
        Copy::User => flags |= sys::UBLK_F_USER_COPY,
    }
    if !args.no_recovery {
        if !has(sys::UBLK_F_USER_RECOVERY) || !has(sys::UBLK_F_USER_RECOVERY_REISSUE) {
            return Err(lacks("recovery (leave it with --no-recovery)", "6.1"));
        }
        flags |= sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE;
    }
    if args.unprivileged {
        if !has(sys::UBLK_F_UNPRIVILEGED_DEV) {
            return Err(lacks("--unprivileged", "6.5"));
        }
        flags |= sys::UBLK_F_UNPRIVILEGED_DEV;
    }
    Ok(u64::from(flags))
}

/// The device's limits as the driver takes them.
pub(crate) fn params(limits: &Limits) -> sys::ublk_params {
    // All powers of two, so these are exact.
    let shift = |bytes: u32| bytes.trailing_zeros() as u8;
    let sectors = |bytes: u64| bytes / dedup_ublk::command::SECTOR;
    let mut attrs = 0;
    if limits.read_only {
        attrs |= sys::UBLK_ATTR_READ_ONLY;
    }
    if limits.volatile_cache() {
        // Without these two no FLUSH and no FUA is ever sent.
        attrs |= sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    }
    let mut types = sys::UBLK_PARAM_TYPE_BASIC;
    if limits.unmap_max_sectors > 0 {
        types |= sys::UBLK_PARAM_TYPE_DISCARD;
    }
    sys::ublk_params {
        types,
        basic: sys::ublk_param_basic {
            attrs,
            logical_bs_shift: shift(limits.logical_block),
            physical_bs_shift: shift(limits.physical_block),
            io_opt_shift: shift(limits.io_optimal),
            io_min_shift: shift(limits.io_min),
            max_sectors: sectors(u64::from(limits.io_max)) as u32,
            dev_sectors: sectors(limits.size),
            ..Default::default()
        },
        discard: sys::ublk_param_discard {
            discard_granularity: limits.discard_granularity,
            max_discard_sectors: limits.unmap_max_sectors,
            max_write_zeroes_sectors: limits.unmap_max_sectors,
            max_discard_segments: 1,
            ..Default::default()
        },
        ..Default::default()
    }
}
