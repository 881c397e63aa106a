//! What the numbers were measured on: without it they mean nothing.

use crate::programs::Version;
use serde::Serialize;
use std::fmt;
use std::fs;
use std::path::Path;

/// A machine, as far as it matters.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
    /// Mount of the directory worked in: device, type, options.
    file_system: Option<String>,
    versions: Vec<Version>,
    /// Runnable tasks over the last minute, before anything was started: above about 0.2 a core, others had a
    /// part in the numbers.
    load_before: f64,
}

impl Machine {
    /// This machine, with `dir` to be worked in.
    pub(crate) fn describe(dir: Option<&Path>, versions: Vec<Version>) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = field(&meminfo, "MemTotal").and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
        Self {
            processor: field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            memory_bytes: kib.unwrap_or(0) << 10,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            file_system: dir.and_then(file_system),
            versions,
            load_before: load_average(),
        }
    }

    fn was_loaded(&self) -> bool {
        self.load_before > 0.2 * self.cores as f64
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = dedup_cli::human(self.memory_bytes);
        writeln!(
            f,
            "Machine: {}, {} cores, {memory} memory, Linux {}",
            self.processor, self.cores, self.kernel
        )?;
        if let Some(file_system) = &self.file_system {
            writeln!(f, "File system: {file_system}")?;
        }
        for Version { program, version } in &self.versions {
            let version =
                version.strip_prefix(program.as_str()).unwrap_or(version).trim_start_matches([' ', '-']);
            writeln!(f, "{program}: {version}")?;
        }
        let remark = if self.was_loaded() {
            " (OTHERS WERE RUNNING: the rates are too low, look at the ratios)"
        } else {
            ""
        };
        writeln!(f, "Load average before: {:.1}{remark}", self.load_before)
    }
}

/// The load average over the last minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

/// The value of the first `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

/// The mount with the longest mount point above `dir`.
fn file_system(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.next()?, fields.next()?, fields.next()?, fields.next()?))
    });
    let (device, _, kind, options) =
        mounts.filter(|(_, at, ..)| dir.starts_with(at)).max_by_key(|(_, at, ..)| at.len())?;
    Some(format!("{kind} on {device} ({options})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_name() {
        assert_eq!(field("processor\t: 0\nmodel name\t: Some CPU\n", "model name"), Some("Some CPU"));
        assert_eq!(field("", "MemTotal"), None);
    }

    #[test]
    fn every_directory_is_on_a_file_system() {
        assert!(file_system(Path::new("/")).is_some());
    }
}
