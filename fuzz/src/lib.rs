//! What the fuzz targets share. A target turns bytes into a situation; this crate makes the situation one
//! that gets past the checksums, since a fuzzer that has to guess a CRC32C tests nothing but the CRC.
//!
//! - [`Input`]: numbers and slices off the front of the fuzzer's bytes, zeros when they run out;
//! - [`seal`](mod@seal): single metadata blocks of any bytes, with a right checksum;
//! - [`template`]: a small valid volume, whose blocks can be changed and then re-sealed from the leaves up to
//!   the superblocks;
//! - [`targets`]: the targets themselves;
//! - [`nbd`]: a server in this process, and a connection to it for each input.

pub mod input;
pub mod nbd;
pub mod seal;
pub mod targets;
pub mod template;

pub use input::Input;
