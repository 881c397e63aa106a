//! The fuzz targets, each a function of an input's bytes. A panic is a finding.

pub mod image;
pub mod label;
pub mod log;
pub mod nbd_handshake;
pub mod nbd_transmission;
pub mod node;
pub mod record;
pub mod sizes;
pub mod superblock;

/// Runs one input.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const ALL: &[(&str, Target)] = &[
    ("image", image::run),
    ("label", label::run),
    ("log", log::run),
    ("nbd_handshake", nbd_handshake::run),
    ("nbd_transmission", nbd_transmission::run),
    ("node", node::run),
    ("record", record::run),
    ("sizes", sizes::run),
    ("superblock", superblock::run),
];
