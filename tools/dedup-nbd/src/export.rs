//! A volume as an export of the NBD server. The two were made to fit: a batch goes through as it is.

use dedup_nbd_server::{BASE_ALLOCATION, Export, Extent, STATE_HOLE, STATE_ZERO};
use dedup_volume::{Detail, Request, RequestError, Volume, Wanted};
use std::sync::Arc;

/// The metadata context that tells how many logical blocks share what an extent is stored in: 0 for nothing
/// stored, else the number of binary digits of the reference count. The protocol gives `x-` to namespaces
/// that nobody has registered.
pub(crate) const SHARING: &str = "x-dedup:sharing";

/// Extents after which a walk that only brings the mapping into memory ends: it holds 16 bytes for each.
const CACHE_EXTENTS_MAX: usize = 1 << 16;

/// A volume being served.
pub(crate) struct VolumeExport {
    volume: Arc<Volume>,
    read_only: bool,
}

impl VolumeExport {
    /// As it has been opened: one that stops taking writes later is not read-only to its clients, who are
    /// told that their writes fail.
    pub(crate) fn new(volume: &Arc<Volume>) -> Self {
        Self { volume: Arc::clone(volume), read_only: volume.is_read_only() }
    }
}

impl Export for VolumeExport {
    fn size(&self) -> u64 {
        self.volume.logical_size()
    }

    fn block_size(&self) -> u32 {
        self.volume.block_size()
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn execute<'a>(
        &self,
        wanted: Wanted<'_>,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        self.volume.execute_while(wanted, batch, done);
    }

    fn contexts(&self) -> &'static [&'static str] {
        &[BASE_ALLOCATION, SHARING]
    }

    fn extents(
        &self,
        context: &str,
        offset: u64,
        len: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, RequestError> {
        let detail = if context == SHARING { Detail::Sharing } else { Detail::Allocation };
        let extents = self.volume.extents(offset, len, detail, extents_max)?;
        let status = |level| match detail {
            Detail::Sharing => level,
            Detail::Allocation if level == 0 => STATE_HOLE | STATE_ZERO,
            Detail::Allocation => 0,
        };
        Ok(extents.into_iter().map(|e| Extent { len: e.len, status: status(e.level) }).collect())
    }

    /// Brings the range's mapping into memory, as far as one walk goes. Data is not cached anywhere, so it
    /// stays where it is.
    fn cache(&self, offset: u64, len: u64) -> Result<(), RequestError> {
        self.volume.extents(offset, len, Detail::Allocation, CACHE_EXTENTS_MAX).map(drop)
    }
}
