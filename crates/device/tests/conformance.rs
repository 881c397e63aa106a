//! What every device must do, checked on every device against plain bytes.
//!
//! - Random reads, writes, batches, flushes and cache bypasses leave what a `Vec<u8>` holds: one property,
//!   run on memory, on the simulated disk, and on a file with buffered and with direct I/O.
//! - Batches deeper than any queue, and with more buffers than a system call takes.
//! - Ranges beyond the end or off the alignment are refused and change nothing.
//! - Discard never harms what lies beside it.
#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy does not take for tests")]

mod common;

use common::{direct_or_skip, file_device};
use dedup_device::{AlignedBuf, BlockDevice, IoMode, MemDevice, ReadOp, SimDevice, SparseImage, WriteOp};
use proptest::collection::vec;
use proptest::prelude::*;

/// Units of a device under test; a prime, so that nothing divides it.
const UNITS: u64 = 257;
/// A unit of a device that takes any alignment: odd, so that everything is unaligned.
const ODD_UNIT: u64 = 37;

/// A read or write in units of the device.
#[derive(Clone, Debug)]
struct Span {
    start: u64,
    /// Units in each of its buffers.
    bufs: Vec<u64>,
    /// Whether the memory is fit for direct I/O.
    aligned: bool,
    fill: u8,
}

impl Span {
    fn units(&self) -> u64 {
        self.bufs.iter().sum()
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.start < other.start + other.units() && other.start < self.start + self.units()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Reads(Vec<Span>),
    Writes(Vec<Span>),
    Flush,
    Bypass,
}

fn span() -> impl Strategy<Value = Span> {
    (0..UNITS, vec(0..9_u64, 1..5), any::<bool>(), 1..=u8::MAX).prop_map(
        |(start, mut bufs, aligned, fill)| {
            let mut room = UNITS - start;
            for units in &mut bufs {
                *units = room.min(*units);
                room -= *units;
            }
            Span { start, bufs, aligned, fill }
        },
    )
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => vec(span(), 1..12).prop_map(Step::Reads),
        4 => vec(span(), 1..12).prop_map(Step::Writes),
        1 => Just(Step::Flush),
        1 => Just(Step::Bypass),
    ];
    vec(step, 1..20)
}

/// Memory of a span's buffers, each fit or unfit for direct I/O.
struct Memory {
    buf: AlignedBuf,
    skip: usize,
    lens: Vec<usize>,
}

impl Memory {
    fn new(span: &Span, unit: u64) -> Self {
        let lens: Vec<usize> = span.bufs.iter().map(|u| (u * unit) as usize).collect();
        let skip = usize::from(!span.aligned);
        Self { buf: AlignedBuf::zeroed(skip + lens.iter().sum::<usize>()), skip, lens }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.buf[self.skip..]
    }

    fn bufs(&self) -> Vec<&[u8]> {
        let mut rest = &self.buf[self.skip..];
        self.lens.iter().map(|len| rest.split_off(..*len).unwrap()).collect()
    }

    fn bufs_mut(&mut self) -> Vec<&mut [u8]> {
        let mut rest = &mut self.buf[self.skip..];
        self.lens.iter().map(|len| rest.split_off_mut(..*len).unwrap()).collect()
    }
}

/// Plays `steps` on the device's part from byte `base` on, and on a plain copy of it.
fn behaves_like_bytes(device: &dyn BlockDevice, base: u64, steps: &[Step]) {
    let alignment = device.io_alignment() as u64;
    let unit = if alignment == 1 { ODD_UNIT } else { alignment };
    let mut model = vec![0_u8; (UNITS * unit) as usize];
    device.read(base, &mut model).unwrap();
    let range = |span: &Span| (span.start * unit) as usize..((span.start + span.units()) * unit) as usize;
    for step in steps {
        match step {
            Step::Reads(spans) => {
                let mut memory: Vec<Memory> = spans.iter().map(|s| Memory::new(s, unit)).collect();
                let mut ops: Vec<_> = spans
                    .iter()
                    .zip(&mut memory)
                    .map(|(s, m)| ReadOp::new(base + s.start * unit, m.bufs_mut()))
                    .collect();
                device.read_batch(&mut ops);
                ops.into_iter().for_each(|op| op.result.unwrap());
                for (span, memory) in spans.iter().zip(&mut memory) {
                    assert_eq!(memory.bytes(), &model[range(span)], "{span:?}");
                }
            }
            Step::Writes(spans) => {
                let mut apart: Vec<&Span> = Vec::new();
                for span in spans {
                    if !apart.iter().any(|other| other.overlaps(span)) {
                        apart.push(span);
                    }
                }
                let mut memory: Vec<Memory> = apart.iter().map(|s| Memory::new(s, unit)).collect();
                for (span, memory) in apart.iter().zip(&mut memory) {
                    let bytes = memory.bytes();
                    bytes.fill(span.fill);
                    bytes.iter_mut().enumerate().for_each(|(i, b)| *b = b.wrapping_add((i / 64) as u8));
                    model[range(span)].copy_from_slice(bytes);
                }
                let mut ops: Vec<_> = apart
                    .iter()
                    .zip(&memory)
                    .map(|(s, m)| WriteOp::new(base + s.start * unit, m.bufs()))
                    .collect();
                device.write_batch(&mut ops);
                ops.into_iter().for_each(|op| op.result.unwrap());
            }
            Step::Flush => device.flush().unwrap(),
            Step::Bypass => {
                device.bypass_cache().unwrap();
            }
        }
    }
    let mut end = vec![0; model.len()];
    device.read(base, &mut end).unwrap();
    assert_eq!(end, model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn memory_behaves_like_bytes(steps in steps()) {
        // Across the boundary between two chunks of the sparse image.
        behaves_like_bytes(&MemDevice::new(1 << 20), (256 << 10) - 4000, &steps);
    }

    #[test]
    fn simulated_disk_behaves_like_bytes(steps in steps()) {
        behaves_like_bytes(&SimDevice::new(1 << 20), (256 << 10) - 4096, &steps);
    }

    #[test]
    fn buffered_file_behaves_like_bytes(steps in steps()) {
        // The end of the file is at an odd byte, which direct reads after a bypass must cope with.
        let (_dir, device) = file_device(UNITS * ODD_UNIT, IoMode::Buffered);
        behaves_like_bytes(&device, 0, &steps);
    }

    #[test]
    fn direct_file_behaves_like_bytes(steps in steps()) {
        let Some((_dir, device)) = direct_or_skip(UNITS * 4096) else { return Ok(()) };
        behaves_like_bytes(&device, 0, &steps);
    }
}

/// Every kind of device, of 4 MiB.
fn all_devices() -> Vec<(Option<tempfile::TempDir>, Box<dyn BlockDevice>)> {
    let size = 4 << 20;
    let (dir, buffered) = file_device(size, IoMode::Buffered);
    let mut all: Vec<(_, Box<dyn BlockDevice>)> = vec![
        (None, Box::new(MemDevice::new(size))),
        (None, Box::new(SimDevice::new(size))),
        (Some(dir), Box::new(buffered)),
    ];
    if let Some((dir, direct)) = direct_or_skip(size) {
        all.push((Some(dir), Box::new(direct)));
    }
    all
}

#[test]
fn a_batch_may_be_deeper_than_any_queue() {
    for (_dir, device) in all_devices() {
        let pages: Vec<AlignedBuf> = (0..500_u32)
            .map(|n| {
                let mut page = AlignedBuf::zeroed(4096);
                page[..4].copy_from_slice(&n.to_le_bytes());
                page
            })
            .collect();
        let place = |n: usize| (n * 7 % 500 * 8192) as u64;
        let mut writes: Vec<_> =
            pages.iter().enumerate().map(|(n, page)| WriteOp::new(place(n), vec![page])).collect();
        device.write_batch(&mut writes);
        assert!(writes.iter().all(|op| op.result.is_ok()), "{device:?}");
        let mut back: Vec<AlignedBuf> = (0..500).map(|_| AlignedBuf::zeroed(4096)).collect();
        let mut reads: Vec<_> =
            back.iter_mut().enumerate().map(|(n, page)| ReadOp::new(place(n), vec![page])).collect();
        device.read_batch(&mut reads);
        assert!(reads.iter().all(|op| op.result.is_ok()), "{device:?}");
        assert!(pages.iter().zip(&back).all(|(a, b)| a[..] == b[..]), "{device:?}");
    }
}

#[test]
fn an_operation_may_have_more_buffers_than_a_system_call_takes() {
    for (_dir, device) in all_devices() {
        let mut data = AlignedBuf::zeroed(2600 * 512);
        data.chunks_mut(512).enumerate().for_each(|(n, b)| b.fill((n % 251) as u8 + 1));
        // Two, so that a batch engine sees them.
        let mut writes =
            [WriteOp::new(0, data.chunks(512).collect()), WriteOp::new(3 << 20, vec![&data[..4096]])];
        device.write_batch(&mut writes);
        writes.into_iter().for_each(|op| op.result.unwrap());
        let (mut back, mut other) = (AlignedBuf::zeroed(2600 * 512), AlignedBuf::zeroed(4096));
        let mut reads =
            [ReadOp::new(0, back.chunks_mut(512).collect()), ReadOp::new(3 << 20, vec![&mut other])];
        device.read_batch(&mut reads);
        reads.into_iter().for_each(|op| op.result.unwrap());
        assert!(back[..] == data[..] && other[..] == data[..4096], "{device:?}");
    }
}

#[test]
fn threads_may_share_a_device() {
    for (_dir, device) in all_devices() {
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let device = &device;
                scope.spawn(move || {
                    for round in 1..20_u8 {
                        let data = vec![round * 8 + thread as u8; 8192];
                        let at = |n: u64| (thread * 64 + n) * 8192;
                        let mut writes: Vec<_> = (0..8).map(|n| WriteOp::new(at(n), vec![&data])).collect();
                        device.write_batch(&mut writes);
                        writes.into_iter().for_each(|op| op.result.unwrap());
                        let mut back = vec![0; 8 * 8192];
                        device.read(at(0), &mut back).unwrap();
                        assert!(back.iter().all(|b| *b == data[0]));
                    }
                });
            }
        });
    }
}

#[test]
fn a_range_beyond_the_end_is_refused_and_fails_alone() {
    for (_dir, device) in all_devices() {
        let size = device.size();
        let data = AlignedBuf::zeroed(8192);
        for offset in [size - 4096, size, u64::MAX - 4095] {
            assert!(device.write(offset, &data).is_err());
            assert!(device.read(offset, &mut AlignedBuf::zeroed(8192)).is_err());
            assert!(device.discard(offset, 8192).is_err());
        }
        let mut ops = [WriteOp::new(size, vec![&data]), WriteOp::new(0, vec![&data])];
        device.write_batch(&mut ops);
        assert!(ops[0].result.is_err() && ops[1].result.is_ok(), "{device:?}");
        assert_eq!(device.size(), size);
    }
}

#[test]
fn an_unaligned_range_is_refused_where_alignment_matters() {
    for (_dir, device) in all_devices().into_iter().filter(|(_, d)| d.io_alignment() > 1) {
        for (offset, len) in [(1, 4096), (0, 4095), (256, 256)] {
            let refused = device.write(offset, &vec![1; len]).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput);
            assert!(device.read(offset, &mut vec![1; len]).is_err());
        }
    }
}

#[test]
fn an_empty_operation_succeeds() {
    for (_dir, device) in all_devices() {
        device.write(0, &[]).unwrap();
        device.read(device.size(), &mut []).unwrap();
        device.read_batch(&mut []);
        let mut ops = [ReadOp::new(0, vec![]), ReadOp::new(4096, vec![])];
        device.read_batch(&mut ops);
        assert!(ops.iter().all(|op| op.result.is_ok()));
    }
}

#[test]
fn a_discard_leaves_its_neighbours_alone() {
    for (_dir, device) in all_devices() {
        let mut data = AlignedBuf::zeroed(64 << 10);
        data.fill(7);
        device.write(0, &data).unwrap();
        device.discard(8192, 16384).unwrap();
        let mut back = AlignedBuf::zeroed(64 << 10);
        device.read(0, &mut back).unwrap();
        assert!(back[..8192].iter().chain(&back[24576..]).all(|b| *b == 7), "{device:?}");
    }
}

#[test]
fn an_operation_that_no_device_ran_is_not_ok() {
    assert!(ReadOp::new(0, vec![]).result.is_err());
    assert!(WriteOp::new(0, vec![]).result.is_err());
}

#[test]
fn memory_discards_whole_pages_and_can_be_copied() {
    let device = MemDevice::new(1 << 40);
    device.write(1 << 39, &[1; 64 << 10]).unwrap();
    let copy = MemDevice::from_image(device.image());
    device.discard(0, 1 << 40).unwrap();
    assert_eq!(device.image(), SparseImage::new(1 << 40));
    assert_eq!(copy.image().stored_bytes(), 64 << 10);
}
