//! What a transaction must uphold: only own blocks are written, aborts leave no trace, failures are final.

use super::*;
use crate::test_device::TestDevice;
use crate::{BlockFault, META_BLOCK_SIZE};
use proptest::prelude::*;
use uuid::Uuid;

const POOL: Uuid = Uuid::from_u128(7);
const ANY_SHAPE: ShapeCheck<'static> = &|_| Ok(());

fn setup(blocks: u64) -> (Arc<TestDevice>, Store, SpaceMap) {
    let device = Arc::new(TestDevice::new(blocks as usize));
    let store = Store::new(device.clone(), POOL, 64);
    (device, store, SpaceMap::new(blocks))
}

fn node(tx: &Transaction<'_>, at: MetaBlock, fill: u8) -> Box<Block> {
    let mut block = Block::new(BlockType::Hint, 0, at, tx.birth());
    block.payload.fill(fill);
    block
}

fn put(tx: &mut Transaction<'_>, fill: u8) -> BlockRef {
    let at = tx.allocate().unwrap();
    let block = node(tx, at, fill);
    tx.write(block, ANY_SHAPE).unwrap()
}

#[test]
fn writes_are_seen_at_once_and_reach_the_device_as_one_operation_at_finish() {
    let (device, store, mut map) = setup(1024);
    let mut tx = Transaction::new(&store, &mut map, TxId(4));
    let refs: Vec<_> = (0..100).map(|i| put(&mut tx, i)).collect();
    for (i, &at) in refs.iter().enumerate() {
        assert_eq!(tx.read(at, BlockType::Hint, 0, ANY_SHAPE).unwrap().payload[0], i as u8);
    }
    assert!(device.write_sizes().is_empty());
    let outcome = tx.finish().unwrap();
    assert_eq!(outcome, Outcome { freed: vec![], allocated: 100, written: 100 });
    assert_eq!(device.write_sizes(), [100 * META_BLOCK_SIZE]);
    assert_eq!(map.in_use(), 100);
    let fresh = Store::new(device, POOL, 64);
    for &at in &refs {
        let block = fresh.read(at, BlockType::Hint, 0, ANY_SHAPE).unwrap();
        assert_eq!(block.header.birth.get(), 4);
    }
}

#[test]
fn no_more_than_one_largest_operation_waits_in_memory() {
    let (device, store, mut map) = setup(1024);
    let mut tx = Transaction::new(&store, &mut map, TxId(1));
    for i in 0..600 {
        put(&mut tx, i as u8);
        assert!(tx.pending.len() < PENDING_MAX);
    }
    assert_eq!(device.write_sizes(), [256 * META_BLOCK_SIZE; 2]);
    assert_eq!(tx.finish().unwrap().written, 600);
}

#[test]
fn an_own_block_that_is_freed_is_not_written_and_can_be_used_again() {
    let (device, store, mut map) = setup(2);
    let mut tx = Transaction::new(&store, &mut map, TxId(1));
    let first = put(&mut tx, 1);
    put(&mut tx, 2);
    assert!(matches!(tx.allocate(), Err(MetaError::NoSpace { in_use: 2, total: 2 })));
    tx.free(first.block);
    assert_eq!(tx.allocate().unwrap(), first.block);
    assert!(tx.read(first, BlockType::Hint, 0, ANY_SHAPE).is_err(), "the old content is gone");
    let outcome = tx.finish().unwrap();
    assert_eq!((outcome.allocated, outcome.written), (2, 1));
    assert_eq!(device.write_sizes(), [META_BLOCK_SIZE]);
}

#[test]
fn an_older_block_is_only_recorded_when_freed() {
    let (_, store, mut map) = setup(8);
    map.set_count(5, 1);
    let mut tx = Transaction::new(&store, &mut map, TxId(2));
    tx.free(MetaBlock(5));
    assert_eq!(tx.freed().collect::<Vec<_>>(), [MetaBlock(5)]);
    assert_eq!(tx.finish().unwrap().freed, [MetaBlock(5)]);
    assert_eq!(map.count(5), 1);
}

#[test]
fn freeing_twice_or_freeing_what_is_free_ends_the_transaction() {
    for (first, second) in [(5, 5), (6, 6), (100, 100), (u64::MAX, u64::MAX)] {
        let (device, store, mut map) = setup(8);
        map.set_count(5, 1);
        let mut tx = Transaction::new(&store, &mut map, TxId(2));
        put(&mut tx, 1);
        tx.free(MetaBlock(first));
        tx.free(MetaBlock(second));
        assert!(matches!(tx.allocate(), Err(MetaError::Dead { .. })));
        assert!(matches!(tx.finish(), Err(MetaError::Dead { .. })));
        assert!(device.write_sizes().is_empty());
        assert_eq!(map.in_use(), 1);
    }
}

#[test]
fn a_node_of_bad_shape_is_refused_before_it_is_written() {
    let (device, store, mut map) = setup(8);
    let mut tx = Transaction::new(&store, &mut map, TxId(2));
    let at = tx.allocate().unwrap();
    let block = node(&tx, at, 1);
    let bad = || BlockFault::Field { field: "keys", expected: "rising".into(), found: "falling".into() };
    assert!(
        matches!(tx.write(block, &|_| Err(bad())), Err(MetaError::Damaged { fault, .. }) if fault == bad())
    );
    assert_eq!(tx.finish().unwrap().written, 0);
    assert!(device.write_sizes().is_empty());
}

#[test]
#[should_panic(expected = "I1")]
fn a_block_that_the_transaction_does_not_own_is_never_written() {
    let (_, store, mut map) = setup(8);
    map.set_count(5, 1);
    let mut tx = Transaction::new(&store, &mut map, TxId(2));
    let block = node(&tx, MetaBlock(5), 1);
    let _ = tx.write(block, ANY_SHAPE);
}

#[test]
fn after_a_failed_write_every_call_fails_and_the_blocks_go_back() {
    let (device, store, mut map) = setup(1024);
    let mut tx = Transaction::new(&store, &mut map, TxId(2));
    let first = put(&mut tx, 0);
    for i in 1..255 {
        put(&mut tx, i);
    }
    device.fail_writes(true);
    let at = tx.allocate().unwrap();
    let block = node(&tx, at, 1);
    assert!(matches!(tx.write(block, ANY_SHAPE), Err(MetaError::Io { operation: "write", .. })));
    device.fail_writes(false);
    let block = node(&tx, at, 1);
    assert!(matches!(tx.write(block, ANY_SHAPE), Err(MetaError::Dead { .. })));
    assert!(matches!(tx.allocate(), Err(MetaError::Dead { .. })));
    assert!(matches!(tx.read(first, BlockType::Hint, 0, ANY_SHAPE), Err(MetaError::Dead { .. })));
    assert!(matches!(tx.finish(), Err(MetaError::Dead { .. })));
    assert_eq!(map.in_use(), 0);
    assert_eq!(store.cached(), 0, "nothing of it can be read");
}

proptest! {
    /// Whatever is allocated, rewritten and freed: an abort restores the map, a finish keeps exactly the live
    /// blocks, and the device then holds the last version of each.
    #[test]
    fn a_transaction_keeps_what_is_live_or_leaves_no_trace(
        ops in prop::collection::vec((0u8..4, any::<prop::sample::Index>(), any::<u8>()), 1..800),
        finish: bool,
    ) {
        let (device, store, mut map) = setup(512);
        [3, 4, 400].into_iter().for_each(|b| map.set_count(b, 1));
        let before: Vec<u8> = (0..512).map(|b| map.count(b)).collect();
        let mut tx = Transaction::new(&store, &mut map, TxId(9));
        let mut live: Vec<(BlockRef, u8)> = Vec::new();
        for (op, pick, fill) in ops {
            match op {
                0 | 1 if live.len() < 500 => live.push((put(&mut tx, fill), fill)),
                2 if !live.is_empty() => {
                    let i = pick.index(live.len());
                    let block = node(&tx, live[i].0.block, fill);
                    live[i] = (tx.write(block, ANY_SHAPE).unwrap(), fill);
                }
                3 if !live.is_empty() => tx.free(live.swap_remove(pick.index(live.len())).0.block),
                _ => {}
            }
        }
        if !finish {
            drop(tx);
            prop_assert_eq!(before, (0..512).map(|b| map.count(b)).collect::<Vec<_>>());
            return Ok(());
        }
        prop_assert_eq!(tx.finish().unwrap().allocated, live.len() as u64);
        prop_assert_eq!(map.in_use(), live.len() as u64 + 3);
        let fresh = Store::new(device, POOL, 0);
        for (at, fill) in live {
            prop_assert_eq!(fresh.read(at, BlockType::Hint, 0, ANY_SHAPE).unwrap().payload[0], fill);
            prop_assert_eq!(map.count(at.block.0), 1);
        }
    }
}
