//! A volume as an export of the NBD server. The two were made to fit: a batch goes through as it is.

use dedup_nbd_server::Export;
use dedup_volume::{Request, RequestError, Volume};
use std::sync::Arc;

/// A volume being served.
pub(crate) struct VolumeExport(pub(crate) Arc<Volume>);

impl Export for VolumeExport {
    fn size(&self) -> u64 {
        self.0.logical_size()
    }

    fn block_size(&self) -> u32 {
        self.0.block_size()
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn execute<'a>(
        &self,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        self.0.execute(batch, done);
    }
}
