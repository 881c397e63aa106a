//! Planted faults: ways to break the volume on purpose, to prove that the tests would notice.
//!
//! Compiled in only with the feature `planted-faults`, which no tool enables; without it `planted` is `false` at compile time.
//! A hook is a condition at the line that it breaks. Which test catches which fault is in `tests/tests/planted.rs`, where an
//! exhaustive `match` asks for a test of every fault named here. Those of the crate below are
//! `dedup_meta::Fault`, by way of [`Fault::Meta`].

use crate::commit::Sealed;
use crate::engine::Engine;
use crate::mapping::Mapping;
use crate::open::OpenOptions;
use crate::state::Written;

#[cfg(all(feature = "planted-faults", not(debug_assertions)))]
compile_error!("planted faults are for tests; a release build must not have them");

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One thing done wrong, and what it would cost.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(
            not(feature = "planted-faults"),
            allow(unreachable_pub, reason = "public only for tests that plant faults")
        )]
        pub enum Fault {
            $($(#[$doc])* $name,)*
            /// One of the crate below.
            #[cfg(feature = "planted-faults")]
            Meta(dedup_meta::Fault),
        }

        #[cfg(feature = "planted-faults")]
        impl Fault {
            /// All of them, those of the crate below included.
            pub fn all() -> impl Iterator<Item = Self> {
                [$(Self::$name),*].into_iter().chain(dedup_meta::Fault::ALL.iter().copied().map(Self::Meta))
            }
        }
    };
}

faults! {
    // The journal.
    /// A change is answered before the journal has it (I16): a killed process loses it.
    AnsweredBeforeKept,
    /// An open does not take in what the journal has (I16).
    JournalNotTakenIn,
    /// An open goes on with what it has taken in before the log has it: a power cut loses what was flushed since.
    TakenInNotCommitted,
    /// The data of what was taken in is not written once more, although a flush may have failed (R5).
    TakenInNotRewritten,
    /// The journal that a superblock expects is not asked for: it is passed by in silence.
    JournalPassedBy,
    /// Only the newest superblock names the journal: without its two copies an open goes by one that knows of none.
    JournalNamedOnce,
    // Commits.
    /// A commit writes the log without having flushed the data device (I3): mappings of blocks that are not there.
    DataFlushSkipped,
    /// A commit writes the log before the data device is flushed (I3): for a while the log names blocks that are not there.
    LogBeforeData,
    /// The commit that seals a delta does not flush the data device (R2): trees that name blocks that are not there.
    CheckpointDataFlushSkipped,
    /// A commit is acknowledged without a flush after the log write (I4): acknowledged records are gone.
    LogFlushSkipped,
    /// FUA is acknowledged before the commit (I4).
    FuaIgnored,
    /// A trim with FUA that finds nothing mapped commits nothing: the zeros that it promises may be those of an uncommitted trim.
    EmptyTrimNotCommitted,
    /// `flushrq` asks for no commit: the N-th write is answered and not durable.
    FlushrqIgnored,
    /// Operations count as durable from the cut on (I4): who waits for a commit is woken before its flushes.
    DurableAtCut,
    /// A failed data flush is tried again (I6), and the second yes is believed.
    DataFlushRetried,
    /// A failed metadata flush is tried again (I6), and the second yes is believed.
    MetadataFlushRetried,
    /// The volume goes on after a failure that leaves the durable state unknown (I6).
    FailStopForgotten,
    /// A flush after a failed one is done (I6), and believed: what the first was to cover is lost.
    FailedFlushForgotten,
    /// A commit that was under way when another's failure ended all of them is acknowledged (I6).
    EndedTurnAcknowledged,
    /// After a flush ahead of a checkpoint nothing counts as unflushed, also what was written meanwhile (I3).
    AheadFlushCoversAll,
    /// The counters are not in the log: after a crash they are those of nowhere.
    CountersNotLogged,
    /// An allocation is not logged (the digest of a PBN taken into use): replay does not know the block.
    DigestNotLogged,
    /// A healing write does not make the data device dirty: the next commit does not flush it.
    HealNotFlushed,
    /// That a block was healed is not logged: after a crash it is taken for damaged again.
    HealNotLogged,
    /// A trim is not logged: acknowledged as durable, it is undone by a crash.
    UnmapNotLogged,
    /// The commit of a checkpoint puts data into the log instead of flushing it (R2): the log is released, and the data is nowhere.
    SealedContentNotFlushed,
    /// Data in the log stands behind the records that need it: a torn commit has the records alone.
    ContentBehindRecords,
    /// An open does not write the data that the log carries to its place.
    ContentNotRestored,
    /// Data that the log carries for an earlier allocation of a block is written over what the block holds now.
    EarlierContentRestored,

    // Checkpoints.
    /// The delta is swapped after the commit instead of at its cut (R2): the trees get operations that no commit covers.
    DeltaSwappedAfterCut,
    /// The frozen delta is dropped before its roots are installed (R2): for a while reads see the older trees alone.
    FrozenDroppedEarly,
    /// The superblock is written before its trees are flushed.
    SuperblockBeforeTree,
    /// A checkpoint goes on without having flushed the superblock: the log may be released under the one that counts.
    SuperblockFlushSkipped,
    /// Every checkpoint writes the same slot: a torn write takes the newest superblock.
    SlotNotAlternated,
    /// The spare is written before the slot's flush: one power cut can tear both copies of a superblock.
    SpareBeforeSlotFlush,
    /// The log is released up to the newer superblock's position (R3): falling back to the older one fails.
    LogReleasedToNewer,
    /// Metadata blocks are reused although a lookup began on roots that reach them (I1).
    MetadataReusedUnderLookup,
    /// Metadata blocks are free one superblock too early (I1): the older one's trees are written over.
    OlderTreesReused,
    /// The blocks of the metadata map's older versions never come back: the device runs full of them.
    MapBlocksLeaked,
    /// The walk that recounts the metadata map leaves a tree out (R10): its blocks are freed.
    RecountForgetsTree,
    /// It leaves the runs of the LBN map out (R10).
    RecountForgetsRuns,
    /// The runs of the LBN map are recorded the youngest first: mappings that were replaced come back.
    RunsReversed,
    /// A run of the LBN map is dropped before the merge has come to its end: mappings are lost.
    RunDroppedEarly,
    /// An index that was dropped is not built anew (I5): nothing is found again.
    IndexNotRebuilt,
    /// The need for a check is forgotten by the next superblock.
    NeedsCheckLost,
    /// The hint of a digest that is overwritten stays: the index grows without bound.
    StaleHintKept,
    /// A count of 3 and more loses its overflow entry: a block in use is freed after three trims.
    OverflowCountLost,

    // Opening.
    /// The log is trusted before the flush at open (R5): what a killed process left in the cache is built upon.
    OpenNotFlushed,
    /// A writable open keeps the old epoch (R4): blocks behind a gap come back to life.
    EpochKept,
    /// A superblock is lost, and with it perhaps an epoch, and the ring is not searched for it (R4): it is used again.
    LostEpochNotSearched,
    /// Where the accepted log ended is not recorded with the new epoch (R4): that it is gone later is not noticed.
    EpochStartNotRecorded,
    /// What may be in the cache only is not written again where the cache cannot be bypassed (R5).
    CachedLogBelieved,
    /// A superblock that lost its spare in a crash does not get it back.
    SparesNotRestored,
    /// A gap in front of a durable claim is taken for the log's end (R6): acknowledged operations vanish in silence.
    MidLogDamageTakenForTail,
    /// Bad marks are forgotten at a reopen: duplicates are mapped to damaged blocks.
    BadMarksForgotten,
    /// A block that the log frees and takes into use again counts as waiting to be free: the next checkpoint gives it out.
    ReplayedReuseForgotten,
    /// A read-only open begins an epoch like any other (R11).
    ReadOnlyOpenWrites,
    /// The data device's label is not held against the superblock (R11): one volume's map over another's data.
    LabelNotChecked,

    // Writing.
    /// What was looked up is believed although a checkpoint has changed the trees since: counts are changed from old values.
    LookupNotValidated,
    /// Counts read before a data write are believed after it, whatever checkpoints did meanwhile.
    CountsNotReadAgain,
    /// A trim believes what it gathered although a checkpoint has changed the trees since.
    TrimNotValidated,
    /// A duplicate is published although the block's last reference has gone since the lookup.
    HitNotRechecked,
    /// A hint whose block has no reference counts as a hit: a block reserved for other content is mapped.
    ReservedBlockPinned,
    /// A hit's digest is compared as the trees have it, not as the deltas do: a block allocated anew is taken for its old content.
    HitDigestFromTreesOnly,
    /// A hint is believed without comparing the digest.
    HintTrusted,
    /// Digests are compared by their prefix.
    PrefixTakenForDigest,
    /// Bytes are not compared although that was asked for: a digest that collides is a match.
    BytesNotCompared,
    /// A hit on a block marked damaged is published without healing it.
    BadBlockMatched,
    /// A block is published before its data is written (I8): duplicates are acknowledged while it is in flight.
    PublishedBeforeWritten,
    /// A block whose write failed stays in the index (I8): duplicates are mapped to it.
    FailedWriteMatched,
    /// A failed overwrite drops the old mapping (I9).
    FailedOverwriteUnmaps,
    /// A failed run of blocks is not written again block by block: one bad sector fails its neighbours' requests.
    FailedRunNotReissued,
    /// A block whose write failed is given out again.
    FailedBlockReused,
    /// A block that lost its last reference while it was healed is mapped all the same.
    HealedWithoutReference,
    /// A claim on a digest outlives the write that failed: whoever has the same content waits for nobody.
    ClaimNotReleased,
    /// A block is marked damaged without a second look: it may have been written anew since.
    MarkedUnseen,
    /// Requests of one batch that touch the same block run at once: both free the block that was there.
    WavesMerged,
    /// Operations on one LBN are not kept apart: of two sector writes to a block, one is lost.
    RangesNotLocked,
    /// Nobody asks whether a batch is still wanted before a wave of it is begun.
    AbandonedBegun,
    /// It is asked, but before the wave's blocks are locked: the answer is stale when they are.
    AskedBeforeLocking,
    /// A trim unmaps blocks that it covers in part.
    TrimRoundsOut,
    /// Zeroing leaves the blocks alone that it covers in part.
    ZeroEdgesDropped,
    /// A partial write goes on although the block under it could not be read.
    EdgeErrorIgnored,

    // Counts and space.
    /// A second reference is not counted (I7): a block in use is freed.
    CountTooLow,
    /// A new reference counts twice (I7): its space never comes back.
    CountTooHigh,
    /// A freed block is reused before the commit that freed it (I2).
    FreedReusedBeforeCommit,
    /// A freed block is reused while a reader from before may still read it (I2).
    FreedReusedUnderReader,
    /// A freed block is reused while its discard is under way (I2): the discard zeroes the new content.
    ReusedWhileDiscarding,
    /// Opening a region passes over what is in quarantine (I2).
    RegionIgnoresQuarantine,
    /// No space is said although freed blocks wait for a commit (R9).
    ReclaimSkipped,
    /// No space is said although a write in flight is about to free some (R9).
    OthersNotAwaited,
    /// The metadata device's holes are not known: what a checkpoint writes may find no room in the file system below (R8).
    SpaceNotSetAside,
    /// What was admitted and failed is never given back: in the end everybody waits for nobody.
    AdmissionNotReturned,
    /// A full log ring makes nobody wait (R7): the next commit finds no room.
    FullRingIgnored,
    /// Admission keeps no metadata in reserve (R8): a checkpoint finds the device full.
    MetadataReserveIgnored,

    // Reading.
    /// A read pins what it looked up a moment later (I2): what it found may have been freed and reused.
    PinnedLate,
    /// A read of an unmapped LBN leaves the caller's bytes as they are.
    UnmappedNotZeroed,
    /// A block's content stays in memory when the block is taken for other content.
    ForgottenContentKept,
    /// A read does not compare digests although that was asked for.
    ReadDigestIgnored,
    /// A read of a block that is being healed does not wait for that: an error for content that is all but there.
    HealingNotAwaited,
    /// A read does not compare checksums.
    ChecksumIgnored,
    /// The filter of a run of the LBN map does not know an LBN that the run has: a read finds what was there before.
    RunFilterForgets,
}

/// The fault planted in a volume, if any.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Planted {
    #[cfg(feature = "planted-faults")]
    fault: Option<Fault>,
}

impl Planted {
    /// Whether it is this one.
    #[cfg(feature = "planted-faults")]
    pub(crate) fn is(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Whether it is this one: never, in this build.
    #[cfg(not(feature = "planted-faults"))]
    pub(crate) const fn is(self, _fault: Fault) -> bool {
        false
    }

    /// For the crate below.
    pub(crate) fn meta(self) -> dedup_meta::Planted {
        #[cfg(feature = "planted-faults")]
        if let Some(Fault::Meta(fault)) = self.fault {
            return dedup_meta::Planted::new(fault);
        }
        dedup_meta::Planted::default()
    }
}

impl OpenOptions {
    /// The fault to plant.
    pub(crate) fn planted(&self) -> Planted {
        Planted {
            #[cfg(feature = "planted-faults")]
            fault: self.planted,
        }
    }
}

impl Engine {
    /// Whether this fault is planted.
    pub(crate) fn planted(&self, fault: Fault) -> bool {
        self.options.planted.is(fault)
    }

    /// With [`Fault::DeltaSwappedAfterCut`]: seals the delta now that the commit is over.
    pub(crate) fn seal_after_cut(&self) -> Option<Sealed> {
        if !self.planted(Fault::DeltaSwappedAfterCut) {
            return None;
        }
        let log = self.commits.log_position();
        Some(Sealed { log, ..Self::seal(&mut self.state.lock())? })
    }

    /// What is wrongly published for a block whose write failed.
    pub(crate) fn publish_failed(&self, new: Mapping, written: Written) -> Option<(Mapping, Written)> {
        if self.planted(Fault::FailedWriteMatched) {
            return Some((new, written));
        }
        self.planted(Fault::FailedOverwriteUnmaps).then_some((Mapping::UNMAPPED, Written::Zero))
    }
}
