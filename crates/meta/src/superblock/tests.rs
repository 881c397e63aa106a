//! What superblocks must uphold: nothing is lost on the way to disk and back, no bad field passes, and the
//! right copy wins.

use super::disk::Decoded;
use super::*;
use crate::BlockRef;
use crate::test_device::TestDevice;
use proptest::prelude::*;
use std::sync::Arc;

const POOL: Uuid = Uuid::from_u128(7);
const OTHER_POOL: Uuid = Uuid::from_u128(8);
const BLOCKS: u64 = 1024;

fn root(block: u64) -> Root {
    Root {
        node: Some(BlockRef { block: MetaBlock(block), crc: block as u32 * 3 }),
        level: 2,
        entries: block * 100,
    }
}

fn sample(pool: Uuid, txid: u64) -> Superblock {
    Superblock {
        features: Features {
            compat: 5,
            ro_compat: 0,
            incompat: Features::INDEX_RUNS | Features::MAPPING_RUNS,
        },
        pool,
        data_device: Uuid::from_u128(9),
        txid: TxId(txid),
        block_size: 4096,
        digest_algorithm: 3,
        verify_match: true,
        flushrq: 1000,
        data_blocks: 5000,
        layout: Layout::new(BLOCKS, 64).unwrap(),
        clean: true,
        needs_check: false,
        recount_needed: true,
        epoch: Epoch(4),
        epoch_start: LogSeq(70),
        log: LogPosition { next: LogSeq(77), prev_crc: 0xabcd },
        op_seq: 12345,
        counters: std::array::from_fn(|i| i as u64 * 11),
        data_used: 4000,
        mapped: 4500,
        cursor: 4001,
        hint_rebuild_next: Some(17),
        roots: Roots {
            digest: root(400),
            refcount: root(401),
            overflow: Root::EMPTY,
            bad: Root::EMPTY,
            metamap: root(402),
        },
        hint: RunSet { base: root(403), runs: vec![root(404), Root::EMPTY, root(405), root(408)] },
        volumes: vec![Volume {
            id: 1,
            logical_blocks: 9000,
            mapping: RunSet { base: root(406), runs: vec![root(407); 16] },
        }],
        journal: Some(JournalRecord {
            id: Uuid::from_u128(21),
            boot: Uuid::from_u128(22),
            place: "/run/journal".into(),
        }),
    }
}

fn setup(pool: Uuid) -> (Arc<TestDevice>, Store) {
    let device = Arc::new(TestDevice::new(BLOCKS as usize));
    (device.clone(), Store::new(device, pool, 0))
}

fn decode(block: &Block, at: MetaBlock) -> Result<Superblock, BlockFault> {
    match Superblock::decode(block, at)? {
        Decoded::Known(superblock) => Ok(*superblock),
        Decoded::Unsupported(reason) => panic!("{reason}"),
    }
}

#[test]
fn a_superblock_survives_disk_in_slot_and_spare() {
    for txid in [6, 7] {
        let superblock = sample(POOL, txid);
        for at in [superblock.layout.slot(TxId(txid)), superblock.layout.spare(TxId(txid))] {
            assert_eq!(decode(&superblock.encode(at).unwrap(), at).unwrap(), superblock);
        }
    }
}

#[test]
fn slots_alternate_and_spares_stand_at_the_end() {
    let layout = sample(POOL, 0).layout;
    assert_eq!([8, 9].map(|t| layout.slot(TxId(t)).0), [0, 256]);
    assert_eq!([8, 9].map(|t| layout.spare(TxId(t)).0), [BLOCKS - 1, BLOCKS - 257]);
    assert!(
        sample(POOL, 8).encode(MetaBlock(256)).is_err(),
        "an even transaction does not belong into slot 1"
    );
}

#[test]
fn a_field_out_of_range_is_named_and_never_written() {
    type Break = fn(&mut Superblock);
    let cases: [(&str, Break); 32] = [
        ("pool uuid", |s| s.pool = Uuid::nil()),
        ("data device uuid", |s| s.data_device = Uuid::nil()),
        ("txid", |s| s.txid = TxId(1 << 62)),
        ("block_size", |s| s.block_size = 4097),
        ("block_size", |s| s.block_size = 2 << 20),
        ("digest algorithm", |s| s.digest_algorithm = 0),
        ("data_blocks", |s| s.data_blocks = (1 << 48) + 1),
        ("data_blocks", |s| (s.data_blocks, s.block_size) = (1 << 44, 1 << 20)),
        ("logical_blocks", |s| (s.volumes[0].logical_blocks, s.block_size) = (1 << 44, 1 << 20)),
        ("metadata_blocks", |s| s.layout.metadata_blocks = 1023),
        ("metadata_blocks", |s| s.layout.metadata_blocks = 1 << 40),
        ("log_blocks", |s| (s.layout.metadata_blocks, s.layout.log.blocks) = (1 << 30, 1 << 26)),
        ("log_start", |s| s.layout.log.start = MetaBlock(256)),
        ("log_blocks", |s| s.layout.log.blocks = 0),
        ("epoch", |s| s.epoch = Epoch(u64::MAX)),
        ("epoch_start", |s| s.epoch_start = LogSeq(u64::MAX)),
        ("log_next", |s| s.log.next = LogSeq(u64::MAX)),
        ("op_seq", |s| s.op_seq = u64::MAX),
        ("data_used", |s| s.data_used = 5000),
        ("mapped", |s| s.mapped = 9001),
        ("cursor", |s| s.cursor = 5001),
        ("hint_rebuild_next", |s| s.hint_rebuild_next = Some(5001)),
        ("volume_count", |s| s.volumes.clear()),
        ("run_count", |s| s.hint.runs = vec![Root::EMPTY; 17]),
        ("run_count", |s| s.hint.runs.truncate(3)),
        ("incompat", |s| s.hint.runs.clear()),
        ("incompat", |s| s.volumes[0].mapping.runs.clear()),
        ("metamap root", |s| s.roots.metamap = root(256)),
        ("bad root", |s| s.roots.bad = Root { level: 1, ..Root::EMPTY }),
        ("journal id", |s| s.journal.as_mut().unwrap().id = Uuid::nil()),
        ("journal boot", |s| s.journal.as_mut().unwrap().boot = Uuid::nil()),
        ("journal place", |s| s.journal.as_mut().unwrap().place = "x".repeat(JOURNAL_PLACE_MAX + 1)),
    ];
    for (name, spoil) in cases {
        let mut superblock = sample(POOL, 6);
        spoil(&mut superblock);
        match superblock.encode(MetaBlock(0)) {
            Err(BlockFault::Field { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// The payload at `offset` is changed and the block sealed again.
fn forged(superblock: &Superblock, offset: usize, bytes: &[u8]) -> Box<Block> {
    let mut block = superblock.encode(MetaBlock(0)).unwrap();
    block.payload[offset..offset + bytes.len()].copy_from_slice(bytes);
    block.seal(superblock.pool);
    block
}

#[test]
fn a_newer_version_and_unknown_incompatible_features_are_told_apart_from_damage() {
    let (device, store) = setup(POOL);
    write_superblock(&store, &sample(POOL, 5)).unwrap();
    store.write_raw(&forged(&sample(POOL, 6), 8, &2u32.to_le_bytes())).unwrap();
    let reason = Unsupported::Version { found: 2, known: 1 };
    let error = SuperblockError::Unsupported { block: MetaBlock(0), reason };
    assert_eq!(load_superblocks(&*device).newest(Some(POOL)).unwrap_err(), error);
    assert_eq!(load_superblocks(&*device).next_txid(POOL), TxId(7));

    store.write_raw(&forged(&sample(POOL, 6), 32, &0x30u64.to_le_bytes())).unwrap();
    let error = load_superblocks(&*device).newest(None).unwrap_err();
    let reason = Unsupported::Incompat { unknown: 0x30 };
    assert_eq!(error, SuperblockError::Unsupported { block: MetaBlock(0), reason });
}

/// A copy of another version whose transaction is the last number there is made an open add one to it.
#[test]
fn a_newer_version_of_a_transaction_that_nothing_can_follow_is_damage() {
    let (device, store) = setup(POOL);
    write_superblock(&store, &sample(POOL, 5)).unwrap();
    let mut block = forged(&sample(POOL, 6), 8, &2u32.to_le_bytes());
    block.header.birth.set(u64::MAX);
    block.seal(POOL);
    store.write_raw(&block).unwrap();
    let survey = load_superblocks(&*device);
    assert_eq!(survey.next_txid(POOL), TxId(6));
    assert_eq!(survey.newest(Some(POOL)).unwrap().txid, TxId(5));
}

#[test]
fn unknown_ro_compatible_features_allow_reading_only() {
    assert_eq!(sample(POOL, 6).access(), Access::ReadWrite);
    let block = forged(&sample(POOL, 6), 24, &4u64.to_le_bytes());
    assert_eq!(decode(&block, MetaBlock(0)).unwrap().access(), Access::ReadOnly { unknown: 4 });
}

#[test]
fn the_newest_valid_copy_wins_and_falls_back_in_order() {
    let (device, store) = setup(POOL);
    for txid in [5, 6] {
        write_superblock(&store, &sample(POOL, txid)).unwrap();
        write_spare(&store, &sample(POOL, txid)).unwrap();
    }
    let newest_after = |block: Option<u64>| {
        block.into_iter().for_each(|b| device.corrupt(b, 2000));
        load_superblocks(&*device).newest(None).map(|sb| sb.txid.0)
    };
    let survey = load_superblocks(&*device);
    assert_eq!(survey.older(survey.newest(None).unwrap()).unwrap().txid, TxId(5));
    assert_eq!((survey.next_txid(POOL), survey.highest_epoch(POOL)), (TxId(7), Some(Epoch(4))));
    assert_eq!(newest_after(None), Ok(6));
    assert_eq!(newest_after(Some(0)), Ok(6), "its spare");
    assert_eq!(newest_after(Some(BLOCKS - 1)), Ok(5));
    assert_eq!(newest_after(Some(256)), Ok(5), "its spare");
    assert!(matches!(newest_after(Some(BLOCKS - 257)), Err(SuperblockError::AllDamaged { .. })));
}

#[test]
fn writing_a_superblock_never_touches_the_newest_one() {
    let (device, store) = setup(POOL);
    write_superblock(&store, &sample(POOL, 5)).unwrap();
    store.flush().unwrap();
    for txid in 6..10 {
        write_superblock(&store, &sample(POOL, txid)).unwrap();
        device.corrupt(sample(POOL, txid).layout.slot(TxId(txid)).0, 900);
        assert_eq!(load_superblocks(&*device).newest(None).unwrap().txid, TxId(txid - 1));
        write_superblock(&store, &sample(POOL, txid)).unwrap();
    }
}

#[test]
fn an_unreadable_slot_does_not_hinder_the_others() {
    let (device, store) = setup(POOL);
    write_superblock(&store, &sample(POOL, 5)).unwrap();
    device.make_unreadable(0);
    let survey = load_superblocks(&*device);
    assert!(matches!(survey.copies[0].state, CopyState::Unreadable(_)));
    assert_eq!(survey.newest(None).unwrap().txid, TxId(5));
}

#[test]
fn copies_of_another_pool_count_only_if_asked_for() {
    let (device, store) = setup(POOL);
    write_superblock(&store, &sample(POOL, 5)).unwrap();
    let other = Store::new(device.clone(), OTHER_POOL, 0);
    write_superblock(&other, &sample(OTHER_POOL, 80)).unwrap();
    let survey = load_superblocks(&*device);
    assert_eq!(survey.newest(Some(POOL)).unwrap().txid, TxId(5));
    assert_eq!(survey.next_txid(POOL), TxId(6));
    assert_eq!(survey.newest(Some(OTHER_POOL)).unwrap().txid, TxId(80));
    assert!(matches!(survey.newest(None), Err(SuperblockError::Ambiguous { .. })));
    let stranger = Uuid::from_u128(99);
    assert!(matches!(survey.newest(Some(stranger)), Err(SuperblockError::ForeignPool { .. })));
}

#[test]
fn an_unformatted_or_tiny_device_has_no_superblock() {
    for blocks in [0, 1, 2, 256, 257, 300] {
        let survey = load_superblocks(&TestDevice::new(blocks));
        assert_eq!(survey.newest(None), Err(SuperblockError::NotFormatted { copies: survey.copies.len() }));
    }
}

#[test]
fn spares_are_found_where_the_superblock_says_if_the_device_has_grown_and_a_shrunk_device_is_refused() {
    let device = Arc::new(TestDevice::new(BLOCKS as usize * 2));
    let store = Store::new(device.clone(), POOL, 0);
    write_superblock(&store, &sample(POOL, 5)).unwrap();
    write_spare(&store, &sample(POOL, 6)).unwrap();
    assert_eq!(load_superblocks(&*device).newest(None).unwrap().txid, TxId(6));

    let small = Arc::new(TestDevice::new(BLOCKS as usize - 1));
    write_superblock(&Store::new(small.clone(), POOL, 0), &sample(POOL, 5)).unwrap();
    let expected = SuperblockError::DeviceTooSmall { expected: BLOCKS, found: BLOCKS - 1 };
    assert_eq!(load_superblocks(&*small).newest(None), Err(expected));
}

proptest! {
    /// Any bytes behind a good checksum decode to a valid superblock that encodes to the same meaning, or to
    /// an error.
    #[test]
    fn no_payload_makes_decoding_panic(
        changes in prop::collection::vec((0usize..2840, any::<u8>()), 0..6),
    ) {
        let mut block = sample(POOL, 6).encode(MetaBlock(0)).unwrap();
        changes.iter().for_each(|&(at, byte)| block.payload[at] = byte);
        let pool = Uuid::from_bytes(block.payload[40..56].try_into().unwrap());
        block.seal(pool);
        if let Ok(Decoded::Known(superblock)) = Superblock::decode(&block, MetaBlock(0)) {
            let again = superblock.encode(MetaBlock(0)).unwrap();
            prop_assert_eq!(decode(&again, MetaBlock(0)).unwrap(), *superblock);
        }
    }
}
