//! What every crash state goes through: the checker with data, a read-only open that writes nothing, an open
//! for writing that gives the same content, and a volume that goes on working, through one more power cut.

use super::oracle::{Found, Oracle};
use super::script::Params;
use crate::{block, options, run};
use dedup_checker::{CheckOptions, check};
use dedup_device::{BlockDevice, SimDevice, SparseImage};
use dedup_volume::{Op, OpenOptions, RunPolicy, Volume};
use std::sync::Arc;

/// A content that no script writes.
const LATER: u64 = u64::MAX >> 1;

/// How the script's volume is opened.
pub fn open_options(params: &Params) -> OpenOptions {
    OpenOptions {
        flushrq: Some(params.flushrq),
        verify_match: Some(params.verify_match),
        delta_max: params.delta_max,
        log_data: params.log_data,
        discard: params.discard,
        runs: if params.runs { RunPolicy::Always } else { RunPolicy::ByCost },
        cache_bytes: 0,
        ..options()
    }
}

/// Both devices, with everything durable.
fn devices(images: &[SparseImage; 2], params: &Params) -> [Arc<SimDevice>; 2] {
    let devices = images.clone().map(|image| Arc::new(SimDevice::from_image(image)));
    if !params.bypass {
        devices[1].refuse_bypass();
    }
    devices
}

/// Opens the volume and looks at what it holds.
fn open(
    devices: &[Arc<SimDevice>; 2],
    options: &OpenOptions,
    oracle: &mut Oracle,
) -> Result<(Volume, Found), String> {
    let volume = Volume::open(devices[0].clone(), devices[1].clone(), options)
        .map_err(|error| format!("the volume does not open: {error}"))?;
    let found = oracle.look(&volume).ok_or("an I/O error from devices that work")??;
    Ok((volume, found))
}

fn clean(devices: &[Arc<SimDevice>; 2]) -> Result<(), String> {
    let metadata: Arc<dyn BlockDevice> = devices[1].clone();
    let report =
        check(Some(&*devices[0]), metadata, &CheckOptions { data: true, cache_bytes: 0 }, &mut |_| ())
            .map_err(|error| format!("dedup-check: {error}"))?;
    if report.is_clean() { Ok(()) } else { Err(format!("dedup-check: {report}")) }
}

/// Verifies a crash state; what it holds.
pub fn verify(
    images: &[SparseImage; 2],
    params: &Params,
    options: &OpenOptions,
    oracle: &mut Oracle,
) -> Result<Found, String> {
    let disks = devices(images, params);
    clean(&disks)?;
    let read_only = OpenOptions { read_only: true, ..options.clone() };
    let (volume, seen) = open(&disks, &read_only, oracle).map_err(|why| format!("read-only: {why}"))?;
    drop(volume);
    for (device, image) in disks.iter().zip(images) {
        let counters = device.counters();
        if counters.writes + counters.discards + counters.flushes > 0
            || device.image().fingerprint() != image.fingerprint()
        {
            return Err(format!("a read-only open wrote: {counters:?}"));
        }
    }
    let (volume, found) = open(&disks, options, oracle)?;
    if seen != found {
        return Err(format!("read-only it holds {seen:?}, otherwise {found:?}"));
    }
    goes_on(volume, &disks, params, options, oracle, &found).map_err(|why| format!("afterwards: {why}"))?;
    Ok(found)
}

/// The reopened volume takes a write and a flush, and holds them through the next power cut.
fn goes_on(
    volume: Volume,
    disks: &[Arc<SimDevice>; 2],
    params: &Params,
    options: &OpenOptions,
    oracle: &mut Oracle,
    found: &Found,
) -> Result<(), String> {
    let size = params.block_size as usize;
    let lbn = found.counters.writes % params.lbns;
    let mut expected = found.blocks.clone();
    expected[lbn as usize] = oracle.content(LATER);
    run(&volume, Op::Write { offset: lbn * size as u64, data: &block(LATER, size), fua: false })
        .and_then(|()| run(&volume, Op::Flush))
        .map_err(|error| format!("a write and a flush: {error}"))?;
    drop(volume);
    let cut = [0, 1].map(|d| disks[d].crash(|_, _| false).image());
    let disks = devices(&cut, params);
    clean(&disks)?;
    let (_, found) = open(&disks, options, oracle)?;
    if found.blocks != expected {
        return Err(format!("expected {expected:?}, found {:?}", found.blocks));
    }
    Ok(())
}
