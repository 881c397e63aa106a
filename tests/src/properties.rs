//! Properties that are tests of their own and must also catch a planted fault: each is run with the options that it is given.

use super::*;
use dedup_meta::LOG_PAYLOAD_SIZE;
use dedup_meta::{
    Block, BlockRef, BlockType, MetaBlock, MetaError, NodeSink, NodeSource, RunSet, ShapeCheck, Store,
    Superblock, TxId, load_superblocks,
};
use dedup_volume::{DigestAlgorithm, HINTS, HintKey, Pbn};

/// A checkpoint that has returned is where the next open starts from, whatever was not flushed.
pub fn a_checkpoint_is_durable_when_it_returns(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    for round in 0..4 {
        (0..8).for_each(|lbn| write(&volume, lbn, 1 + round * 8 + lbn));
        volume.checkpoint().unwrap();
        let transaction = volume.status().commit.transaction;
        let after = disks.lose_everything_unflushed().open(options).unwrap();
        let commit = after.status().commit;
        assert_eq!(
            (commit.transaction, commit.delta_operations),
            (transaction + 1, 0),
            "one more for the open, nothing replayed"
        );
    }
}

/// Bytes that a write of new content takes in the log: an allocation and a mapping.
const RECORD_BYTES: u64 = 39 + 25;

/// Blocks of the log behind a gap that a power cut left stay dead, even if the client repeats to the letter
/// what was in the gap.
pub fn blocks_behind_a_gap_in_the_log_stay_dead(options: &OpenOptions) {
    let disks = Disks::new(260 * 4096, 16 << 20);
    // A ring in which 100 operations wait for a commit without asking for one.
    disks.format(&FormatOptions { log_blocks: Some(2048), ..format_options(256 * 4096) });
    let volume = disks.open(options).unwrap();
    flush(&volume);
    // Enough for two log blocks in one commit. The cut lets the second one reach the medium, and not the
    // first.
    let in_first_block = LOG_PAYLOAD_SIZE as u64 / RECORD_BYTES;
    let fail_a_commit = |disks: &Disks, volume: Volume, different: u64| {
        (0..in_first_block).for_each(|lbn| write(&volume, lbn, lbn + 1));
        (in_first_block..100).for_each(|lbn| write(&volume, lbn, lbn + different));
        disks.metadata.fail_nth(dedup_device::IoKind::Flush, 0);
        run(&volume, Op::Flush).unwrap_err();
    };
    fail_a_commit(&disks, volume, 1);
    let disks = disks.crash(|device, _, sector| device == 0 || sector >= 8);
    let volume = disks.open(options).unwrap();
    assert_content(&volume, 0, 0);
    // The same first block again, with another one behind it. This cut loses that other one.
    fail_a_commit(&disks, volume, 1000);
    let disks = disks.crash(|device, _, sector| device == 0 || sector < 8);
    let volume = disks.open(options).unwrap();
    assert_content(&volume, in_first_block - 1, in_first_block);
    assert_content(&volume, in_first_block, 0);
    assert_content(&volume, 99, 0);
}

/// What a range covers in part keeps its other bytes.
pub fn a_trim_leaves_partly_covered_blocks_alone_and_zeroing_does_not(options: &OpenOptions) {
    let disks = formatted(8, 4096);
    let volume = disks.open(options).unwrap();
    (0..8).for_each(|lbn| write(&volume, lbn, lbn + 1));
    run(&volume, Op::Trim { offset: 100, len: 3 * 4096, fua: false }).unwrap();
    assert_content(&volume, 0, 1);
    assert_content(&volume, 1, 0);
    assert_content(&volume, 2, 0);
    assert_content(&volume, 3, 4);
    run(&volume, Op::WriteZeroes { offset: 4 * 4096 + 10, len: 2 * 4096, fua: false }).unwrap();
    let (four, six) = (read(&volume, 4).unwrap(), read(&volume, 6).unwrap());
    assert!(four[..10] == block(5, 4096)[..10] && four[10..].iter().all(|b| *b == 0));
    assert_content(&volume, 5, 0);
    assert!(six[..10].iter().all(|b| *b == 0) && six[10..] == block(7, 4096)[10..]);
}

/// A read never returns other bytes than those written, and says so until a write with the same content has mended the block.
pub fn damaged_content_is_an_error_marked_and_healed_by_a_duplicate(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    flush(&volume);
    // Find the block on the data device and flip a bit of it.
    let content = block(1, 4096);
    let mut found = vec![0; 4096];
    let place = (1..69)
        .map(|pbn| pbn * 4096)
        .find(|offset| {
            disks.data.read(*offset, &mut found).unwrap();
            found == content
        })
        .unwrap();
    found[17] ^= 1;
    disks.data.write(place, &found).unwrap();
    assert_eq!(read(&volume, 0), Err(RequestError::Io));
    assert_eq!(volume.status().bad_blocks_now, 1);
    flush(&volume);
    drop(volume);
    let volume = disks.open(options).unwrap();
    assert_eq!(volume.status().bad_blocks_now, 1, "the mark survives a reopen");
    write(&volume, 5, 1);
    assert_content(&volume, 0, 1);
    assert_content(&volume, 5, 1);
    let status = volume.status();
    assert_eq!((status.bad_blocks_now, status.data_used_blocks, status.counters.healed_blocks), (0, 1, 1));
}

/// A sink for one changed tree: takes blocks from the end of the device, which nothing uses.
struct Tail<'a> {
    store: &'a Store,
    next: u64,
    txid: TxId,
}

impl NodeSource for Tail<'_> {
    fn read(
        &self,
        at: BlockRef,
        kind: BlockType,
        level: u8,
        shape: ShapeCheck<'_>,
    ) -> Result<Arc<Block>, MetaError> {
        self.store.read(at, kind, level, shape)
    }
}

impl NodeSink for Tail<'_> {
    fn birth(&self) -> TxId {
        self.txid
    }
    fn allocate(&mut self) -> Result<MetaBlock, MetaError> {
        self.next -= 1;
        Ok(MetaBlock(self.next))
    }
    fn write(&mut self, mut block: Box<Block>, _shape: ShapeCheck<'_>) -> Result<BlockRef, MetaError> {
        let crc = block.seal(self.store.pool());
        self.store.write_raw(&block)?;
        Ok(BlockRef { block: MetaBlock(block.header.block.get()), crc })
    }
    fn free(&mut self, _block: MetaBlock) {}
}

/// Two digests that begin with the same eight bytes were taken for one: a read returned the other block. The index here names the
/// block of content 1 under the prefix of content 2, as a collision would.
pub fn a_hint_whose_digest_only_begins_alike_is_no_match(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    volume.close().unwrap();
    let label = dedup_volume::Label::read(&*disks.data).unwrap();
    let survey = load_superblocks(&*disks.metadata);
    let newest = survey.newest(Some(label.pool)).unwrap();
    let store = Store::new(disks.metadata(), label.pool, 64);
    let txid = survey.next_txid(label.pool);
    let mut sink = Tail { store: &store, next: newest.layout.metadata_blocks - 300, txid };
    let other = DigestAlgorithm::Sha256.digest(&block(2, 4096));
    let (stored, ()) = HINTS.range(&store, &newest.hint.base, ..).next().unwrap().unwrap();
    let wrong = HintKey { prefix: other.prefix(), pbn: Pbn(stored.pbn.0) };
    let hints = HINTS.insert(&mut sink, &newest.hint.base, wrong, ()).unwrap();
    let changed = Superblock { txid, hint: RunSet { base: hints, runs: Vec::new() }, ..newest.clone() };
    dedup_meta::write_superblock(&store, &changed).unwrap();
    store.flush().unwrap();
    let volume = disks.open(options).unwrap();
    write(&volume, 5, 2);
    assert_content(&volume, 5, 2);
    assert_content(&volume, 0, 1);
    assert_eq!(volume.status().data_used_blocks, 2);
}
