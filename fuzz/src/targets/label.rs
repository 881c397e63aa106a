//! Any bytes as the label of a data device, with a right checksum unless the first byte is odd: read or
//! refused, and what was read is written as a label that reads the same.

use crate::Input;
use dedup_device::{BlockDevice, MemDevice};
use dedup_volume::{Label, refuse_if_in_use};

const LABEL_SIZE: usize = 512;
const CRC: std::ops::Range<usize> = 12..16;

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let sealed = input.u8() % 2 == 0;
    let size = u64::from(input.u16()) * 16;
    let device = MemDevice::new(size);
    let mut label = [0; LABEL_SIZE];
    let taken = input.bytes(LABEL_SIZE);
    label[..taken.len()].copy_from_slice(taken);
    if sealed {
        label[CRC].fill(0);
        let crc = crc32c::crc32c(&label);
        label[CRC].copy_from_slice(&crc.to_le_bytes());
    }
    let fits = LABEL_SIZE.min(size as usize);
    device.write(0, &label[..fits]).expect("within the device");
    let _ = refuse_if_in_use(&device, "data");
    if let Ok(read) = Label::read(&device) {
        let other = MemDevice::new(4096);
        read.write(&other).expect("memory takes writes");
        assert_eq!(Label::read(&other).expect("just written"), read);
    }
}
