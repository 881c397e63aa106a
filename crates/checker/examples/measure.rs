//! Time and memory of a check: `measure make DIR BLOCKS` makes a volume of so many 512-byte blocks, each unique and a tenth of them
//! referred to twice; `measure check DIR CACHE_MIB` checks its metadata, `measure data DIR CACHE_MIB` all of it.

use dedup_checker::{CheckOptions, check};
use dedup_device::{FileDevice, IoMode, OpenMode};
use dedup_volume::{FormatOptions, Op, OpenOptions, Request, Volume, geometry};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use uuid::Uuid;

const BLOCK: u64 = 512;
/// Blocks of a request.
const BATCH: u64 = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().skip(1).map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", dir, blocks] => make(Path::new(dir), blocks.parse()?),
        ["check", dir, cache] => measure(Path::new(dir), false, cache.parse()?),
        ["data", dir, cache] => measure(Path::new(dir), true, cache.parse()?),
        _ => Err("expected: make DIR BLOCKS | check DIR CACHE_MIB | data DIR CACHE_MIB".into()),
    }
}

fn make(dir: &Path, unique: u64) -> Result<(), Box<dyn Error>> {
    let lbns = unique + unique / 10;
    let metadata_size = geometry::metadata_size(lbns, unique + 1024);
    std::fs::create_dir_all(dir)?;
    let data = Arc::new(FileDevice::create(dir.join("data"), (unique + 1024) * BLOCK, IoMode::Buffered)?);
    let metadata: Arc<dyn dedup_device::BlockDevice> =
        Arc::new(FileDevice::create(dir.join("metadata"), metadata_size, IoMode::Buffered)?);
    let options = FormatOptions {
        block_size: BLOCK as u32,
        force: true,
        ..FormatOptions::new(lbns * BLOCK, Uuid::from_u128(1), Uuid::from_u128(2))
    };
    dedup_volume::format(&*data, &metadata, &options)?;
    let volume = Volume::open(data, metadata, &OpenOptions { background: false, ..Default::default() })?;
    for first in (0..lbns).step_by(BATCH as usize) {
        let content =
            |lbn: u64| (1 + lbn % unique).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(64);
        let bytes: Vec<u8> = (first..lbns.min(first + BATCH)).flat_map(content).collect();
        let op = Op::Write { offset: first * BLOCK, data: &bytes, fua: false };
        let mut failed = None;
        volume.execute(vec![Request { tag: 0, op }], &mut |_, result| failed = result.err());
        if let Some(error) = failed {
            return Err(format!("write of LBN {first}: {error:?}").into());
        }
    }
    volume.close()?;
    Ok(())
}

fn measure(dir: &Path, data: bool, cache_mib: u64) -> Result<(), Box<dyn Error>> {
    let open = |name| FileDevice::open(dir.join(name), OpenMode::ReadOnly, IoMode::Buffered);
    let (device, metadata) = (open("data")?, open("metadata")?);
    let options = CheckOptions { data, cache_bytes: cache_mib << 20 };
    let start = Instant::now();
    let report = check(Some(&device), Arc::new(metadata), &options, &mut |_| ())?;
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM unknown");
    println!("clean {}, {:.2} s, {peak}", report.is_clean(), seconds);
    println!("{}", report);
    println!("{:#?}", report.summary);
    Ok(())
}
