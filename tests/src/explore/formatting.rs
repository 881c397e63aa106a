//! Power cuts while a volume is formatted, on blank devices and over an older volume: afterwards there is the
//! older volume as it was, or none, or the new one, empty; and the new one for certain once format has
//! returned.

use super::run::{Session, pair_key};
use super::tap::{Capture, Policy, Recorder};
use crate::{block, format_options, options, run};
use dedup_checker::{CheckOptions, Severity, check};
use dedup_device::{BlockDevice, SimDevice, SparseImage};
use dedup_volume::{FormatOptions, Op, Volume, VolumeError, format};
use std::sync::Arc;
use uuid::Uuid;

const LBNS: u64 = 4;
const DATA_BYTES: u64 = 64 << 10;
const METADATA_BYTES: u64 = 4 << 20;

/// What is found on the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    Nothing,
    Older,
    Newer,
}

/// Formats once over what `older` says, with all that `policy` captures on the way. The error is a story.
pub fn explore(older: bool, policy: Policy, session: &mut Session) -> Result<(), String> {
    let sims = [DATA_BYTES, METADATA_BYTES].map(|size| Arc::new(SimDevice::new(size)));
    if older {
        make_older(&sims);
    }
    let before = if older { Holds::Older } else { Holds::Nothing };
    let (recorder, [data, metadata]) = Recorder::new(&sims, policy, None);
    recorder.lock().unwrap().set_moment("format");
    let options = FormatOptions {
        force: true,
        log_blocks: Some(20),
        ..FormatOptions::new(LBNS * 4096, Uuid::from_u128(8), Uuid::from_u128(9))
    };
    format(&*data, &metadata, &options).map_err(|error| format!("format: {error}"))?;
    let captures = recorder.lock().unwrap().take();
    let mut seen_newer = false;
    for capture in &captures {
        let holds = judge(capture, session)?;
        if holds != before && holds != Holds::Nothing && holds != Holds::Newer {
            return Err(format!("format over {before:?}, {}: found {holds:?}", place(capture)));
        }
        seen_newer |= holds == Holds::Newer;
    }
    recorder.lock().unwrap().between_steps();
    let captures = recorder.lock().unwrap().take();
    for capture in &captures {
        if judge(capture, session)? != Holds::Newer {
            return Err(format!("format over {before:?} had returned, {}: no new volume", place(capture)));
        }
    }
    if seen_newer { Ok(()) } else { Err("no crash of format left the new volume".into()) }
}

fn place(capture: &Capture) -> String {
    format!("crash after event {:?}, kept {}", capture.event, capture.keep)
}

fn make_older(sims: &[Arc<SimDevice>; 2]) {
    let metadata: Arc<dyn BlockDevice> = sims[1].clone();
    format(&*sims[0], &metadata, &FormatOptions { log_blocks: Some(16), ..format_options(LBNS * 4096) })
        .expect("blank devices");
    let volume = Volume::open(sims[0].clone(), metadata, &options()).expect("a new volume");
    let data = block(1, 4096);
    run(&volume, Op::Write { offset: 0, data: &data, fua: true }).expect("an empty volume");
    volume.close().expect("devices that work");
}

fn judge(capture: &Capture, session: &mut Session) -> Result<Holds, String> {
    session.tally.judged(capture.moment, capture.device);
    let holds = look(&capture.images).map_err(|why| format!("{}: {why}", place(capture)))?;
    session.tally.verified(pair_key(&capture.images));
    Ok(holds)
}

fn look(images: &[SparseImage; 2]) -> Result<Holds, String> {
    let sims = images.clone().map(|image| Arc::new(SimDevice::from_image(image)));
    let metadata: Arc<dyn BlockDevice> = sims[1].clone();
    let report =
        check(Some(&*sims[0]), metadata.clone(), &CheckOptions { data: true, cache_bytes: 0 }, &mut |_| ());
    let volume = match Volume::open(sims[0].clone(), metadata, &options()) {
        Ok(volume) => volume,
        Err(VolumeError::NoVolume { .. } | VolumeError::WrongPair { .. } | VolumeError::NoLabel { .. }) => {
            return Ok(Holds::Nothing);
        }
        Err(error) => return Err(format!("refused with: {error}")),
    };
    let report = report.map_err(|error| format!("it opens, and dedup-check says: {error}"))?;
    let mut bytes = vec![0; (LBNS * 4096) as usize];
    run(&volume, Op::Read { offset: 0, buf: &mut bytes }).map_err(|error| error.to_string())?;
    let (first, rest) = bytes.split_at(4096);
    if rest.iter().any(|byte| *byte != 0) {
        return Err("content that was never written".into());
    }
    let holds = match first {
        first if first == block(1, 4096) => Holds::Older,
        first if first.iter().all(|byte| *byte == 0) => Holds::Newer,
        _ => return Err("a mixture".into()),
    };
    // Of the older volume some superblock copies may be erased already: that is a warning.
    let worst = if holds == Holds::Older { Severity::Warning } else { Severity::Info };
    match report.findings.iter().all(|finding| finding.severity <= worst) {
        true => Ok(holds),
        false => Err(format!("dedup-check of {holds:?}: {report}")),
    }
}
