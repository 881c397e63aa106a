//! Golden images: small volumes as a version of the format wrote them, kept for ever, so that the format
//! cannot change unnoticed.
//!
//! ```text
//!   tests/golden/v1/NAME.image.gz     both devices: the pages that are not zeros
//!   tests/golden/v1/NAME.json         what its logical blocks hold, by number of content
//!   tests/golden/today.json           CRCs of what today's code writes for the same histories
//!   tests/fixtures/damage.json        damages of golden images, as commands, and what the checker finds
//! ```
//!
//! An image holds every type of block: shared blocks with large counts, marks, an index, trims, and a log
//! that was not replayed into the trees. `cargo run -p dedup-tests --bin golden` writes all of these files;
//! images of a version that was released are never written again.

use crate::damage::Image;
use crate::damage::command::Change;
use crate::damage::judge::checked;
use crate::damage::sample::{Maker, Plan, Sample};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use dedup_device::SparseImage;
use dedup_volume::{DigestAlgorithm, RunPolicy};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The version of the format that today's code writes.
pub const VERSION: &str = "v1";
/// Bytes of a page of an image file.
const PAGE: usize = 4096;

/// Where golden images are.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Where the fixtures are described.
pub fn fixtures_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/damage.json")
}

/// The volumes of a version: names, and what they are made with.
pub fn plans() -> [(&'static str, Plan); 7] {
    let plan = |block_size, algorithm| Plan {
        lbns: 400,
        data_blocks: 64,
        metadata_blocks: 1100,
        block_size,
        algorithm,
        runs: RunPolicy::ByCost,
    };
    [
        ("default", plan(4096, DigestAlgorithm::Sha256)),
        ("sha256-512", plan(512, DigestAlgorithm::Sha256)),
        ("sha512-512", plan(512, DigestAlgorithm::Sha512)),
        ("blake3-512", plan(512, DigestAlgorithm::Blake3)),
        ("sha1-512", plan(512, DigestAlgorithm::Sha1)),
        ("md5-512", plan(512, DigestAlgorithm::Md5)),
        ("runs", Plan { runs: RunPolicy::Always, ..plan(512, DigestAlgorithm::Sha256) }),
    ]
}

/// The history that every golden volume has been through. Images that exist do not follow when it is changed.
pub fn history(plan: Plan) -> Sample {
    let mut maker = Maker::new(plan);
    (0..12).for_each(|lbn| maker.write(lbn, 1));
    (12..30).for_each(|lbn| maker.write(lbn, 100 + lbn));
    maker.checkpoint();
    [15, 20].into_iter().for_each(|lbn| maker.mark_bad(lbn));
    maker.trim(25, 2);
    maker.checkpoint();
    maker.forget();
    (40..44).for_each(|lbn| maker.write(lbn, 200 + lbn));
    maker.write(0, 250);
    // Beyond the mapping tree's first leaf.
    maker.write(399, 251);
    maker.checkpoint();
    maker.write(50, 300);
    maker.flush();
    maker.trim(5, 2);
    maker.write(51, 300);
    maker.flush();
    maker.mark_bad(16);
    maker.flush();
    maker.killed()
}

/// What is written beside an image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Contents {
    /// Bytes of a data block.
    pub block_size: usize,
    /// The number of the content of each logical block, 0 for zeros; [`crate::block`] makes the bytes.
    pub contents: Vec<u64>,
}

/// A golden image, as a sample: what it is and what it holds.
///
/// # Errors
/// If the files are not there or not readable.
pub fn load(version: &str, name: &str) -> Result<Sample> {
    let at = directory().join(version);
    let path = at.join(format!("{name}.image.gz"));
    let packed = fs::read(&path).with_context(|| path.display().to_string())?;
    let image = unpack(&packed).with_context(|| path.display().to_string())?;
    let Contents { block_size, contents } =
        serde_json::from_slice(&fs::read(at.join(format!("{name}.json")))?)?;
    let ever = contents.iter().map(|content| vec![*content]).collect();
    Ok(Sample { before: image.clone(), image, now: contents, ever, block_size })
}

/// Whether there is a golden image of this name.
pub fn exists(version: &str, name: &str) -> bool {
    directory().join(version).join(format!("{name}.image.gz")).exists()
}

/// Writes a sample as a golden image.
///
/// # Errors
/// If there is one already, or a file cannot be written.
pub fn store(version: &str, name: &str, sample: &Sample) -> Result<()> {
    let at = directory().join(version);
    fs::create_dir_all(&at)?;
    let path = at.join(format!("{name}.image.gz"));
    ensure!(!path.exists(), "{}: a golden image is never written again", path.display());
    fs::write(&path, pack(&sample.image)?)?;
    let contents = Contents { block_size: sample.block_size, contents: sample.now.clone() };
    Ok(fs::write(at.join(format!("{name}.json")), serde_json::to_string(&contents)? + "\n")?)
}

/// Both devices as bytes: of each its size, the number of pages that are not zeros, and those with their
/// numbers; compressed.
fn pack(image: &Image) -> Result<Vec<u8>> {
    let mut out = GzEncoder::new(Vec::new(), Compression::best());
    for device in [&image.data, &image.metadata] {
        let mut pages = Vec::new();
        for number in 0..device.size().div_ceil(PAGE as u64) {
            let mut page = [0; PAGE];
            let len = (device.size() - number * PAGE as u64).min(PAGE as u64) as usize;
            device.read(number * PAGE as u64, &mut page[..len])?;
            if page.iter().any(|byte| *byte != 0) {
                pages.push((number, page));
            }
        }
        out.write_all(&device.size().to_le_bytes())?;
        out.write_all(&(pages.len() as u64).to_le_bytes())?;
        for (number, page) in pages {
            out.write_all(&number.to_le_bytes())?;
            out.write_all(&page)?;
        }
    }
    Ok(out.finish()?)
}

fn unpack(packed: &[u8]) -> Result<Image> {
    let mut input = GzDecoder::new(packed);
    let mut device = || -> Result<SparseImage> {
        let mut number = || -> Result<u64> {
            let mut bytes = [0; 8];
            input.read_exact(&mut bytes)?;
            Ok(u64::from_le_bytes(bytes))
        };
        let (size, pages) = (number()?, number()?);
        let mut image = SparseImage::new(size);
        for _ in 0..pages {
            let mut bytes = [0; 8 + PAGE];
            input.read_exact(&mut bytes)?;
            let (at, page) = bytes.split_at(8);
            let at = u64::from_le_bytes(at.try_into()?) * PAGE as u64;
            image.write(at, &page[..(size - at).min(PAGE as u64) as usize])?;
        }
        Ok(image)
    };
    Ok(Image { data: device()?, metadata: device()? })
}

/// CRC32C of both devices, for each golden volume, as today's code writes it.
pub fn today() -> BTreeMap<String, [String; 2]> {
    let crc = |image: &SparseImage| {
        let mut bytes = vec![0; image.size() as usize];
        image.read(0, &mut bytes).unwrap();
        format!("{:08x}", crc32c::crc32c(&bytes))
    };
    let sums = |(name, plan): (&str, Plan)| {
        let Image { data, metadata } = history(plan).image;
        (name.to_string(), [crc(&data), crc(&metadata)])
    };
    plans().into_iter().map(sums).collect()
}

/// A damaged volume: an image, what is done to it, and what the checker then finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fixture {
    /// What it is about.
    pub name: String,
    /// The golden image: version and name.
    pub image: String,
    /// What is done to it, each as an argument of the `damage` tool without the volume.
    pub damage: Vec<String>,
    /// What the checker finds, as severity, kind, place and field; or why it cannot check.
    pub findings: Vec<String>,
}

/// A command of a recipe.
#[derive(Parser)]
#[command(no_binary_name = true)]
struct Recipe {
    #[command(subcommand)]
    change: Change,
}

impl Fixture {
    /// All fixtures.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let path = fixtures_file();
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// The damaged volume.
    ///
    /// # Errors
    /// If there is no such image, or its damage cannot be made.
    pub fn make(&self) -> Result<Sample> {
        let (version, name) = self.image.split_once('/').context("expected VERSION/NAME")?;
        let sample = load(version, name)?;
        let memory = sample.image.memory();
        for command in &self.damage {
            let words = command.split_whitespace().map(|word| word.replace('_', " "));
            Recipe::try_parse_from(words)?.change.apply(&memory.devices())?;
        }
        Ok(Sample { image: memory.image(), ..sample })
    }

    /// What the checker finds in it today.
    ///
    /// # Errors
    /// As for [`Fixture::make`].
    pub fn found(&self) -> Result<Vec<String>> {
        Ok(match checked(&self.make()?.image) {
            Ok(report) => {
                let told = report.findings.iter();
                told.map(|f| format!("{:?} {}: {}: {}", f.severity, f.kind.name(), f.place, f.field))
                    .collect()
            }
            Err(error) => vec![error.to_string()],
        })
    }
}
