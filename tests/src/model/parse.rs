//! Scripts from text; [the text](super::script) is described where it is written.

use super::script::{Change, Ending, OpenAs, Req, Script, Shape, Step};
use anyhow::{Context, Result, bail, ensure};
use dedup_volume::CheckOnRead;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The words `key=value` of a line.
struct Words<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Result<Self> {
        let pair = |word: &'a str| word.split_once('=').with_context(|| format!("'{word}' is no key=value"));
        Ok(Self(text.split_whitespace().map(pair).collect::<Result<_>>()?))
    }

    fn text(&mut self, key: &str) -> Result<&'a str> {
        self.0.remove(key).with_context(|| format!("{key}= is missing"))
    }

    fn number<T: FromStr<Err: fmt::Display>>(&mut self, key: &str) -> Result<T> {
        self.text(key)?.parse().map_err(|error| anyhow::anyhow!("{key}: {error}"))
    }

    fn yes(&mut self, key: &str) -> Result<bool> {
        match self.text(key)? {
            "yes" => Ok(true),
            "no" => Ok(false),
            other => bail!("{key}: expected yes or no, found '{other}'"),
        }
    }

    fn given<T>(&mut self, key: &str, parse: impl FnOnce(&mut Self, &str) -> Result<T>) -> Result<Option<T>> {
        if self.0.get(key) == Some(&"as-formatted") {
            self.0.remove(key);
            return Ok(None);
        }
        parse(self, key).map(Some)
    }

    fn end(self) -> Result<()> {
        ensure!(self.0.is_empty(), "unknown words: {:?}", self.0);
        Ok(())
    }
}

impl FromStr for Script {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut lines = text
            .lines()
            .map(str::trim)
            .enumerate()
            .filter(|(_, line)| !line.is_empty() && !line.starts_with("//"));
        let (_, first) = lines.next().context("an empty script")?;
        let shape = parse_shape(first).context("the first line")?;
        let mut read = Lines::default();
        for (number, line) in lines {
            read.line(line).with_context(|| format!("line {}: {line}", number + 1))?;
        }
        ensure!(read.ended.is_none(), "the script ends without an 'open' after its last end");
        Ok(Self { shape, open: read.open.context("no 'open'")?, steps: read.steps })
    }
}

/// What the lines behind the first one said so far.
#[derive(Default)]
struct Lines {
    open: Option<OpenAs>,
    /// How the volume's life ended that is to be opened next.
    ended: Option<Ending>,
    steps: Vec<Step>,
}

impl Lines {
    fn line(&mut self, line: &str) -> Result<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "open" {
            let open = parse_open(rest)?;
            match self.ended.take() {
                Some(ending) => self.steps.push(Step::Reopen(ending, open)),
                None if self.open.is_none() => self.open = Some(open),
                None => bail!("it is open"),
            }
            return Ok(());
        }
        ensure!(self.open.is_some() && self.ended.is_none(), "expected 'open'");
        match word {
            "close" => self.ended = Some(Ending::Close),
            "kill" => self.ended = Some(Ending::Kill),
            "crash" if rest.is_empty() => self.ended = Some(Ending::Cut),
            "crash" => self.ended = Some(Ending::Torn(Words::of(rest)?.number("torn")?)),
            "checkpoint" => self.steps.push(Step::Checkpoint),
            "collect" => self.steps.push(Step::Collect),
            _ => self.steps.push(Step::Batch(line.split(';').map(parse_request).collect::<Result<_>>()?)),
        }
        Ok(())
    }
}

fn parse_shape(line: &str) -> Result<Shape> {
    let mut words = Words::of(line.strip_prefix("format ").context("expected 'format'")?)?;
    let shape = Shape {
        block_size: words.number("block-size")?,
        blocks: words.number("blocks")?,
        spare: words.number("spare")?,
        algorithm: words.number("crypto-alg")?,
        verify_match: words.yes("verify-match")?,
        flushrq: words.number("flushrq")?,
        log_blocks: words.number("log-blocks")?,
        in_ram: words.yes("inram")?,
    };
    words.end()?;
    Ok(shape)
}

fn parse_open(text: &str) -> Result<OpenAs> {
    let mut words = Words::of(text)?;
    let open = OpenAs {
        read_only: words.yes("read-only")?,
        check_on_read: match words.text("check-on-read")? {
            "crc" => CheckOnRead::Crc,
            "digest" => CheckOnRead::Digest,
            "off" => CheckOnRead::Off,
            other => bail!("check-on-read: '{other}' is none of crc, digest, off"),
        },
        verify_match: words.given("verify-match", Words::yes)?,
        flushrq: words.given("flushrq", Words::number)?,
        discard: words.yes("discard")?,
        delta_max: words.number("delta-max")?,
        cache_bytes: words.number("cache-bytes")?,
    };
    words.end()?;
    Ok(open)
}

fn parse_request(text: &str) -> Result<Req> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let range = |word: &str| -> Result<(u64, u64)> {
        let (offset, len) = word.split_once('+').with_context(|| format!("'{word}' is no offset+length"))?;
        Ok((offset.parse()?, len.parse()?))
    };
    let (words, fua) = match words.split_last() {
        Some((&"fua", rest)) => (rest, true),
        _ => (&words[..], false),
    };
    let (place, change) = match *words {
        ["flush"] if !fua => return Ok(Req::Flush),
        ["read", place] if !fua => {
            let (offset, len) = range(place)?;
            return Ok(Req::Read { offset, len });
        }
        ["write", place, content] => {
            let content = content.strip_prefix('#').context("expected #CONTENT")?;
            let (first, stride) = content.split_once('+').unwrap_or((content, "0"));
            (place, Change::Write { first: first.parse()?, stride: stride.parse()? })
        }
        ["trim", place] => (place, Change::Trim),
        ["zero", place] => (place, Change::Zero),
        _ => bail!("expected read, write, trim, zero or flush, found '{}'", text.trim()),
    };
    let (offset, len) = range(place)?;
    Ok(Req::Change { offset, len, change, fua })
}
