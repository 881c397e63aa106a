//! What a superblock says of the journal of acknowledged operations: which one an open has to find, as long
//! as the machine is up.
//!
//! ```text
//!   journal id (16) | boot id (16) | length of the place (1) | place, UTF-8, zeros behind it (223)
//! ```
//!
//! All zeros: none is kept, or the volume was closed in good order. What a journal is, is the dedup layer's
//! knowledge.

use super::ensure;
use crate::BlockFault;
use uuid::Uuid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes that the name of a place may have: what makes the record 256 bytes long.
pub const JOURNAL_PLACE_MAX: usize = 223;

/// The journal that the volume's last opening for writing has kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalRecord {
    /// Its own id, not nil.
    pub id: Uuid,
    /// The boot of the machine in which it was kept, not nil: in another one it is gone.
    pub boot: Uuid,
    /// Where it is, as who keeps it calls that: a path.
    pub place: String,
}

/// The record on disk.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct DiskJournal {
    id: [u8; 16],
    boot: [u8; 16],
    place_len: u8,
    place: [u8; JOURNAL_PLACE_MAX],
}

const _: () = assert!(size_of::<DiskJournal>() == 256);

impl DiskJournal {
    /// The caller has [validated](validate) the record.
    pub(super) fn new(record: Option<&JournalRecord>) -> Self {
        let mut disk = Self { id: [0; 16], boot: [0; 16], place_len: 0, place: [0; JOURNAL_PLACE_MAX] };
        if let Some(JournalRecord { id, boot, place }) = record {
            (disk.id, disk.boot) = (id.into_bytes(), boot.into_bytes());
            disk.place_len = place.len() as u8;
            disk.place[..place.len()].copy_from_slice(place.as_bytes());
        }
        disk
    }

    pub(super) fn decode(&self) -> Result<Option<JournalRecord>, BlockFault> {
        if self.as_bytes().iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let len = usize::from(self.place_len);
        ensure("journal place", len <= JOURNAL_PLACE_MAX, "at most 223 bytes", len)?;
        let (place, rest) = self.place.split_at(len);
        ensure("journal place", rest.iter().all(|&byte| byte == 0), "zeros behind it", "other bytes")?;
        let utf8 = |_| BlockFault::Field {
            field: "journal place",
            expected: "UTF-8".into(),
            found: place.escape_ascii().to_string(),
        };
        let place = std::str::from_utf8(place).map_err(utf8)?.to_owned();
        Ok(Some(JournalRecord { id: Uuid::from_bytes(self.id), boot: Uuid::from_bytes(self.boot), place }))
    }
}

/// What every record keeps to.
pub(super) fn validate(record: &JournalRecord) -> Result<(), BlockFault> {
    ensure("journal id", !record.id.is_nil(), "not nil", record.id)?;
    ensure("journal boot", !record.boot.is_nil(), "not nil", record.boot)?;
    let len = record.place.len();
    ensure("journal place", len <= JOURNAL_PLACE_MAX, "at most 223 bytes", len)
}
