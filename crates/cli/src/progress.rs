//! A progress bar on standard error, if that is a terminal; else nothing, so logs and pipes stay clean.

use crate::logging;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as KiB, MiB, ...
    Bytes,
    /// Anything else, shown as a number.
    Count,
}

/// A bar that goes away when it is dropped. Cheap to advance from several threads: it is redrawn at most 20
/// times a second.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar labelled `label` up to `total`.
    pub fn new(label: &str, total: u64, unit: Unit) -> Self {
        Self::on(ProgressDrawTarget::stderr(), label, total, unit)
    }

    /// Counts `n` more.
    pub fn advance(&self, n: u64) {
        self.bar.inc(n);
    }

    /// Counts `done` in all.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// Corrects the total, if it was an estimate.
    pub fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    /// Prints a line on standard error without tearing the bar.
    pub fn line(&self, text: &str) {
        self.bar.suspend(|| logging::say(text));
    }

    fn on(target: ProgressDrawTarget, label: &str, total: u64, unit: Unit) -> Self {
        let numbers = match unit {
            Unit::Bytes => "{binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
            Unit::Count => "{human_pos}/{human_len} {per_sec}",
        };
        let template = format!("{{msg}} [{{bar:30}}] {{percent}}% {numbers} {{eta}}");
        let style = ProgressStyle::with_template(&template).expect("both templates are fixed and tested");
        let bar = ProgressBar::with_draw_target(Some(total), target);
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(label.to_owned());
        Self { bar }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::InMemoryTerm;

    #[test]
    fn a_bar_shows_label_and_position_and_is_gone_after_the_drop() {
        for (unit, shown) in [(Unit::Bytes, "1.00 KiB/4.00 KiB"), (Unit::Count, "1,024/4,096")] {
            let terminal = InMemoryTerm::new(5, 200);
            let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
            let progress = Progress::on(target, "checking", 4096, unit);
            progress.advance(24);
            progress.set(1024);
            progress.bar.force_draw();
            let contents = terminal.contents();
            assert!(contents.contains("checking") && contents.contains(shown), "{contents}");
            drop(progress);
            assert_eq!(terminal.contents(), "");
        }
    }
}
