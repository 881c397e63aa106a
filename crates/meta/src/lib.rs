//! Checksummed metadata blocks and what keeps them: cache, transactions, superblocks, the intent log.

mod block;
mod error;
mod ids;
mod node;

pub use block::{Block, BlockFault, BlockType, HEADER_SIZE, Header, META_BLOCK_SIZE, PAYLOAD_SIZE, field};
pub use error::MetaError;
pub use ids::{Epoch, LogSeq, MetaBlock, TxId};
pub use node::{BlockRef, NodeSink, NodeSource, Root, ShapeCheck};
