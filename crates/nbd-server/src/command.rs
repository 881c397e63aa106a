//! What a request means on the export that the client has chosen: a checked operation, or the error to answer.
//!
//! Everything that a client can get wrong in one request is found here, before the export sees it, so an export is
//! only ever asked for non-empty ranges within its size. The order of the checks decides which error wins:
//! flags, permission, limits, range.

use crate::protocol::{ReplyError, RequestHeader, command, command_flag};
use dedup_volume::{Op, RequestError};

/// Largest payload of a READ or WRITE, in bytes: what the specification tells clients to assume of any server.
pub const PAYLOAD_LEN_MAX: u32 = 32 << 20;

/// What was agreed in the handshake and holds for the rest of the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Bytes of the export.
    pub(crate) size: u64,
    /// Writes are refused.
    pub(crate) read_only: bool,
    /// READ is answered in chunks.
    pub(crate) structured: bool,
}

/// What to do about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Give it to the export.
    Run(Kind),
    /// Answer success: there is nothing to do.
    Nothing,
    /// Answer this error.
    Refuse(ReplyError),
}

/// The operation, without its range and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write { fua: bool },
    Flush,
    Trim { fua: bool },
    WriteZeroes { fua: bool },
}

impl Kind {
    /// Whether it waits for a device's flush, and so must not hold up others in its batch.
    pub(crate) fn waits_for_flush(self) -> bool {
        match self {
            Self::Read => false,
            Self::Flush => true,
            Self::Write { fua } | Self::Trim { fua } | Self::WriteZeroes { fua } => fua,
        }
    }
}

impl Terms {
    /// Checks a request. `NBD_CMD_DISC` is not one: the receiver ends the connection at it.
    pub(crate) fn check(&self, header: &RequestHeader) -> Action {
        let fua = header.flags & command_flag::FUA != 0;
        let (kind, flags_allowed) = match header.command {
            // A client may set FUA on anything: where nothing is written it has no effect.
            command::READ if self.structured => (Kind::Read, command_flag::FUA | command_flag::DF),
            command::READ => (Kind::Read, command_flag::FUA),
            command::WRITE => (Kind::Write { fua }, command_flag::FUA),
            command::FLUSH => (Kind::Flush, command_flag::FUA),
            command::TRIM => (Kind::Trim { fua }, command_flag::FUA),
            // NO_HOLE asks for space to be set aside, which a store that writes out of place cannot do for any
            // block; the zeros are there either way.
            command::WRITE_ZEROES => (Kind::WriteZeroes { fua }, command_flag::FUA | command_flag::NO_HOLE),
            _ => return Action::Refuse(ReplyError::Invalid),
        };
        if header.flags & !flags_allowed != 0 {
            return Action::Refuse(ReplyError::Invalid);
        }
        if kind == Kind::Flush {
            return Action::Run(kind);
        }
        self.check_range(kind, header)
    }

    fn check_range(&self, kind: Kind, header: &RequestHeader) -> Action {
        if self.read_only && kind != Kind::Read {
            return Action::Refuse(ReplyError::NotPermitted);
        }
        if header.len > PAYLOAD_LEN_MAX {
            match kind {
                Kind::Read => return Action::Refuse(ReplyError::Overflow),
                Kind::Write { .. } => return Action::Refuse(ReplyError::Invalid),
                // Without a payload any length is fine.
                Kind::Trim { .. } | Kind::WriteZeroes { .. } | Kind::Flush => {}
            }
        }
        let end = header.offset.checked_add(u64::from(header.len));
        if end.is_none_or(|end| end > self.size) {
            return Action::Refuse(match kind {
                Kind::Write { .. } | Kind::WriteZeroes { .. } => ReplyError::NoSpace,
                Kind::Read | Kind::Trim { .. } | Kind::Flush => ReplyError::Invalid,
            });
        }
        if header.len == 0 { Action::Nothing } else { Action::Run(kind) }
    }
}

/// The error to answer when the export failed `op`.
pub(crate) fn reply_error(op: &Op<'_>, error: RequestError) -> ReplyError {
    match (error, op) {
        (RequestError::OutOfRange, Op::Write { .. } | Op::WriteZeroes { .. }) => ReplyError::NoSpace,
        (RequestError::OutOfRange, _) => ReplyError::Invalid,
        (RequestError::NoSpace, _) => ReplyError::NoSpace,
        (RequestError::ReadOnly, _) => ReplyError::NotPermitted,
        (RequestError::ShuttingDown, _) => ReplyError::Shutdown,
        // `RequestError` may grow; to a client anything else is a failed device.
        _ => ReplyError::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { size: 1 << 40, read_only: false, structured: true };

    fn header(command: u16, flags: u16, offset: u64, len: u32) -> RequestHeader {
        RequestHeader { flags, command, cookie: 0, offset, len }
    }

    fn check(terms: Terms, command: u16, flags: u16, offset: u64, len: u32) -> Action {
        terms.check(&header(command, flags, offset, len))
    }

    #[test]
    fn trim_and_zeroes_may_exceed_the_payload_limit_and_reads_and_writes_may_not() {
        let len = PAYLOAD_LEN_MAX + 1;
        assert_eq!(check(TERMS, command::READ, 0, 0, len), Action::Refuse(ReplyError::Overflow));
        assert_eq!(check(TERMS, command::WRITE, 0, 0, len), Action::Refuse(ReplyError::Invalid));
        let len = u32::MAX;
        assert_eq!(check(TERMS, command::TRIM, 0, 0, len), Action::Run(Kind::Trim { fua: false }));
        assert_eq!(
            check(TERMS, command::WRITE_ZEROES, command_flag::NO_HOLE, 0, len),
            Action::Run(Kind::WriteZeroes { fua: false })
        );
    }

    #[test]
    fn fua_is_accepted_on_every_command() {
        for command in [command::READ, command::WRITE, command::FLUSH, command::TRIM, command::WRITE_ZEROES] {
            assert!(matches!(check(TERMS, command, command_flag::FUA, 0, 512), Action::Run(_)), "{command}");
        }
    }

    #[test]
    fn a_flag_that_the_command_does_not_know_is_invalid() {
        let invalid = Action::Refuse(ReplyError::Invalid);
        for command in [command::WRITE, command::FLUSH, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(check(TERMS, command, command_flag::DF, 0, 512), invalid, "{command}");
        }
        assert_eq!(check(TERMS, command::READ, command_flag::NO_HOLE, 0, 512), invalid);
        let simple = Terms { structured: false, ..TERMS };
        assert_eq!(check(simple, command::READ, command_flag::DF, 0, 512), invalid);
        assert_eq!(check(TERMS, command::READ, command_flag::DF, 0, 512), Action::Run(Kind::Read));
        let fast_zero = 1 << 4;
        assert_eq!(check(TERMS, command::WRITE_ZEROES, fast_zero, 0, 512), invalid);
    }

    #[test]
    fn a_range_past_the_end_is_no_space_for_writes_and_invalid_for_the_rest() {
        for (offset, len) in [(TERMS.size, 1), (TERMS.size - 1, 2), (u64::MAX, 1), (u64::MAX, 0)] {
            for (command, error) in [
                (command::READ, ReplyError::Invalid),
                (command::TRIM, ReplyError::Invalid),
                (command::WRITE, ReplyError::NoSpace),
                (command::WRITE_ZEROES, ReplyError::NoSpace),
            ] {
                assert_eq!(check(TERMS, command, 0, offset, len), Action::Refuse(error));
            }
        }
        assert_eq!(check(TERMS, command::READ, 0, TERMS.size - 1, 1), Action::Run(Kind::Read));
        assert_eq!(check(TERMS, command::READ, 0, TERMS.size, 0), Action::Nothing);
    }

    #[test]
    fn a_read_only_export_permits_reads_and_flushes_only() {
        let terms = Terms { read_only: true, ..TERMS };
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(check(terms, command, 0, 0, 512), Action::Refuse(ReplyError::NotPermitted));
        }
        assert_eq!(check(terms, command::READ, 0, 0, 512), Action::Run(Kind::Read));
        assert_eq!(check(terms, command::FLUSH, 0, 0, 0), Action::Run(Kind::Flush));
    }
}
