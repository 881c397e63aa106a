//! A script: what volume, then what happens to it, step by step. One line a step.
//!
//! ```text
//!   format block-size=512 blocks=7 spare=2 crypto-alg=md5 verify-match=no flushrq=0 log-blocks=32 inram=no
//!   open check-on-read=crc verify-match=no flushrq=3 discard=no delta-max=24 cache-bytes=0
//!   write 0+512 #1 ; write 700+100 #2+1 fua ; read 0+1024
//!   zero 512+30 ; flush
//!   checkpoint
//!   crash torn=7
//!   open ...
//! ```
//!
//! The requests of a line are one batch. `#2+1` is content 2 in the first block that the write touches, 3 in
//! the next; a write of part of a block brings that part of the content. Content 0 is zeros. Lines that are
//! empty or begin with `//` are comments.

use dedup_volume::{CheckOnRead, DigestAlgorithm};
use std::fmt;

/// What is formatted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes in a block.
    pub block_size: u32,
    /// Logical blocks.
    pub blocks: u64,
    /// Data blocks beyond as many as there are logical ones.
    pub spare: u64,
    /// The digest.
    pub algorithm: DigestAlgorithm,
    /// Compare the bytes of every match, by default.
    pub verify_match: bool,
    /// Commit every so many block writes, by default.
    pub flushrq: u32,
    /// Blocks of the log ring.
    pub log_blocks: u64,
    /// Metadata in memory: such a volume is opened once.
    pub in_ram: bool,
}

/// How the volume is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenAs {
    /// For reading only.
    pub read_only: bool,
    /// How reads are verified.
    pub check_on_read: CheckOnRead,
    /// `None`: as formatted.
    pub verify_match: Option<bool>,
    /// `None`: as formatted.
    pub flushrq: Option<u32>,
    /// Pass freed blocks down.
    pub discard: bool,
    /// Operations that a delta holds.
    pub delta_max: u64,
    /// Memory for metadata, and as much for data.
    pub cache_bytes: u64,
}

/// A request that changes something, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Content `first` in the first block touched, `first + stride` in the next, and so on.
    Write {
        /// Of the first block.
        first: u64,
        /// From block to block.
        stride: u64,
    },
    /// Whole blocks only.
    Trim,
    /// Every byte.
    Zero,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Req {
    /// Read `len` bytes from `offset`.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Change `len` bytes from `offset`.
    Change {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What to.
        change: Change,
        /// Durable when answered.
        fua: bool,
    },
    /// Make everything durable.
    Flush,
}

/// How a volume's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In good order.
    Close,
    /// As by `kill -9`: the devices keep what they were told.
    Kill,
    /// A power cut that loses all that was not flushed.
    Cut,
    /// A power cut that keeps every sector or not, by this number.
    Torn(u64),
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Requests handed over together.
    Batch(Vec<Req>),
    /// Write everything into the trees.
    Checkpoint,
    /// Collect stale entries of the index.
    Collect,
    /// End the volume's life and open it again.
    Reopen(Ending, OpenAs),
}

/// A whole script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// What is formatted.
    pub shape: Shape,
    /// How it is opened first.
    pub open: OpenAs,
    /// What happens then.
    pub steps: Vec<Step>,
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn or_as_formatted(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "as-formatted".into(), |value| value.to_string())
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}", self.shape, self.open)?;
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block_size, blocks, spare, algorithm, flushrq, log_blocks, .. } = self;
        write!(f, "format block-size={block_size} blocks={blocks} spare={spare} crypto-alg={algorithm} ")?;
        write!(f, "verify-match={} flushrq={flushrq} log-blocks={log_blocks} ", yes(self.verify_match))?;
        write!(f, "inram={}", yes(self.in_ram))
    }
}

impl fmt::Display for OpenAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let check = match self.check_on_read {
            CheckOnRead::Crc => "crc",
            CheckOnRead::Digest => "digest",
            CheckOnRead::Off => "off",
        };
        write!(f, "open read-only={} check-on-read={check} ", yes(self.read_only))?;
        write!(f, "verify-match={} ", or_as_formatted(self.verify_match.map(yes)))?;
        write!(f, "flushrq={} discard={} ", or_as_formatted(self.flushrq), yes(self.discard))?;
        write!(f, "delta-max={} cache-bytes={}", self.delta_max, self.cache_bytes)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch(requests) => {
                let words: Vec<String> = requests.iter().map(Req::to_string).collect();
                f.write_str(&words.join(" ; "))
            }
            Self::Checkpoint => f.write_str("checkpoint"),
            Self::Collect => f.write_str("collect"),
            Self::Reopen(ending, open) => write!(f, "{ending}\n{open}"),
        }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Close => f.write_str("close"),
            Self::Kill => f.write_str("kill"),
            Self::Cut => f.write_str("crash"),
            Self::Torn(salt) => write!(f, "crash torn={salt}"),
        }
    }
}

impl fmt::Display for Req {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (offset, len, change, fua) = match self {
            Self::Flush => return f.write_str("flush"),
            Self::Read { offset, len } => return write!(f, "read {offset}+{len}"),
            Self::Change { offset, len, change, fua } => (offset, len, change, fua),
        };
        match change {
            Change::Write { first, stride: 0 } => write!(f, "write {offset}+{len} #{first}")?,
            Change::Write { first, stride } => write!(f, "write {offset}+{len} #{first}+{stride}")?,
            Change::Trim => write!(f, "trim {offset}+{len}")?,
            Change::Zero => write!(f, "zero {offset}+{len}")?,
        }
        f.write_str(if *fua { " fua" } else { "" })
    }
}
