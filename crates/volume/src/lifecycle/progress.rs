//! How far an open is, for those who wait for it.
//!
//! The log is read in one pass, at the rate of the device, and then replayed, block by block, with a look
//! into the trees for what each names: that is what takes long, and its length is known from the pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The progress of an open; its clones are one.
#[derive(Clone, Debug, Default)]
pub struct OpenProgress(Arc<Replayed>);

#[derive(Debug, Default)]
struct Replayed {
    blocks: AtomicU64,
    /// 0: not known yet.
    of: AtomicU64,
}

impl OpenProgress {
    /// The log has so many blocks to be replayed.
    pub(crate) fn begin(&self, blocks: u64) {
        self.0.blocks.store(0, Ordering::Relaxed);
        self.0.of.store(blocks, Ordering::Relaxed);
    }

    /// One more has been.
    pub(crate) fn advance(&self) {
        self.0.blocks.fetch_add(1, Ordering::Relaxed);
    }

    /// How much of the log has been replayed, in percent: 0 until it has been read.
    pub fn percent(&self) -> u64 {
        let (blocks, of) = (self.0.blocks.load(Ordering::Relaxed), self.0.of.load(Ordering::Relaxed));
        (blocks.min(of) * 100).checked_div(of).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_from_nothing_to_all_of_it() {
        let progress = OpenProgress::default();
        assert_eq!(progress.percent(), 0);
        progress.begin(3);
        let seen = progress.clone();
        let percents: Vec<u64> = (0..3)
            .map(|_| {
                progress.advance();
                seen.percent()
            })
            .collect();
        assert_eq!(percents, [33, 66, 100]);
        progress.begin(0);
        assert_eq!(seen.percent(), 0);
    }
}
