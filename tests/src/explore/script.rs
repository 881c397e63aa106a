//! Scripts: what is done to a volume, life by life, as one line of text that reproduces it.
//!
//! ```text
//! lbns=4 spare=5 bs=4096 flushrq=2 | w0=1 flush w1+2=7! p100+5000=9 crash@17:d0,m2.0-3 | ckpt close | t0+8192 crash:none
//! parameters                       | a life: steps and how it ends                       | the next life ...
//! ```
//!
//! Each life opens the volume that the one before left. Parameters that have their default are left out. A
//! step ends in `!` for FUA. How a life ends:
//!
//! | text | |
//! |---|---|
//! | `close` | the volume is closed; what is cached stays so |
//! | `kill`, `kill@E` | the process dies, at the end of the steps or with event `E`; the devices keep what they have cached |
//! | `crash:KEEP`, `crash@E:KEEP` | the power fails then, and of what no flush has covered `KEEP` is there |
//!
//! Events are the writes, flushes and discards of both devices, counted from 0 at the life's open; number `E`
//! is the last that a device takes. `KEEP` is `none`, `all`, `rSALT/EIGHTHS` (a random choice of whole
//! writes), `tSALT/EIGHTHS` (of sectors) or a list of writes: `d0` is the first pending write of the data
//! device, `m2.0-3` sectors 0 to 3 of the metadata device's third.

use dedup_volume::DigestAlgorithm;
use std::fmt;
use std::str::FromStr;

/// A volume and what is done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The volume.
    pub params: Params,
    /// At least one.
    pub lives: Vec<Life>,
}

impl Script {
    /// Whether every request lies within the volume and the volume can be made, or what does not.
    pub fn validate(&self) -> Result<(), String> {
        let Params { block_size, lbns, spare, log_blocks, .. } = self.params;
        if !block_size.is_power_of_two() || !(512..=1 << 20).contains(&block_size) {
            return Err(format!("bs: expected a power of two from 512 to 1 MiB, found {block_size}"));
        }
        if lbns == 0 || spare == 0 || !(16..=256).contains(&log_blocks) || self.params.delta_max == 0 {
            return Err("expected lbns, spare and delta above 0, log from 16 to 256".into());
        }
        let size = u64::from(block_size);
        let bytes = lbns.saturating_mul(size);
        let wrong = self.lives.iter().flat_map(|life| &life.steps).find(|step| {
            let (offset, len) = match **step {
                Step::Write { lbn, blocks, .. } => (lbn.saturating_mul(size), blocks.saturating_mul(size)),
                Step::Part { offset, len, .. }
                | Step::Trim { offset, len, .. }
                | Step::Zero { offset, len, .. } => (offset, len),
                Step::Flush | Step::Checkpoint | Step::Collect | Step::Fail { .. } => (0, 1),
            };
            len == 0 || offset.saturating_add(len) > bytes
        });
        wrong.map_or(Ok(()), |step| Err(format!("{step}: not within the volume's {bytes} bytes")))
    }
}

/// How the volume is made and opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// Bytes in a block.
    pub block_size: u32,
    /// Logical blocks.
    pub lbns: u64,
    /// Data blocks beyond one for each logical block and the label.
    pub spare: u64,
    /// Blocks of the log ring.
    pub log_blocks: u64,
    /// Block writes between commits.
    pub flushrq: u32,
    /// Operations in a delta.
    pub delta_max: u64,
    /// Bytes of data that a commit may carry in the log.
    pub log_data: u64,
    /// Whether freed blocks are discarded.
    pub discard: bool,
    /// Whether the bytes of matches are compared.
    pub verify_match: bool,
    /// Whether the metadata device lets its cache be bypassed.
    pub bypass: bool,
    /// The digest.
    pub algorithm: DigestAlgorithm,
    /// Whether all changes of the index become runs.
    pub runs: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            block_size: 4096,
            lbns: 4,
            spare: 5,
            log_blocks: 16,
            flushrq: 0,
            delta_max: 64,
            log_data: 0,
            discard: false,
            verify_match: false,
            bypass: true,
            algorithm: DigestAlgorithm::Sha256,
            runs: false,
        }
    }
}

/// From one open to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// What is done, until something stops the volume.
    pub steps: Vec<Step>,
    /// How it ends.
    pub end: End,
}

/// One request, or one thing that is done to the volume from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Whole blocks from `lbn` on, with contents `content`, `content + 1` and so on; content 0 is zeros.
    Write {
        /// First block.
        lbn: u64,
        /// How many.
        blocks: u64,
        /// Of the first.
        content: u64,
        /// Complete only once durable.
        fua: bool,
    },
    /// Bytes of content `content`, wherever blocks begin and end.
    Part {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// What is written.
        content: u64,
        /// Complete only once durable.
        fua: bool,
    },
    /// A trim of bytes.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Complete only once durable.
        fua: bool,
    },
    /// A zeroing of bytes.
    Zero {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Complete only once durable.
        fua: bool,
    },
    /// A flush.
    Flush,
    /// A checkpoint.
    Checkpoint,
    /// One slice of garbage collection.
    Collect,
    /// The next operation of this kind on a device (0 data, 1 metadata) fails.
    Fail {
        /// The device.
        device: usize,
        /// Whether it is a flush; a write otherwise.
        flush: bool,
    },
}

/// How a life ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A clean close.
    Close,
    /// The process dies with an event, or after the last step.
    Kill {
        /// The last event that takes place.
        event: Option<u64>,
    },
    /// The power fails with an event, or after the last step.
    Crash {
        /// The last event that takes place.
        event: Option<u64>,
        /// What the devices keep.
        keep: Keep,
    },
}

impl End {
    /// The last event that takes place, if not all do.
    pub fn event(&self) -> Option<u64> {
        match self {
            Self::Close => None,
            Self::Kill { event } | Self::Crash { event, .. } => *event,
        }
    }
}

/// What is there after a power cut of the writes that no flush has covered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    None,
    /// Everything.
    All,
    /// A random part.
    Random {
        /// Seed.
        salt: u64,
        /// How much, in eighths.
        eighths: u64,
        /// Whether each sector is drawn by itself, not each write.
        torn: bool,
    },
    /// These.
    Only(Vec<Piece>),
}

/// Sectors of one pending write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// 0 data, 1 metadata.
    pub device: usize,
    /// Index among the device's pending writes.
    pub write: usize,
    /// First and last sector; `None` for all.
    pub sectors: Option<(usize, usize)>,
}

impl Keep {
    /// Whether a sector of a pending write of a device is kept.
    pub fn keeps(&self, device: usize, write: usize, sector: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Random { salt, eighths, torn } => {
                let sector = if *torn { sector as u64 } else { 0 };
                let seed = salt ^ ((device as u64) << 50) ^ ((write as u64) << 20) ^ sector;
                crate::rng::Rng::new(seed).below(8) < *eighths
            }
            Self::Only(pieces) => pieces.iter().any(|piece| {
                piece.device == device
                    && piece.write == write
                    && piece.sectors.is_none_or(|(first, last)| (first..=last).contains(&sector))
            }),
        }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.params)?;
        for life in &self.lives {
            write!(f, "| ")?;
            for step in &life.steps {
                write!(f, "{step} ")?;
            }
            write!(f, "{} ", life.end)?;
        }
        Ok(())
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Self::default();
        for (name, value, usual) in
            self.numbers().into_iter().zip(default.numbers()).map(|(a, b)| (a.0, a.1, b.1))
        {
            if value != usual {
                write!(f, "{name}={value} ")?;
            }
        }
        if self.algorithm != default.algorithm {
            write!(f, "digest={} ", self.algorithm)?;
        }
        Ok(())
    }
}

impl Params {
    fn numbers(&self) -> [(&'static str, u64); 11] {
        [
            ("bs", u64::from(self.block_size)),
            ("lbns", self.lbns),
            ("spare", self.spare),
            ("log", self.log_blocks),
            ("flushrq", u64::from(self.flushrq)),
            ("delta", self.delta_max),
            ("logdata", self.log_data),
            ("discard", u64::from(self.discard)),
            ("verify", u64::from(self.verify_match)),
            ("bypass", u64::from(self.bypass)),
            ("runs", u64::from(self.runs)),
        ]
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|_| format!("{name}: expected a number, found {value}"));
        match name {
            "bs" => self.block_size = number()? as u32,
            "lbns" => self.lbns = number()?,
            "spare" => self.spare = number()?,
            "log" => self.log_blocks = number()?,
            "flushrq" => self.flushrq = number()? as u32,
            "delta" => self.delta_max = number()?,
            "logdata" => self.log_data = number()?,
            "discard" => self.discard = number()? != 0,
            "verify" => self.verify_match = number()? != 0,
            "bypass" => self.bypass = number()? != 0,
            "runs" => self.runs = number()? != 0,
            "digest" => self.algorithm = value.parse()?,
            _ => return Err(format!("unknown parameter {name}")),
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bang = |fua: bool| if fua { "!" } else { "" };
        match *self {
            Self::Write { lbn, blocks: 1, content, fua } => write!(f, "w{lbn}={content}{}", bang(fua)),
            Self::Write { lbn, blocks, content, fua } => write!(f, "w{lbn}+{blocks}={content}{}", bang(fua)),
            Self::Part { offset, len, content, fua } => write!(f, "p{offset}+{len}={content}{}", bang(fua)),
            Self::Trim { offset, len, fua } => write!(f, "t{offset}+{len}{}", bang(fua)),
            Self::Zero { offset, len, fua } => write!(f, "z{offset}+{len}{}", bang(fua)),
            Self::Flush => f.write_str("flush"),
            Self::Checkpoint => f.write_str("ckpt"),
            Self::Collect => f.write_str("gc"),
            Self::Fail { device, flush } => {
                write!(f, "fail-{}-{}", ["data", "meta"][device], if flush { "flush" } else { "write" })
            }
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |event: &Option<u64>| event.map_or(String::new(), |e| format!("@{e}"));
        match self {
            Self::Close => f.write_str("close"),
            Self::Kill { event } => write!(f, "kill{}", at(event)),
            Self::Crash { event, keep } => write!(f, "crash{}:{keep}", at(event)),
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::All => f.write_str("all"),
            Self::Random { salt, eighths, torn } => {
                write!(f, "{}{salt}/{eighths}", if *torn { "t" } else { "r" })
            }
            Self::Only(pieces) => {
                for (i, piece) in pieces.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    write!(f, "{comma}{}{}", ["d", "m"][piece.device], piece.write)?;
                    if let Some((first, last)) = piece.sectors {
                        write!(f, ".{first}-{last}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl FromStr for Script {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('|');
        let mut params = Params::default();
        for word in parts.next().unwrap_or_default().split_whitespace() {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| format!("parameter: expected NAME=VALUE, found {word}"))?;
            params.set(name, value)?;
        }
        let lives = parts.map(life).collect::<Result<Vec<Life>, String>>()?;
        if lives.is_empty() {
            return Err("a script has at least one life: PARAMETERS | STEPS END".into());
        }
        let script = Self { params, lives };
        script.validate().map(|()| script)
    }
}

fn life(text: &str) -> Result<Life, String> {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    let end = match words.pop() {
        Some(word) => end(word)?,
        None => return Err("a life ends in close, kill or crash:KEEP".into()),
    };
    Ok(Life { steps: words.into_iter().map(step).collect::<Result<_, _>>()?, end })
}

fn end(word: &str) -> Result<End, String> {
    let (what, keep) = word.split_once(':').unwrap_or((word, "none"));
    let (what, event) = match what.split_once('@') {
        Some((what, event)) => (what, Some(number(event)?)),
        None => (what, None),
    };
    match what {
        "close" => Ok(End::Close),
        "kill" => Ok(End::Kill { event }),
        "crash" => Ok(End::Crash { event, keep: keep.parse()? }),
        _ => Err(format!("a life ends in close, kill or crash:KEEP, found {word}")),
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a number, found {text}"))
}

fn pair(text: &str) -> Result<(u64, u64), String> {
    let (a, b) = text.split_once('+').ok_or_else(|| format!("expected OFFSET+LENGTH, found {text}"))?;
    Ok((number(a)?, number(b)?))
}

fn step(word: &str) -> Result<Step, String> {
    match word {
        "flush" => return Ok(Step::Flush),
        "ckpt" => return Ok(Step::Checkpoint),
        "gc" => return Ok(Step::Collect),
        "fail-data-flush" => return Ok(Step::Fail { device: 0, flush: true }),
        "fail-meta-flush" => return Ok(Step::Fail { device: 1, flush: true }),
        "fail-data-write" => return Ok(Step::Fail { device: 0, flush: false }),
        "fail-meta-write" => return Ok(Step::Fail { device: 1, flush: false }),
        _ => {}
    }
    let (body, fua) = word.strip_suffix('!').map_or((word, false), |body| (body, true));
    let (kind, body) = body.split_at_checked(1).ok_or("expected a step, found nothing")?;
    let (place, content) = match body.split_once('=') {
        Some((place, content)) => (place, number(content)?),
        None => (body, 0),
    };
    Ok(match kind {
        "w" => {
            let (lbn, blocks) = if place.contains('+') { pair(place)? } else { (number(place)?, 1) };
            Step::Write { lbn, blocks, content, fua }
        }
        "p" => pair(place).map(|(offset, len)| Step::Part { offset, len, content, fua })?,
        "t" => pair(place).map(|(offset, len)| Step::Trim { offset, len, fua })?,
        "z" => pair(place).map(|(offset, len)| Step::Zero { offset, len, fua })?,
        _ => return Err(format!("unknown step {word}")),
    })
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" | "" => return Ok(Self::None),
            "all" => return Ok(Self::All),
            _ => {}
        }
        if let Some((salt, eighths)) = text.split_once('/') {
            let (kind, salt) = salt.split_at(1);
            let torn = match kind {
                "r" => false,
                "t" => true,
                _ => return Err(format!("expected rSALT/EIGHTHS or tSALT/EIGHTHS, found {text}")),
            };
            return Ok(Self::Random { salt: number(salt)?, eighths: number(eighths)?, torn });
        }
        text.split(',').map(piece).collect::<Result<_, _>>().map(Self::Only)
    }
}

fn piece(text: &str) -> Result<Piece, String> {
    let (device, rest) = match text.split_at_checked(1) {
        Some(("d", rest)) => (0, rest),
        Some(("m", rest)) => (1, rest),
        _ => return Err(format!("expected dWRITE or mWRITE, found {text}")),
    };
    let (write, sectors) = match rest.split_once('.') {
        None => (rest, None),
        Some((write, sectors)) => {
            let (first, last) = sectors.split_once('-').unwrap_or((sectors, sectors));
            (write, Some((number(first)? as usize, number(last)? as usize)))
        }
    };
    Ok(Piece { device, write: number(write)? as usize, sectors })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_as_it_was_printed() {
        let text = "bs=512 lbns=90 flushrq=2 discard=1 digest=blake3 | w0=1 w1+2=7! p100+5000=9 fail-meta-flush gc \
                    crash@17:d0,m2.0-3 | ckpt close | t0+8192! z1+2 flush kill | fail-data-write kill@3 | crash:t5/3 | crash:none ";
        let script: Script = text.parse().unwrap();
        assert_eq!(script.to_string().parse::<Script>().unwrap(), script);
        assert_eq!(script.to_string(), text.replace("                    ", ""));
    }

    #[test]
    fn what_is_no_script_is_refused_with_a_reason() {
        for text in
            ["", "lbns=2", "| w0=1", "x=1 | close", "| q close", "| wx=1 close", "| crash:x", "| crash:z1/2"]
        {
            assert!(text.parse::<Script>().is_err(), "{text}");
        }
    }
}
