//! Pins of readers, as the engine has them: a point in the order of operations, and the trees as of it.

use crate::trees::tables::Tables;
use dedup_meta::TxId;
use dedup_schema::Seq;

/// All of them.
pub(crate) type Pins = dedup_sync::Pins<Seq, TxId>;
/// One of them.
pub(crate) type Pin<'a> = dedup_sync::Pin<'a, Seq, TxId, Tables>;
/// What is left of one that needs no trees any more.
pub(crate) type DataPin<'a> = dedup_sync::DataPin<'a, Seq, TxId>;
