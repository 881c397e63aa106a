//! The driver's commands, and what they are to the engine.
//!
//! A command is {operation and flags, first sector, sectors}; its data travels apart, see
//! [`Window`](crate::Window). Sectors have 512 bytes, whatever the device's block size is. Nothing here calls
//! the kernel.

use dedup_volume::{Op, RequestError};
use rustix::io::Errno;

/// Bytes in a sector.
pub const SECTOR: u64 = 512;

/// Operations, in the low 8 bits of a descriptor's `op_flags` (`linux/ublk_cmd.h`, `UBLK_IO_OP_*`).
const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 2;
const DISCARD: u32 = 3;
const WRITE_ZEROES: u32 = 5;
const OPERATION_MASK: u32 = 0xff;
/// `UBLK_IO_F_FUA`.
const FUA: u32 = 1 << 13;

/// What a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data out of the device.
    Read,
    /// Data into it.
    Write,
    /// Everything acknowledged so far becomes durable.
    Flush,
    /// The whole blocks inside lose their content.
    Discard,
    /// The range reads as zeros from now on.
    WriteZeroes,
}

/// One command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// What to do.
    pub kind: Kind,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Acknowledge only once durable.
    pub fua: bool,
}

impl Command {
    /// What a descriptor of the driver says; `EOPNOTSUPP` if the operation is none that this device
    /// announced, `EINVAL` if the range has no end.
    pub fn parse(op_flags: u32, start_sector: u64, sectors: u32) -> Result<Self, Errno> {
        let kind = match op_flags & OPERATION_MASK {
            READ => Kind::Read,
            WRITE => Kind::Write,
            FLUSH => Kind::Flush,
            DISCARD => Kind::Discard,
            WRITE_ZEROES => Kind::WriteZeroes,
            _ => return Err(Errno::OPNOTSUPP),
        };
        // A flush is of everything, and what the kernel leaves in its range is no sector.
        if kind == Kind::Flush {
            return Ok(Self { kind, offset: 0, len: 0, fua: false });
        }
        let offset = start_sector.checked_mul(SECTOR).ok_or(Errno::INVAL)?;
        let len = u64::from(sectors) * SECTOR;
        offset.checked_add(len).ok_or(Errno::INVAL)?;
        Ok(Self { kind, offset, len, fua: op_flags & FUA != 0 })
    }

    /// Bytes that travel with it, in either direction.
    pub fn data_len(&self) -> usize {
        match self.kind {
            Kind::Read | Kind::Write => self.len as usize,
            Kind::Flush | Kind::Discard | Kind::WriteZeroes => 0,
        }
    }

    /// Whether it changes what the device holds.
    pub fn changes(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::Discard | Kind::WriteZeroes)
    }

    /// The engine's request; `buf` has [`data_len`](Self::data_len) bytes.
    pub fn op<'a>(&self, buf: &'a mut [u8]) -> Op<'a> {
        let Self { offset, len, fua, .. } = *self;
        match self.kind {
            Kind::Read => Op::Read { offset, buf },
            Kind::Write => Op::Write { offset, data: buf, fua },
            Kind::Flush => Op::Flush,
            Kind::Discard => Op::Trim { offset, len, fua },
            Kind::WriteZeroes => Op::WriteZeroes { offset, len, fua },
        }
    }

    /// What the driver is told when it is done: the bytes moved, or 0 where none do.
    pub fn success(&self) -> i32 {
        // A command has at most 32 MiB of data: the driver's limit.
        self.data_len() as i32
    }
}

/// What the driver is told when it failed, a negative error number. The block layer turns these into what
/// programs see.
pub fn failure(error: RequestError) -> i32 {
    -match error {
        RequestError::NoSpace => Errno::NOSPC,
        RequestError::ReadOnly => Errno::PERM,
        RequestError::OutOfRange => Errno::INVAL,
        RequestError::ShuttingDown => Errno::NODEV,
        // The story is in the log.
        _ => Errno::IO,
    }
    .raw_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn op_of(command: Command) -> String {
        format!("{:?}", command.op(&mut vec![0; command.data_len()]))
    }

    #[test]
    fn each_operation_becomes_the_engines_with_bytes_for_sectors() {
        let parse = |op, first, sectors| op_of(Command::parse(op, first, sectors).unwrap());
        assert!(parse(READ, 8, 1).starts_with("Read { offset: 4096, buf: [0, 0"));
        assert!(parse(WRITE, 1, 1).starts_with("Write { offset: 512, data: [0, 0"));
        assert_eq!(parse(FLUSH, 0, 0), "Flush");
        assert_eq!(parse(DISCARD, 2, 4), "Trim { offset: 1024, len: 2048, fua: false }");
        assert_eq!(parse(WRITE_ZEROES | FUA, 2, 4), "WriteZeroes { offset: 1024, len: 2048, fua: true }");
    }

    /// Linux 6.12 sends a flush with all bits of the first sector set, which as a range would have no end:
    /// every fsync failed.
    #[test]
    fn a_flush_has_no_range_whatever_its_descriptor_says() {
        assert_eq!(op_of(Command::parse(FLUSH, u64::MAX, 0).unwrap()), "Flush");
    }

    #[test]
    fn fua_is_taken_from_the_flags_and_the_others_are_hints() {
        // Fail fast (8, 9, 10), metadata (11), no unmap (15), swap (16).
        let hints = 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 15 | 1 << 16;
        assert!(!Command::parse(WRITE | hints, 0, 8).unwrap().fua);
        assert!(Command::parse(WRITE | hints | FUA, 0, 8).unwrap().fua);
    }

    #[test]
    fn an_operation_that_was_not_announced_is_refused() {
        // WRITE_SAME, and those of zoned devices.
        for op in [4, 10, 11, 12, 13, 14, 15, 18, 255] {
            assert_eq!(Command::parse(op, 0, 1), Err(Errno::OPNOTSUPP));
        }
    }

    #[test]
    fn data_travels_with_reads_and_writes_only_and_success_tells_how_much() {
        for (op, bytes) in [(READ, 4096), (WRITE, 4096), (FLUSH, 0), (DISCARD, 0), (WRITE_ZEROES, 0)] {
            let command = Command::parse(op, 0, 8).unwrap();
            assert_eq!((command.data_len(), command.success()), (bytes, bytes as i32));
            assert_eq!(command.changes(), !matches!(op, READ | FLUSH));
        }
    }

    #[test]
    fn errors_are_told_by_the_number_that_the_block_layer_knows_them_by() {
        for (error, expected) in [
            (RequestError::NoSpace, -28),
            (RequestError::Io, -5),
            (RequestError::ReadOnly, -1),
            (RequestError::OutOfRange, -22),
            (RequestError::ShuttingDown, -19),
        ] {
            assert_eq!(failure(error), expected);
        }
    }

    proptest! {
        #[test]
        fn no_descriptor_overflows(op_flags: u32, first: u64, sectors: u32) {
            if let Ok(command) = Command::parse(op_flags, first, sectors) {
                prop_assert!(command.offset.checked_add(command.len).is_some());
                prop_assert_eq!(command.offset / SECTOR, if command.kind == Kind::Flush { 0 } else { first });
            }
        }
    }
}
