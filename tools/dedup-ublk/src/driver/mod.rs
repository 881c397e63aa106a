//! What needs the kernel's driver, through `libublk`.
//!
//! - [`kernel`]: what this kernel can do, and words for when it cannot;
//! - [`serve`]: `add` and `recover`: from arguments to a device that is served, and its end;
//! - [`queue`]: one queue: the driver's ring on one side, workers on the other;
//! - [`manage`]: `del` and `list`.

pub(crate) mod kernel;
pub(crate) mod manage;
pub(crate) mod queue;
pub(crate) mod serve;
