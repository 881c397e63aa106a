//! A report for people: findings by kind, worst first, each kind with what to do about it, and a last line
//! that sums up.
//!
//! ```text
//!   error: tree_node: 1
//!     metadata block 17 (mapping tree, level 0): checksum: expected 0x1c8f0a11, found 0x90ab33f2
//!     -> what it held is lost: copy out what still reads, format anew, restore the rest
//!   archive: 1 error, 0 warnings; 60 LBNs mapped to 49 data blocks, ...
//! ```

use dedup_checker::{Finding, Report, Severity, Summary};
use dedup_cli::human;
use std::fmt;

/// Findings of a kind that are printed; JSON has more.
const SHOWN_MAX: usize = 20;

/// A report on its way to a terminal.
pub(crate) struct Told<'a> {
    pub(crate) name: &'a str,
    pub(crate) report: &'a Report,
    /// Only what is wrong.
    pub(crate) quiet: bool,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in self.report.findings.chunk_by(|a, b| a.kind == b.kind) {
            if !self.quiet || kind[0].severity > Severity::Info {
                self.kind(f, kind)?;
            }
        }
        if self.quiet {
            return Ok(());
        }
        let of = |severity| -> u64 {
            self.report
                .counts
                .iter()
                .filter(|(kind, _)| kind.severity() == severity)
                .map(|(_, count)| count)
                .sum()
        };
        match self.report.is_clean() {
            true => write!(f, "{}: clean; ", self.name)?,
            false => write!(
                f,
                "{}: {}, {}; ",
                self.name,
                plural(of(Severity::Error), "error"),
                plural(of(Severity::Warning), "warning")
            )?,
        }
        summary(f, &self.report.summary)
    }
}

impl Told<'_> {
    /// Findings of one kind.
    fn kind(&self, f: &mut fmt::Formatter<'_>, findings: &[Finding]) -> fmt::Result {
        let first = &findings[0];
        let severity = match first.severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let count = self.report.counts.get(&first.kind).copied().unwrap_or(findings.len() as u64);
        writeln!(f, "{severity}: {}: {count}", first.kind.name())?;
        findings.iter().take(SHOWN_MAX).try_for_each(|finding| writeln!(f, "  {finding}"))?;
        let more = count.saturating_sub(findings.len().min(SHOWN_MAX) as u64);
        if more > 0 {
            writeln!(f, "  and {more} more")?;
        }
        writeln!(f, "  -> {}", first.advice)
    }
}

fn summary(f: &mut fmt::Formatter<'_>, summary: &Summary) -> fmt::Result {
    let bytes = |blocks: u64| human(blocks.saturating_mul(summary.block_size.into()));
    write!(f, "{} mapped to {} of data", bytes(summary.mapped), bytes(summary.data_used))?;
    write!(f, ", {} of {} metadata blocks in use", summary.metadata_used, summary.metadata_blocks)?;
    write!(f, ", {} replayed", plural(summary.log_blocks, "log block"))?;
    match summary.data_checked {
        0 => writeln!(f, ", data not read"),
        blocks => writeln!(f, ", {} of data compared", bytes(blocks)),
    }
}

fn plural(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
