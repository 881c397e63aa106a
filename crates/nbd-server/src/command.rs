//! What a request means on the export that the client has chosen: a checked operation, or the error to
//! answer.
//!
//! Everything that a client can get wrong in one request is found here, before the export sees it, so an
//! export is only ever asked for non-empty ranges within its size. The order of the checks decides which
//! error wins: flags, permission, limits, range.

use crate::protocol::{Fields, Framing, ReplyError, RequestHeader, command, command_flag};
use dedup_request::{Op, RequestError};

/// Largest payload of a READ or WRITE, in bytes: what the specification tells clients to assume of any
/// server.
pub const PAYLOAD_LEN_MAX: u32 = 32 << 20;

/// What was agreed in the handshake and holds for the rest of the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Bytes of the export.
    pub(crate) size: u64,
    /// Bytes of its blocks.
    pub(crate) block_size: u64,
    /// Writes are refused.
    pub(crate) read_only: bool,
    /// How requests and replies look.
    pub(crate) framing: Framing,
    /// Metadata contexts have been selected, so BLOCK_STATUS may be asked for.
    pub(crate) has_contexts: bool,
}

/// What to do about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Give it to the export, in a batch.
    Run(Kind),
    /// Tell the export that the range will be used.
    Cache,
    /// Ask the export about a range: see [`Terms::status_query`].
    Status,
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

/// What a BLOCK_STATUS asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StatusQuery {
    /// Bytes from the header's offset on.
    pub(crate) len: u64,
    /// Only these contexts, by their identifiers; otherwise all that were selected.
    pub(crate) only: Option<Vec<u32>>,
    /// One extent is enough.
    pub(crate) one: bool,
}

impl Terms {
    /// Checks a request. `NBD_CMD_DISC` is not one: the receiver ends the connection at it.
    pub(crate) fn check(&self, header: &RequestHeader) -> Action {
        if header.flags & !self.flags_allowed(header.command) != 0 {
            return Action::Refuse(ReplyError::Invalid);
        }
        let fua = header.flags & command_flag::FUA != 0;
        let action = match header.command {
            command::READ => Action::Run(Kind::Read),
            command::WRITE => Action::Run(Kind::Write { fua }),
            command::FLUSH => return Action::Run(Kind::Flush),
            command::TRIM => Action::Run(Kind::Trim { fua }),
            command::CACHE => Action::Cache,
            // NO_HOLE asks for space to be set aside, which a store that writes out of place cannot do for
            // any block; the zeros are there either way.
            command::WRITE_ZEROES => Action::Run(Kind::WriteZeroes { fua }),
            // Its range may stand in the payload, which has not been looked at yet.
            command::BLOCK_STATUS if self.has_contexts => return Action::Status,
            _ => Action::Refuse(ReplyError::Invalid),
        };
        if let Action::Refuse(_) = action { action } else { self.check_range(action, header) }
    }

    /// The flags that a command may carry. A client may set FUA on anything: where nothing is written it has
    /// no effect.
    fn flags_allowed(&self, command: u16) -> u16 {
        use command_flag::{DF, FAST_ZERO, FUA, NO_HOLE, PAYLOAD_LEN, REQ_ONE};
        let extended = self.framing == Framing::Extended;
        FUA | match command {
            command::READ if self.framing >= Framing::Structured => DF,
            command::WRITE if extended => PAYLOAD_LEN,
            command::WRITE_ZEROES => NO_HOLE | FAST_ZERO,
            command::BLOCK_STATUS if extended => REQ_ONE | PAYLOAD_LEN,
            command::BLOCK_STATUS => REQ_ONE,
            _ => 0,
        }
    }

    fn check_range(&self, action: Action, header: &RequestHeader) -> Action {
        use ReplyError::{Invalid, NoSpace, NotPermitted, NotSupported, Overflow};
        let writes = matches!(action, Action::Run(kind) if kind != Kind::Read);
        if self.read_only && writes {
            return Action::Refuse(NotPermitted);
        }
        if header.len > u64::from(PAYLOAD_LEN_MAX) {
            match action {
                Action::Run(Kind::Read) => return Action::Refuse(Overflow),
                Action::Run(Kind::Write { .. }) => return Action::Refuse(Invalid),
                // Without a payload any length is fine.
                _ => {}
            }
        }
        if !self.is_within(header.offset, header.len) {
            return Action::Refuse(match action {
                Action::Run(Kind::Write { .. } | Kind::WriteZeroes { .. }) => NoSpace,
                _ => Invalid,
            });
        }
        match action {
            _ if header.len == 0 => Action::Nothing,
            Action::Run(Kind::WriteZeroes { .. }) if !self.is_fast_enough(header) => {
                Action::Refuse(NotSupported)
            }
            action => action,
        }
    }

    fn is_within(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.size)
    }

    /// Whether a range begins and ends where blocks do.
    pub(crate) fn has_whole_blocks_only(&self, header: &RequestHeader) -> bool {
        header.offset.is_multiple_of(self.block_size) && header.len.is_multiple_of(self.block_size)
    }

    /// Whether a WRITE_ZEROES is faster than a write, or need not be. Whole blocks are; edges cost what a
    /// write costs.
    fn is_fast_enough(&self, header: &RequestHeader) -> bool {
        let whole = header.offset.checked_next_multiple_of(self.block_size);
        let whole_end = whole.and_then(|whole| whole.checked_add(self.block_size));
        header.flags & command_flag::FAST_ZERO == 0
            || whole_end.is_some_and(|end| end <= header.offset + header.len)
    }

    /// What a request that [`check`](Self::check) found to be an [`Action::Status`] asks for.
    pub(crate) fn status_query(
        &self,
        header: &RequestHeader,
        payload: &[u8],
    ) -> Result<StatusQuery, ReplyError> {
        let one = header.flags & command_flag::REQ_ONE != 0;
        let has_payload = header.payload_len(self.framing) > 0;
        let query = if has_payload {
            let (len, only) = parse_status_payload(payload).ok_or(ReplyError::Invalid)?;
            StatusQuery { len, only: Some(only), one }
        } else {
            StatusQuery { len: header.len, only: None, one }
        };
        // An answer has at least one extent, and none is empty.
        match query.len > 0 && self.is_within(header.offset, query.len) {
            true => Ok(query),
            false => Err(ReplyError::Invalid),
        }
    }
}

/// Length and context identifiers; `None` if it ends within one, names one twice, or none.
fn parse_status_payload(payload: &[u8]) -> Option<(u64, Vec<u32>)> {
    let mut fields = Fields::new(payload);
    let len = fields.u64()?;
    let mut only = Vec::new();
    while fields.end().is_none() {
        let id = fields.u32()?;
        // It is as short as the list of all contexts: a repetition ends it.
        if only.contains(&id) {
            return None;
        }
        only.push(id);
        if only.len() > CONTEXT_IDS_MAX {
            return None;
        }
    }
    (!only.is_empty()).then_some((len, only))
}

/// Context identifiers in one request: more than any export has contexts.
const CONTEXT_IDS_MAX: usize = 16;

/// The error to answer when the export failed `op`.
pub(crate) fn reply_error(op: &Op<'_>, error: RequestError) -> ReplyError {
    match (error, op) {
        (RequestError::OutOfRange, Op::Write { .. } | Op::WriteZeroes { .. }) => ReplyError::NoSpace,
        (RequestError::OutOfRange, _) => ReplyError::Invalid,
        (RequestError::NoSpace, _) => ReplyError::NoSpace,
        (RequestError::ReadOnly, _) => ReplyError::NotPermitted,
        (RequestError::ShuttingDown | RequestError::Abandoned, _) => ReplyError::Shutdown,
        // `RequestError` may grow; to a client anything else is a failed device.
        _ => ReplyError::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        size: 1 << 40,
        block_size: 4096,
        read_only: false,
        framing: Framing::Structured,
        has_contexts: true,
    };

    fn header(command: u16, flags: u16, offset: u64, len: u64) -> RequestHeader {
        RequestHeader { flags, command, cookie: 0, offset, len }
    }

    fn check(terms: Terms, command: u16, flags: u16, offset: u64, len: u64) -> Action {
        terms.check(&header(command, flags, offset, len))
    }

    #[test]
    fn trim_and_zeroes_may_exceed_the_payload_limit_and_reads_and_writes_may_not() {
        let len = u64::from(PAYLOAD_LEN_MAX) + 1;
        assert_eq!(check(TERMS, command::READ, 0, 0, len), Action::Refuse(ReplyError::Overflow));
        assert_eq!(check(TERMS, command::WRITE, 0, 0, len), Action::Refuse(ReplyError::Invalid));
        let len = u64::from(u32::MAX);
        assert_eq!(check(TERMS, command::TRIM, 0, 0, len), Action::Run(Kind::Trim { fua: false }));
        assert_eq!(check(TERMS, command::CACHE, 0, 0, len), Action::Cache);
        assert_eq!(check(TERMS, command::BLOCK_STATUS, 0, 0, len), Action::Status);
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
        assert_eq!(check(TERMS, command::CACHE, command_flag::FUA, 0, 512), Action::Cache);
        assert_eq!(check(TERMS, command::BLOCK_STATUS, command_flag::FUA, 0, 512), Action::Status);
    }

    #[test]
    fn a_flag_that_the_command_does_not_know_is_invalid() {
        let invalid = Action::Refuse(ReplyError::Invalid);
        let others = [command::WRITE, command::FLUSH, command::TRIM, command::CACHE, command::WRITE_ZEROES];
        for command in others.into_iter().chain([command::BLOCK_STATUS]) {
            assert_eq!(check(TERMS, command, command_flag::DF, 0, 512), invalid, "{command}");
            let payload = command_flag::PAYLOAD_LEN;
            assert_eq!(check(TERMS, command, payload, 0, 512), invalid, "{command}");
            assert_eq!(check(TERMS, command, 1 << 15, 0, 512), invalid, "{command}");
        }
        assert_eq!(check(TERMS, command::READ, command_flag::NO_HOLE, 0, 512), invalid);
        let simple = Terms { framing: Framing::Simple, ..TERMS };
        assert_eq!(check(simple, command::READ, command_flag::DF, 0, 512), invalid);
        assert_eq!(check(TERMS, command::READ, command_flag::DF, 0, 512), Action::Run(Kind::Read));
        assert_eq!(check(TERMS, command::TRIM, command_flag::FAST_ZERO, 0, 512), invalid);
        assert_eq!(check(TERMS, command::READ, command_flag::REQ_ONE, 0, 512), invalid);
    }

    #[test]
    fn extended_a_write_may_say_that_it_has_a_payload_and_a_block_status_and_nothing_else() {
        let terms = Terms { framing: Framing::Extended, ..TERMS };
        let invalid = Action::Refuse(ReplyError::Invalid);
        let payload = command_flag::PAYLOAD_LEN;
        assert_eq!(check(terms, command::WRITE, payload, 0, 512), Action::Run(Kind::Write { fua: false }));
        assert_eq!(check(terms, command::WRITE, 0, 0, 512), Action::Run(Kind::Write { fua: false }));
        for command in [command::READ, command::FLUSH, command::TRIM, command::CACHE, command::WRITE_ZEROES] {
            assert_eq!(check(terms, command, payload, 0, 512), invalid, "{command}");
        }
        assert_eq!(check(terms, command::BLOCK_STATUS, payload, 0, 12), Action::Status);
    }

    #[test]
    fn zeroes_are_fast_if_a_whole_block_is_among_them() {
        let fast = command_flag::FAST_ZERO;
        let too_slow = Action::Refuse(ReplyError::NotSupported);
        let run = Action::Run(Kind::WriteZeroes { fua: false });
        for (offset, len, expected) in
            [(0, 4096, run), (1, 4096, too_slow), (1, 8191, run), (0, 4095, too_slow), (4096, 1 << 33, run)]
        {
            assert_eq!(check(TERMS, command::WRITE_ZEROES, fast, offset, len), expected, "{offset}+{len}");
            assert_eq!(check(TERMS, command::WRITE_ZEROES, 0, offset, len), run);
        }
        assert_eq!(check(TERMS, command::WRITE_ZEROES, fast, 0, 0), Action::Nothing);
    }

    #[test]
    fn without_contexts_there_is_no_block_status() {
        let terms = Terms { has_contexts: false, ..TERMS };
        assert_eq!(check(terms, command::BLOCK_STATUS, 0, 0, 512), Action::Refuse(ReplyError::Invalid));
    }

    #[test]
    fn a_block_status_may_name_contexts_in_its_payload_and_must_then_do_it_right() {
        let terms = Terms { framing: Framing::Extended, ..TERMS };
        let payload = |len: u64, ids: &[u32]| {
            let ids = ids.iter().flat_map(|id| id.to_be_bytes());
            len.to_be_bytes().into_iter().chain(ids).collect::<Vec<u8>>()
        };
        let query = |bytes: &[u8]| {
            let flags = command_flag::PAYLOAD_LEN | command_flag::REQ_ONE;
            let header = header(command::BLOCK_STATUS, flags, 4096, bytes.len() as u64);
            terms.status_query(&header, bytes)
        };
        let expected = StatusQuery { len: 1 << 36, only: Some(vec![2, 1]), one: true };
        assert_eq!(query(&payload(1 << 36, &[2, 1])), Ok(expected));
        let many: Vec<u32> = (0..1000).collect();
        for bad in [
            payload(512, &[]),
            payload(512, &[1, 1]),
            payload(512, &many),
            payload(0, &[1]),
            payload(TERMS.size, &[1]),
            payload(u64::MAX, &[1]),
            payload(512, &[1])[..11].to_vec(),
            vec![0; 7],
        ] {
            assert_eq!(query(&bad), Err(ReplyError::Invalid), "{bad:?}");
        }
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
