//! What is done to a volume in a sweep, step by step.

use super::super::*;
use super::ledger::{Change, Content, Ledger};

/// One step.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Whole blocks from an LBN on, one request.
    Write(u64, &'static [u64]),
    /// The same, durable when answered.
    WriteFua(u64, &'static [u64]),
    /// One-block writes (LBN, content) in one batch.
    Batch(&'static [(u64, u64)]),
    /// Bytes of a content: where, how many (both in eighths of a block), which content.
    Part(usize, usize, u64),
    /// Blocks from an LBN on are trimmed.
    Trim(u64, u64),
    /// Bytes are zeroed: where and how many, in eighths of a block.
    Zero(usize, usize),
    /// FLUSH.
    Flush,
    /// A checkpoint.
    Checkpoint,
    /// Collection, rebuilding and recounting, until nothing is left to do.
    Collect,
    /// Reads of all LBNs in one batch.
    Read,
    /// A bit of the stored block with this content flips.
    Rot(u64),
    /// Closes the volume and opens it again.
    Close,
    /// Opens the volume again without having closed it.
    Kill,
    /// Opens the volume read-only beside the running one, and reads everything.
    ReadOnly,
}

/// What a request does to whole blocks.
pub(super) fn blocks_of(step: Step, ledger: &Ledger, size: usize) -> Vec<Change> {
    let whole = |content: u64| vec![Content::from(block(content, size))];
    match step {
        Step::Write(lbn, contents) | Step::WriteFua(lbn, contents) => {
            (lbn as usize..).zip(contents.iter().map(|content| whole(*content))).collect()
        }
        Step::Batch(writes) => writes.iter().map(|(lbn, content)| (*lbn as usize, whole(*content))).collect(),
        Step::Part(start, len, content) => {
            lay_over(ledger, size, start * size / 8, &block(content, len * size / 8))
        }
        Step::Trim(lbn, blocks) => (lbn..lbn + blocks).map(|lbn| (lbn as usize, whole(0))).collect(),
        Step::Zero(start, len) => lay_over(ledger, size, start * size / 8, &vec![0; len * size / 8]),
        _ => Vec::new(),
    }
}

fn lay_over(ledger: &Ledger, size: usize, start: usize, bytes: &[u8]) -> Vec<Change> {
    let end = start + bytes.len();
    let lay = |lbn: usize, below: &Content| {
        let mut content = below.to_vec();
        let (from, to) = (start.max(lbn * size), end.min((lbn + 1) * size));
        content[from - lbn * size..to - lbn * size].copy_from_slice(&bytes[from - start..to - start]);
        Content::from(content)
    };
    (start / size..end.div_ceil(size))
        .map(|lbn| (lbn, ledger.contents(lbn).iter().map(|below| lay(lbn, below)).collect()))
        .collect()
}

/// Runs a step that is a request or a batch of requests; the first error of several.
pub(super) fn request(volume: &Volume, step: Step) -> Result<(), RequestError> {
    let size = volume.block_size() as usize;
    let bytes =
        |contents: &[u64]| contents.iter().flat_map(|content| block(*content, size)).collect::<Vec<_>>();
    let offset = |lbn: u64| lbn * size as u64;
    match step {
        Step::Write(lbn, contents) => {
            run(volume, Op::Write { offset: offset(lbn), data: &bytes(contents), fua: false })
        }
        Step::WriteFua(lbn, contents) => {
            run(volume, Op::Write { offset: offset(lbn), data: &bytes(contents), fua: true })
        }
        Step::Part(start, len, content) => {
            let data = block(content, len * size / 8);
            run(volume, Op::Write { offset: (start * size / 8) as u64, data: &data, fua: false })
        }
        Step::Trim(lbn, blocks) => {
            run(volume, Op::Trim { offset: offset(lbn), len: offset(blocks), fua: false })
        }
        Step::Zero(start, len) => {
            let (offset, len) = ((start * size / 8) as u64, (len * size / 8) as u64);
            run(volume, Op::WriteZeroes { offset, len, fua: false })
        }
        Step::Flush => run(volume, Op::Flush),
        Step::Batch(writes) => {
            let data: Vec<Vec<u8>> = writes.iter().map(|(_, content)| block(*content, size)).collect();
            let requests = writes.iter().zip(&data).map(|((lbn, _), data)| Request {
                tag: 0,
                op: Op::Write { offset: offset(*lbn), data, fua: false },
            });
            let mut outcome = Ok(());
            volume.execute(requests.collect(), &mut |_, result| outcome = outcome.and(result));
            outcome
        }
        _ => unreachable!("{step:?} is no request"),
    }
}
