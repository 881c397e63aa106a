//! `dedup-tool dump-superblock`: every superblock copy of a metadata device, as it is.

use anyhow::Result;
use dedup_cli::{Devices, OutputArgs, Status, VolumeArgs, peek_label};
use dedup_device::OpenMode;
use dedup_meta::{CopyState, Root, RunSet, Superblock, SuperblockCopy, Survey, load_superblocks};
use dedup_volume::{Counters, DigestAlgorithm};
use serde_json::{Value, json};

/// Show every superblock copy, valid or not, of a volume that is not being served
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    volume: VolumeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = args.volume.resolve()?.existing()?;
    let devices = Devices::open(&paths, OpenMode::ReadOnly, None)?;
    let survey = load_superblocks(&*devices.metadata);
    let label = peek_label(&paths.data)?;
    let newest = survey.newest(label.map(|label| label.pool));
    let dump = json!({
        "device_blocks": survey.device_blocks,
        "data_label": label.map(|label| json!({
            "pool": label.pool.to_string(),
            "data_device": label.data_device.to_string(),
            "size": label.size,
            "block_size": label.block_size,
            "identity": label.identity().to_string(),
        })),
        "newest_transaction": newest.as_ref().ok().map(|superblock| superblock.txid.0),
        "problem": newest.as_ref().err().map(ToString::to_string),
        "copies": copies(&survey),
    });
    args.output.print(&dump, |dump| flatten(Status::new(), "", dump))?;
    Ok(())
}

fn copies(survey: &Survey) -> Vec<Value> {
    let copy = |SuperblockCopy { block, state }: &SuperblockCopy| {
        let (state, reason, superblock) = match state {
            CopyState::Empty => ("empty", None, None),
            CopyState::Unreadable(error) => ("unreadable", Some(error.clone()), None),
            CopyState::Damaged(fault) => ("damaged", Some(fault.to_string()), None),
            CopyState::Unsupported { reason, .. } => ("unsupported", Some(reason.to_string()), None),
            CopyState::Valid(superblock) => ("valid", None, Some(fields(superblock))),
        };
        json!({ "block": block.0, "state": state, "reason": reason, "superblock": superblock })
    };
    survey.copies.iter().map(copy).collect()
}

fn fields(superblock: &Superblock) -> Value {
    let Superblock { features, layout, roots, .. } = superblock;
    json!({
        "pool": superblock.pool.to_string(),
        "data_device": superblock.data_device.to_string(),
        "features": { "compat": features.compat, "ro_compat": features.ro_compat, "incompat": features.incompat },
        "transaction": superblock.txid.0,
        "block_size": superblock.block_size,
        "crypto_alg": DigestAlgorithm::from_u8(superblock.digest_algorithm),
        "verify_match": superblock.verify_match,
        "flushrq": superblock.flushrq,
        "data_blocks": superblock.data_blocks,
        "metadata_blocks": layout.metadata_blocks,
        "log_start": layout.log.start.0,
        "log_blocks": layout.log.blocks,
        "clean": superblock.clean,
        "needs_check": superblock.needs_check,
        "recount_needed": superblock.recount_needed,
        "epoch": superblock.epoch.0,
        "epoch_start": superblock.epoch_start.0,
        "log_next": superblock.log.next.0,
        "log_prev_crc": superblock.log.prev_crc,
        "operation": superblock.op_seq,
        "counters": Counters::from_slots(&superblock.counters),
        "data_used_blocks": superblock.data_used,
        "mapped_blocks": superblock.mapped,
        "cursor": superblock.cursor,
        "hint_rebuild_next": superblock.hint_rebuild_next,
        "roots": {
            "digest": root(&roots.digest),
            "refcount": root(&roots.refcount),
            "overflow": root(&roots.overflow),
            "bad": root(&roots.bad),
            "metamap": root(&roots.metamap),
            "hint": runs(&superblock.hint),
        },
        "volumes": superblock.volumes.iter().map(|volume| json!({
            "id": volume.id,
            "logical_blocks": volume.logical_blocks,
            "mapping": runs(&volume.mapping),
        })).collect::<Vec<_>>(),
    })
}

fn root(root: &Root) -> Value {
    match root.node {
        Some(node) => {
            json!({ "block": node.block.0, "crc": node.crc, "level": root.level, "entries": root.entries })
        }
        None => Value::Null,
    }
}

fn runs(set: &RunSet) -> Value {
    json!({ "base": root(&set.base), "runs": set.runs.iter().map(root).collect::<Vec<_>>() })
}

/// A line for each value, named by the way to it.
fn flatten(rows: Status, path: &str, value: &Value) -> Status {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(fields) => {
            fields.iter().fold(rows, |rows, (name, value)| flatten(rows, &below(name), value))
        }
        Value::Array(items) => {
            items.iter().enumerate().fold(rows, |rows, (i, item)| flatten(rows, &below(&i.to_string()), item))
        }
        Value::Null => rows.row(path, "-"),
        Value::String(text) => rows.row(path, text),
        other => rows.row(path, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_line_with_the_way_to_it() {
        let text = flatten(Status::new(), "", &json!({"a": [{"b": 1}, null], "c": "x"})).to_string();
        assert_eq!(text, "a.0.b  1\na.1    -\nc      x\n");
    }
}
