//! What a store must uphold: only verified blocks of the right version come out, each read once.

use super::*;
use crate::TxId;
use crate::test_device::TestDevice;

const POOL: Uuid = Uuid::from_u128(7);
const ANY_SHAPE: ShapeCheck<'static> = &|_| Ok(());

fn store(cache_blocks: usize) -> (Arc<TestDevice>, Store) {
    let device = Arc::new(TestDevice::new(64));
    (device.clone(), Store::new(device, POOL, cache_blocks))
}

/// Writes a sealed block whose payload is filled with `fill`.
fn put(store: &Store, number: u64, fill: u8) -> BlockRef {
    let mut block = Block::new(BlockType::Hint, 1, MetaBlock(number), TxId(3));
    block.payload.fill(fill);
    let crc = block.seal(POOL);
    write_blocks(&**store.device(), [&*block]).unwrap();
    BlockRef { block: MetaBlock(number), crc }
}

fn fault(result: Result<Arc<Block>, MetaError>) -> BlockFault {
    match result {
        Err(MetaError::Damaged { fault, .. }) => fault,
        other => panic!("expected damage, got {other:?}"),
    }
}

#[test]
fn a_second_read_comes_from_the_cache_and_runs_no_shape_check() {
    let (device, store) = store(100);
    let at = put(&store, 5, 1);
    store.read(at, BlockType::Hint, 1, ANY_SHAPE).unwrap();
    let again = store.read(at, BlockType::Hint, 1, &|_| panic!("checked twice")).unwrap();
    assert_eq!((again.payload[0], device.reads()), (1, 1));
}

#[test]
fn a_cached_block_of_another_version_is_read_again_from_the_device() {
    let (_, store) = store(100);
    let old = put(&store, 5, 1);
    store.read(old, BlockType::Hint, 1, ANY_SHAPE).unwrap();
    let new = put(&store, 5, 2);
    assert_eq!(store.read(new, BlockType::Hint, 1, ANY_SHAPE).unwrap().payload[0], 2);
    let expected = BlockFault::Version { expected: old.crc, found: new.crc };
    assert_eq!(fault(store.read(old, BlockType::Hint, 1, ANY_SHAPE)), expected);
}

#[test]
fn a_cached_block_is_not_given_out_as_another_type_or_level() {
    let (_, store) = store(100);
    let at = put(&store, 5, 1);
    store.read(at, BlockType::Hint, 1, ANY_SHAPE).unwrap();
    assert!(matches!(
        fault(store.read(at, BlockType::Bad, 1, ANY_SHAPE)),
        BlockFault::Field { field: "type", .. }
    ));
    assert!(matches!(
        fault(store.read(at, BlockType::Hint, 0, ANY_SHAPE)),
        BlockFault::Field { field: "level", .. }
    ));
}

#[test]
fn a_lost_write_is_seen_by_the_version_and_a_damaged_one_by_the_checksum() {
    let (device, store) = store(100);
    let at = put(&store, 5, 1);
    let wanted = BlockRef { crc: at.crc ^ 1, ..at };
    assert!(matches!(fault(store.read(wanted, BlockType::Hint, 1, ANY_SHAPE)), BlockFault::Version { .. }));
    device.corrupt(5, 4000);
    assert!(matches!(fault(store.read(at, BlockType::Hint, 1, ANY_SHAPE)), BlockFault::Checksum { .. }));
}

#[test]
fn a_block_with_a_bad_shape_is_not_cached() {
    let (_, store) = store(100);
    let at = put(&store, 5, 1);
    let bad = || BlockFault::Field { field: "keys", expected: "rising".into(), found: "falling".into() };
    assert_eq!(fault(store.read(at, BlockType::Hint, 1, &|_| Err(bad()))), bad());
    assert_eq!(store.cached(), 0);
}

#[test]
fn a_pointer_beyond_the_device_is_damage_not_a_panic() {
    let (_, store) = store(100);
    for number in [64, 1 << 60, u64::MAX] {
        let at = BlockRef { block: MetaBlock(number), crc: 0 };
        assert!(matches!(fault(store.read(at, BlockType::Hint, 0, ANY_SHAPE)), BlockFault::Field { .. }));
        store.prefetch(&[at], BlockType::Hint, 0, ANY_SHAPE);
        assert!(matches!(store.read_raw(MetaBlock(number)), Err(MetaError::Io { .. })));
        let stray = Block::new(BlockType::Hint, 0, MetaBlock(number), TxId(1));
        assert!(matches!(store.write_raw(&stray), Err(MetaError::Io { .. })));
    }
}

#[test]
fn prefetch_merges_neighbours_skips_what_is_cached_and_ignores_damage() {
    let (device, store) = store(100);
    let nodes: Vec<_> = [9, 7, 8, 20, 30].map(|n| put(&store, n, n as u8)).to_vec();
    store.read(nodes[3], BlockType::Hint, 1, ANY_SHAPE).unwrap();
    device.corrupt(30, 100);
    store.prefetch(&nodes, BlockType::Hint, 1, ANY_SHAPE);
    assert_eq!(device.reads(), 1 + 2, "one read before, then 7..=9 and 30");
    for &at in &nodes[..4] {
        store.read(at, BlockType::Hint, 1, ANY_SHAPE).unwrap();
    }
    assert_eq!(device.reads(), 3);
    assert!(matches!(
        fault(store.read(nodes[4], BlockType::Hint, 1, ANY_SHAPE)),
        BlockFault::Checksum { .. }
    ));
}

#[test]
fn the_cache_stays_within_its_capacity() {
    let (_, store) = store(8);
    for number in 1..60 {
        let at = put(&store, number, 0);
        store.read(at, BlockType::Hint, 1, ANY_SHAPE).unwrap();
        assert!(store.cached() <= 8);
    }
}
