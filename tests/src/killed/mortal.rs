//! A device as a process sees it that dies: nothing is done any more, and what was under way is done in part.
//! The device below has lost nothing.

use super::Death;
use dedup_device::{BlockDevice, Call, InterceptDevice, IoKind, SimDevice};
use std::io;
use std::sync::Arc;

/// Bytes of a sector, which is written whole or not at all.
const SECTOR: usize = 512;

/// The device of a process that dies then.
pub fn mortal(below: &Arc<SimDevice>, death: &Arc<Death>) -> Arc<dyn BlockDevice> {
    let (disk, death) = (Arc::clone(below), Arc::clone(death));
    Arc::new(InterceptDevice::new(below.clone(), move |call| act(&disk, &death, call)).one_by_one())
}

fn act(disk: &SimDevice, death: &Death, call: &mut Call<'_, '_>) -> io::Result<()> {
    let alive = || if death.event() { Err(io::Error::other("the process is dead")) } else { Ok(()) };
    match call.kind() {
        IoKind::Read if death.is_over() => alive()?,
        IoKind::Read => {}
        // Two events: who dies in between has written some sectors.
        IoKind::Write => {
            alive()?;
            if let Err(dead) = alive() {
                let bytes = call.bufs().concat();
                let sectors = death.events() as usize % (bytes.len() / SECTOR + 1);
                disk.write(call.offsets()[0], &bytes[..sectors * SECTOR])?;
                return Err(dead);
            }
        }
        IoKind::Flush | IoKind::Discard => alive()?,
    }
    call.pass();
    Ok(())
}
