//! `dedup-tool status`: of a volume at rest, or of one that is being served.
//!
//! ```text
//!   data device (which file it is, no lock) ─> control socket ─> its server's answer
//!                                                   └─ nobody ─> open read-only, replay in memory
//! ```
//!
//! Either way it is the same JSON, documented in `docs/status.md`.

use anyhow::{Context, Result};
use dedup_cli::control::{ControlClient, ControlError, Request};
use dedup_cli::{Devices, OutputArgs, Status, VolumeArgs, VolumePaths, human, journal_options, peek_label};
use dedup_device::OpenMode;
use dedup_volume::{OpenOptions, Volume};
use serde_json::Value;

/// Bytes of metadata blocks kept in memory while a log is replayed for a status.
const CACHE_BYTES: u64 = 32 << 20;

/// Show sizes, savings and counters of a volume, whether it is being served or not
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    volume: VolumeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let paths = args.volume.resolve()?;
    let mut status = status(&paths)?;
    // The label can be read while its device is locked; a volume without one has been told of by now.
    let identity = peek_label(&paths.data).ok().flatten().map(|label| label.identity().to_string());
    if let Some(fields) = status.as_object_mut() {
        fields.insert("uuid".to_owned(), identity.into());
    }
    args.output.print(&status, |status| table(&paths.name, status))?;
    Ok(())
}

fn status(paths: &VolumePaths) -> Result<Value> {
    if let Some(served) = served(paths)? {
        return Ok(served);
    }
    let devices = Devices::open(&paths.clone().existing()?, OpenMode::ReadOnly, None)?;
    let options = OpenOptions {
        read_only: true,
        background: false,
        cache_bytes: CACHE_BYTES,
        digest_threads: 1,
        journal: Some(journal_options(&paths.metadata)?),
        ..OpenOptions::default()
    };
    let volume = Volume::open(devices.data, devices.metadata, &options)?;
    Ok(with_server(serde_json::to_value(volume.status())?, None))
}

/// What the volume's server says; `None` if there is none that this user could ask.
fn served(paths: &VolumePaths) -> Result<Option<Value>> {
    // A device that is not there is reported by the opening, which says why.
    if !paths.data.exists() {
        return Ok(None);
    }
    let client = match ControlClient::connect(&paths.data) {
        Ok(client) => client,
        Err(ControlError::NotRunning { .. }) => return Ok(None),
        Err(error) => return Err(error).context("the volume's server does not answer"),
    };
    let pid = client.pid();
    let status = client.request(&Request::Status).with_context(|| format!("asked process {pid}"))?;
    Ok(Some(with_server(status, Some(pid))))
}

fn with_server(mut status: Value, pid: Option<u32>) -> Value {
    if let Some(fields) = status.as_object_mut() {
        fields.insert("served_by_pid".to_owned(), pid.into());
    }
    status
}

/// The table for people. It shows everything; numbers of blocks as bytes where those say more.
fn table(name: &str, status: &Value) -> Status {
    let text = |field| plain(&status[field]);
    let bytes = |field| human(number(&status[field]));
    let part = |field, of| percent(number(&status[field]), number(&status[of]));
    let served = match status["served_by_pid"].as_u64() {
        Some(pid) => format!("{}, served by process {pid}", text("mode")),
        None => "not being served".to_owned(),
    };
    let mut table = Status::new().row("volume", name).row("uuid", text("uuid")).row("state", served);
    if let Some(failure) = status["failure"].as_str() {
        table = table.row("FAILED", failure);
    }
    let memory_only = "inram: in memory only, lost when the server ends; FLUSH flushes data only";
    let backend = if text("mdbackend") == "inram" { memory_only.to_owned() } else { text("mdbackend") };
    table = table
        .row("metadata backend", backend)
        .row("block size", bytes("block_size"))
        .row("digest", text("crypto_alg"))
        .row("verify match", if status["verify_match"] == true { "yes" } else { "no" })
        .row("check on read", text("check_on_read"))
        .row("flushrq", text("flushrq"))
        .row("logical size", bytes("logical_size"))
        .row("logical used", format!("{} ({})", bytes("logical_used"), part("logical_used", "logical_size")));
    let data_size = number(&status["data_total_blocks"]) * number(&status["block_size"]);
    let data_free = number(&status["data_free_blocks"]) * number(&status["block_size"]);
    let set_aside = number(&status["data_set_aside_blocks"]) * number(&status["block_size"]);
    table = table
        .row("data size", human(data_size))
        .row(
            "data used",
            format!("{} ({})", bytes("data_used"), part("data_used_blocks", "data_total_blocks")),
        )
        .row("data free", human(data_free))
        .row("data set aside", human(set_aside))
        .row(
            "file system below",
            if status["data_full_below"] == true { "FULL" } else { "not known to be full" },
        )
        .row("dedup ratio", format!("{:.2}", status["dedup_ratio"].as_f64().unwrap_or(1.0)))
        .row("space saved", bytes("space_saved"))
        .row("damaged blocks now", text("bad_blocks_now"));
    let metadata = |field| human(number(&status[field]).saturating_mul(dedup_meta::META_BLOCK_SIZE as u64));
    table = table
        .row("metadata size", metadata("metadata_total_blocks"))
        .row(
            "metadata used",
            format!(
                "{} ({})",
                metadata("metadata_used_blocks"),
                part("metadata_used_blocks", "metadata_total_blocks")
            ),
        )
        .row("metadata free", metadata("metadata_free_blocks"))
        .row("index entries", text("index_entries"));
    let table = add(table, "", &status["counters"]);
    let table = add(table, "commit: ", &status["commit"]);
    let table = add(table, "journal: ", &status["journal"]);
    let table = add(table, "data cache: ", &status["data_cache"]);
    add(table, "gc: ", &status["gc"])
}

/// One line for each field of an object.
pub(crate) fn rows(object: &Value) -> Status {
    add(Status::new(), "", object)
}

fn add(table: Status, prefix: &str, object: &Value) -> Status {
    object.as_object().into_iter().flatten().fold(table, |table, (field, value)| {
        table.row(format!("{prefix}{}", field.replace('_', " ")), plain(value))
    })
}

/// A value without the quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        other => other.to_string(),
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn percent(part: u64, of: u64) -> String {
    if of == 0 { "-".to_owned() } else { format!("{:.1} %", part as f64 * 100.0 / of as f64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dedup_volume::Counters;
    use serde_json::json;

    #[test]
    fn every_counter_has_a_line_and_a_full_device_is_full() {
        let status = json!({
            "counters": Counters { writes: 4711, ..Counters::default() },
            "block_size": 4096, "data_total_blocks": 10, "data_used_blocks": 10, "data_used": 40960,
        });
        let text = table("v", &status).to_string();
        let counters = serde_json::to_value(Counters::default()).unwrap();
        for name in counters.as_object().unwrap().keys() {
            assert!(text.contains(&name.replace('_', " ")), "{name} in {text}");
        }
        assert!(text.contains("4711") && text.contains("40 KiB (100.0 %)"), "{text}");
    }

    #[test]
    fn a_volume_in_memory_and_a_failed_one_say_so() {
        let text = table("v", &json!({"mdbackend": "inram", "failure": "flush: I/O error"})).to_string();
        assert!(text.contains("lost when the server ends"), "{text}");
        assert!(text.contains("FAILED") && text.contains("flush: I/O error"), "{text}");
    }

    #[test]
    fn a_part_of_nothing_is_no_number() {
        assert_eq!((percent(0, 0), percent(1, 8)), ("-".to_owned(), "12.5 %".to_owned()));
    }
}
