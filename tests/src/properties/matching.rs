//! Which stored block counts as a duplicate: one with this digest, in use, written, and whole.

use super::*;
use crate::hooked::{Rig, while_held};
use dedup_device::IoKind;
use dedup_schema::DIGESTS;
use dedup_volume::Digest;

/// Between the lookup and its use the block that was found loses its last reference: the duplicate is no
/// duplicate any more.
pub fn a_hit_whose_block_was_freed_meanwhile_is_a_miss(options: &OpenOptions) {
    // Comparing bytes reads the data device after the lookup: the moment for the other client.
    let options = OpenOptions { verify_match: Some(true), ..options.clone() };
    let rig = Rig::open(full(16, &options), &options).unwrap();
    rig.volume.checkpoint().unwrap();
    make_one_go_round(&rig.volume);
    rig.volume.checkpoint().unwrap();
    let volume = rig.volume.clone();
    rig.data.before(IoKind::Read, 0, move || {
        trim(&volume, 0, 1);
        flush(&volume);
    });
    write(&rig.volume, 20, 1);
    flush(&rig.volume);
    fill(&rig.volume, 30..40, 100);
    assert_content(&rig.volume, 20, 1);
    drop(rig.volume);
    rig.disks.assert_clean("after a hit that was freed");
}

/// A stale hint names a block that a write in flight has reserved for other content: that is no match.
pub fn a_block_reserved_for_other_content_is_no_match(options: &OpenOptions) {
    let rig = Rig::open(full(16, options), options).unwrap();
    rig.volume.checkpoint().unwrap();
    trim(&rig.volume, 3, 1);
    rig.volume.checkpoint().unwrap();
    // The one free block still has its hint and its digest.
    let (volume, mut answer) = (&*rig.volume, None);
    let second = || answer = Some(try_write(volume, 20, 4, false));
    while_held(&rig.data, IoKind::Write, || write(volume, 21, 100), second);
    assert_content(volume, 21, 100);
    if answer == Some(Ok(())) {
        assert_content(volume, 20, 4);
    }
    drop(rig.volume);
    rig.disks.assert_clean("after a hint that named a reserved block");
}

/// The index and the trees know a block by the content that it had; since then it has been allocated anew.
pub fn a_block_allocated_anew_is_not_its_old_content(options: &OpenOptions) {
    let disks = full(16, options);
    let volume = disks.open(options).unwrap();
    make_one_go_round(&volume);
    volume.checkpoint().unwrap();
    // The trees still count it, and it is the next to be taken once that is durable.
    trim(&volume, 3, 1);
    flush(&volume);
    write(&volume, 20, 100);
    trim(&volume, 16, 1);
    write(&volume, 21, 4);
    assert_content(&volume, 20, 100);
    assert_content(&volume, 21, 4);
}

/// Two requests of one batch bring the same content, and the write of the block fails: the one that is
/// answered with success has its content.
pub fn a_duplicate_of_a_block_whose_write_failed_is_written_for_itself(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    let content = block(7, 4096);
    disks.data.fail_nth(IoKind::Write, 0);
    let request =
        |lbn: u64| Request { tag: lbn, op: Op::Write { offset: lbn * 4096, data: &content, fua: false } };
    let mut answers = [Ok(()); 2];
    volume.execute(vec![request(0), request(1)], &mut |request, result| {
        answers[request.tag as usize] = result;
    });
    assert_eq!(answers.iter().filter(|a| a.is_ok()).count(), 1, "one of two requests fails with the write");
    for (lbn, answer) in answers.iter().enumerate() {
        assert_content(&volume, lbn as u64, if answer.is_ok() { 7 } else { 0 });
    }
    write(&volume, 2, 7);
    assert_content(&volume, 2, 7);
}

/// A duplicate of a block that another client is just writing waits until it is written.
pub fn a_duplicate_is_not_answered_while_its_block_is_in_flight(options: &OpenOptions) {
    let rig = Rig::open(formatted(64, 4096), options).unwrap();
    let volume = &*rig.volume;
    let early = while_held(&rig.data, IoKind::Write, || write(volume, 0, 7), || write(volume, 1, 7));
    assert!(!early, "a duplicate was answered while its block was in flight");
    assert_content(volume, 0, 7);
    assert_content(volume, 1, 7);
    assert_eq!(volume.status().data_used_blocks, 1);
}

/// A write fails; the next client with the same content is not kept waiting for it.
pub fn a_failed_write_keeps_nobody_waiting(options: &OpenOptions) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    disks.data.fail_nth(IoKind::Write, 0);
    assert_eq!(try_write(&volume, 0, 7, false), Err(RequestError::Io), "a write whose data write failed");
    write(&volume, 1, 7);
    assert_content(&volume, 1, 7);
}

/// Two digests that begin with the same eight bytes were taken for one: a read returned the other block. The
/// index here names the block of content 1 under the prefix of content 2, as a collision would.
pub fn a_hint_whose_digest_only_begins_alike_is_no_match(options: &OpenOptions) {
    let wrong = DigestAlgorithm::Sha256.digest(&block(2, 4096));
    no_match_with_forged_trees(options, wrong, None);
}

/// The same, with a stored digest that really begins alike and goes on otherwise.
pub fn a_digest_that_only_begins_alike_is_no_match(options: &OpenOptions) {
    let mut stored = DigestAlgorithm::Sha256.digest(&block(2, 4096));
    stored.0[31] ^= 1;
    no_match_with_forged_trees(options, stored, Some(stored));
}

/// Two digests that are the same in full, as a weak digest's may be: where bytes are compared, that is no
/// match.
pub fn a_digest_that_collides_is_no_match_where_bytes_are_compared(options: &OpenOptions) {
    let options = OpenOptions { verify_match: Some(true), ..options.clone() };
    let digest = DigestAlgorithm::Sha256.digest(&block(2, 4096));
    no_match_with_forged_trees(&options, digest, Some(digest));
}

/// Content 2 is written beside a stored block of content 1 that the index names under the prefix of `hint`,
/// and the digests as `digest`.
fn no_match_with_forged_trees(options: &OpenOptions, hint: Digest, digest: Option<Digest>) {
    let disks = formatted(64, 4096);
    let volume = disks.open(options).unwrap();
    write(&volume, 0, 1);
    volume.close().unwrap();
    let newest = superblock(&disks);
    let store = Store::new(disks.metadata(), newest.pool, 64);
    let (mut sink, mut changed) = Tail::of(&store, &newest);
    let (stored, ()) = HINTS.range(&store, &newest.hint.base, ..).next().unwrap().unwrap();
    let forged = HintKey { prefix: hint.prefix(), pbn: Pbn(stored.pbn.0) };
    let hints = HINTS.insert(&mut sink, &newest.hint.base, forged, ()).unwrap();
    changed.hint = RunSet { base: hints, runs: Vec::new() };
    if let Some(digest) = digest {
        let root = changed.roots.digest;
        changed.roots.digest =
            DIGESTS.apply(&mut sink, &root, &[(stored.pbn.0, digest)], &mut |_, _, _| {}).unwrap();
    }
    dedup_meta::write_superblock(&store, &changed).unwrap();
    store.flush().unwrap();
    let volume = disks.open(options).unwrap();
    write(&volume, 5, 2);
    assert_content(&volume, 5, 2);
    assert_content(&volume, 0, 1);
    assert_eq!(volume.status().data_used_blocks, 2);
}

/// The index holds at most one entry for each block, however often blocks are overwritten.
pub fn the_index_stays_as_large_as_what_is_stored(options: &OpenOptions) {
    let disks = formatted(32, 4096);
    let volume = disks.open(options).unwrap();
    for round in 0..20 {
        (0..32).for_each(|lbn| write(&volume, lbn, 1 + round * 32 + lbn));
        volume.checkpoint().unwrap();
        let status = volume.status();
        let (entries, blocks) = (status.index_entries, status.data_total_blocks);
        assert!(entries <= blocks, "the index has {entries} entries for {blocks} blocks");
    }
}

/// A sink for changed trees: takes blocks from the end of the device, which nothing uses.
pub(super) struct Tail<'a> {
    store: &'a Store,
    next: u64,
    txid: TxId,
}

impl<'a> Tail<'a> {
    /// For a change to the trees of `superblock`; also the superblock that is to name what it writes.
    pub(super) fn of(store: &'a Store, superblock: &Superblock) -> (Self, Superblock) {
        let txid = superblock.txid.next();
        let next = superblock.layout.metadata_blocks - 300;
        (Self { store, next, txid }, Superblock { txid, ..superblock.clone() })
    }
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
