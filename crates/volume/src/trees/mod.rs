//! The trees of a volume and what stands before and above them: runs, filters, the digests near the last
//! hits. They read and write nodes and know nothing of operations.

pub(crate) mod bloom;
pub(crate) mod filter;
pub(crate) mod index;
pub(crate) mod lbn_map;
pub(crate) mod metamap;
pub(crate) mod neighbours;
pub(crate) mod run_filters;
pub(crate) mod runs;
pub(crate) mod tables;
