//! What a leaf of an array tree holds: `PER_LEAF` values in a payload of 4064 bytes.

use crate::rule::{check_unused, fault};
use dedup_meta::{BlockFault, PAYLOAD_SIZE};

/// How values stand in a leaf's payload, which is always `PAYLOAD_SIZE` bytes. A payload of zeros must hold
/// nothing but default values.
pub trait LeafCodec {
    /// A value; its default is what an absent leaf holds.
    type Value: Copy + PartialEq + Default;
    /// Values in a leaf: at least 1 and at most 65535, as a leaf's header counts those in use in 16 bits.
    const PER_LEAF: u64;
    /// The value in `slot`, below `PER_LEAF`.
    fn get(payload: &[u8], slot: usize) -> Self::Value;
    /// Sets the value in `slot`.
    fn set(payload: &mut [u8], slot: usize, value: Self::Value);
    /// Values that are not the default.
    fn used(payload: &[u8]) -> u32;
    /// Whether every value is one that may stand in a leaf, and unused bytes are zero. Asked before each
    /// write and after each read.
    fn check(payload: &[u8]) -> Result<(), BlockFault>;
}

/// The codec for values that are `N` bytes: slot i at i * N, zeros after the last.
///
/// A payload holds 338 values of 12 bytes, 127 of 32. Other codecs wrap it and add the meaning of the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<const N: usize>;

/// `[u8; N]` as a value. A type of its own because the standard library gives arrays a default only up to 32
/// elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot<const N: usize>(pub [u8; N]);

impl<const N: usize> Default for Slot<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> LeafCodec for Bytes<N> {
    type Value = Slot<N>;

    const PER_LEAF: u64 = (PAYLOAD_SIZE / N) as u64;

    fn get(payload: &[u8], slot: usize) -> Slot<N> {
        let mut value = [0; N];
        value.copy_from_slice(&payload[slot * N..][..N]);
        Slot(value)
    }

    fn set(payload: &mut [u8], slot: usize, value: Slot<N>) {
        payload[slot * N..][..N].copy_from_slice(&value.0);
    }

    fn used(payload: &[u8]) -> u32 {
        let slots = payload.chunks_exact(N).take(Self::PER_LEAF as usize);
        slots.filter(|slot| slot.iter().any(|byte| *byte != 0)).count() as u32
    }

    fn check(payload: &[u8]) -> Result<(), BlockFault> {
        if payload.len() != PAYLOAD_SIZE {
            return Err(fault("payload", PAYLOAD_SIZE, payload.len()));
        }
        check_unused(&payload[Self::PER_LEAF as usize * N..])
    }
}
