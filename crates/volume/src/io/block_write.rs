//! A block that is to be written, and how far it has come on its way through the loop of
//! [`crate::io::write`].

use crate::engine::fingerprint::Fingerprint;
use crate::engine::overwrites;
use crate::error::VolumeError;
use dedup_schema::{Lbn, Mapping, Pbn, Seq};
use dedup_sync::Arc;

/// One block to be written, whole.
#[derive(Debug)]
pub(crate) struct BlockWrite<'a> {
    pub(crate) lbn: Lbn,
    pub(crate) data: &'a [u8],
    /// Which request it belongs to; for the caller.
    pub(crate) request: usize,
    pub(crate) print: Fingerprint,
    progress: Step,
    /// The LBN's mapping before; it cannot change while the range is locked.
    pub(crate) old: Option<Mapping>,
    /// What was found for it was gone when it was to be published: next time that is asked before.
    is_doubtful: bool,
    /// Stored blocks that its bytes were compared with, and whether they are the same. True as long as the
    /// pin is held under which they were compared.
    pub(crate) compared: Vec<(Pbn, bool)>,
    /// Its content is new and there was no free block for it in the last round, which has to leave so many to
    /// others.
    pub(crate) short: Option<u64>,
    /// It is part of a large request.
    pub(crate) is_large: bool,
}

/// How far a block is.
#[derive(Debug)]
enum Step {
    Pending,
    /// Published as this operation; `true` if `flushrq` asks for a commit now.
    Done(Seq, bool),
    Failed(Arc<VolumeError>),
}

impl<'a> BlockWrite<'a> {
    /// A block to be written, as one of so many that its request writes.
    pub(crate) fn new(lbn: Lbn, data: &'a [u8], (request, blocks): (usize, u64), print: Fingerprint) -> Self {
        Self {
            lbn,
            data,
            request,
            print,
            progress: Step::Pending,
            old: None,
            is_doubtful: false,
            compared: Vec::new(),
            short: None,
            is_large: overwrites::is_large(blocks),
        }
    }

    /// It is published as this operation, which `flushrq` may ask to commit at once.
    pub(crate) fn publish(&mut self, seq: Seq, commit: bool) {
        self.progress = Step::Done(seq, commit);
    }

    /// It is not written, and this is why.
    pub(crate) fn fail(&mut self, error: impl Into<Arc<VolumeError>>) {
        self.progress = Step::Failed(error.into());
    }

    /// The operation that it was published as and whether that is to be committed at once, or why it was not.
    pub(crate) fn outcome(&self) -> Result<(Seq, bool), &VolumeError> {
        match &self.progress {
            Step::Done(seq, commit) => Ok((*seq, *commit)),
            Step::Failed(error) => Err(error),
            Step::Pending => unreachable!("write_blocks returns when no block is pending"),
        }
    }

    /// Whether it is neither published nor failed.
    pub(crate) fn is_pending(&self) -> bool {
        matches!(self.progress, Step::Pending)
    }

    /// Why it failed, if it did.
    pub(crate) fn failure(&self) -> Option<&VolumeError> {
        match &self.progress {
            Step::Failed(error) => Some(error),
            Step::Pending | Step::Done(..) => None,
        }
    }

    /// What was found for it was gone: it is to be looked up again, with a second look.
    pub(crate) fn doubt(&mut self) {
        self.is_doubtful = true;
    }

    /// Whether what is found for it is to be judged before it is believed.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    /// Whether a stored block is known to have other bytes.
    pub(crate) fn differs(&self, pbn: Pbn) -> bool {
        self.compared.contains(&(pbn, false))
    }
}
