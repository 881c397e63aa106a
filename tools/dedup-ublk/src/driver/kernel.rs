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
pub(crate) fn flags(args: &DeviceArgs, recoverable: bool, features: u64) -> Result<u64, KernelError> {
    let has = |flag: u32| features & u64::from(flag) != 0;
    let lacks = |option, since| KernelError::Lacks { option, since, release: release() };
    let mut flags = 0;
    match args.copy {
        Copy::Kernel => {}
        // The driver refuses it for unprivileged devices.
        Copy::Auto if args.unprivileged || !has(sys::UBLK_F_USER_COPY) => {}
        Copy::Auto => flags |= sys::UBLK_F_USER_COPY,
        Copy::User if !has(sys::UBLK_F_USER_COPY) => return Err(lacks("--copy user", "6.5")),
        Copy::User => flags |= sys::UBLK_F_USER_COPY,
    }
    if recoverable {
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use dedup_ublk::args::{Args, Command};

    const ALL: u64 = u64::MAX;

    fn device(options: &[&str]) -> DeviceArgs {
        match Args::try_parse_from([&["dedup-ublk", "add", "v"], options].concat()).unwrap().command {
            Command::Add(args) => args.device,
            other => panic!("{other:?}"),
        }
    }

    fn has(flags: u64, flag: u32) -> bool {
        flags & u64::from(flag) != 0
    }

    #[test]
    fn a_device_is_recoverable_and_copied_by_the_server_where_the_kernel_can() {
        let chosen = flags(&device(&[]), true, ALL).unwrap();
        assert!(has(chosen, sys::UBLK_F_USER_RECOVERY) && has(chosen, sys::UBLK_F_USER_RECOVERY_REISSUE));
        assert!(has(chosen, sys::UBLK_F_USER_COPY) && !has(chosen, sys::UBLK_F_UNPRIVILEGED_DEV));
        let without = ALL & !u64::from(sys::UBLK_F_USER_COPY);
        assert!(!has(flags(&device(&[]), true, without).unwrap(), sys::UBLK_F_USER_COPY));
        let unprivileged = flags(&device(&["--unprivileged"]), false, ALL).unwrap();
        assert_eq!(
            unprivileged,
            u64::from(sys::UBLK_F_UNPRIVILEGED_DEV),
            "the driver takes no other with it"
        );
        assert!(!has(flags(&device(&["--copy", "kernel"]), true, ALL).unwrap(), sys::UBLK_F_USER_COPY));
        assert_eq!(flags(&device(&["--copy", "kernel"]), false, 0).unwrap(), 0);
    }

    #[test]
    fn what_was_asked_for_and_is_not_there_is_named_with_the_version_that_has_it() {
        for (options, recoverable, part) in [
            (&["--copy", "user"][..], false, "6.5"),
            (&["--unprivileged"], false, "6.5"),
            (&[], true, "--no-recovery"),
        ] {
            let error = flags(&device(options), recoverable, 0).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("ublk_drv"), "{error}");
        }
    }

    #[test]
    fn flush_fua_discard_and_zeroes_are_announced_or_the_kernel_would_send_none() {
        let params = params(&Limits::new(1 << 30, 65536, false, 512, 1 << 20));
        let attrs = params.basic.attrs;
        assert_eq!(attrs, sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA);
        assert_eq!(params.types, sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD);
        assert_eq!((params.basic.logical_bs_shift, params.basic.physical_bs_shift), (9, 12));
        assert_eq!((params.basic.io_min_shift, params.basic.max_sectors), (16, 2048));
        assert_eq!(params.basic.dev_sectors, 1 << 21);
        assert_eq!((params.discard.discard_granularity, params.discard.max_discard_segments), (65536, 1));
        assert!(params.discard.max_discard_sectors > 0 && params.discard.max_write_zeroes_sectors > 0);
    }

    #[test]
    fn a_read_only_device_says_so() {
        let params = params(&Limits::new(1 << 30, 4096, true, 512, 1 << 20));
        assert_eq!(params.basic.attrs, sys::UBLK_ATTR_READ_ONLY);
        assert_eq!(params.types, sys::UBLK_PARAM_TYPE_BASIC);
    }

    #[test]
    fn a_busy_device_is_an_error_though_the_library_calls_it_a_success() {
        let error = done("stop", Ok(-16)).unwrap_err().to_string();
        assert!(error.contains("stop") && error.contains("busy"), "{error}");
    }
}
