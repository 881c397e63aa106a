//! A metadata device on which no checkpoint comes to its end, to fill the log beyond what checkpoints let it
//! grow to.
//!
//! Once it is [held](Held::hold), a write outside the log's ring waits for ever, and a flush says that it is
//! done. So commits go on, as fast as the device takes a write, and nothing that they leave is released. What
//! it lies about is lost only in a power cut; it is for a process that ends as if killed.

use dedup_device::{BlockDevice, InterceptDevice, IoKind};
use std::ops::Range;
use std::sync::Arc;
use std::sync::OnceLock;

/// Bytes of the ring, once the device is held.
#[derive(Debug)]
pub(crate) struct Held(Arc<OnceLock<Range<u64>>>);

impl Held {
    /// The device, which is not held yet, and what holds it.
    pub(crate) fn on(inner: Arc<dyn BlockDevice>) -> (Arc<dyn BlockDevice>, Self) {
        let held = Arc::new(OnceLock::<Range<u64>>::new());
        let ring = Arc::clone(&held);
        let device = InterceptDevice::new(inner, move |call| {
            if let Some(ring) = ring.get() {
                match call.kind() {
                    IoKind::Flush => return Ok(()),
                    IoKind::Write if !call.offsets().iter().all(|offset| ring.contains(offset)) => loop {
                        std::thread::park();
                    },
                    IoKind::Write | IoKind::Read | IoKind::Discard => {}
                }
            }
            call.pass();
            Ok(())
        });
        (Arc::new(device), Self(held))
    }

    /// From now on, only these bytes are written.
    pub(crate) fn hold(&self, ring: Range<u64>) {
        self.0.get_or_init(|| ring);
    }
}
