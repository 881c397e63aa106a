//! How often one place in the code is heard: whatever a client, a disk or a full file system can cause, it
//! can cause often.
//!
//! ```text
//!   events of one call site   ││││││││││││││││││││││││││││││││││││││││││             │
//!   lines                     ││││││││││        │         │        │                 │
//!                             └ LINES at once   └ one at the end of each second, with how many more it stands for
//! ```
//!
//! One mechanism for every call site, where lines are made and not where they are caused: the engine has no
//! clock, and nobody can forget it. Who asks for DEBUG or TRACE wants each line, and gets it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::callsite::Identifier;

/// Lines of a call site within [`WINDOW`] that are written as they come: what a start or an end says once for
/// each volume is no flood.
const LINES: u32 = 10;
/// How long lines are counted together.
const WINDOW: Duration = Duration::from_secs(1);

/// What is known of each call site.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// There are as many as in the code.
    sites: Mutex<HashMap<Identifier, Site>>,
}

/// A call site in its last window.
#[derive(Debug)]
struct Site {
    since: Instant,
    /// Lines that were written, or would have been.
    lines: u32,
    /// What stands for those that were not.
    kept: Option<Kept>,
}

/// The line at the end of a window.
#[derive(Debug)]
struct Kept {
    /// The first of those that it stands for; `None` while that is being formatted.
    text: Option<String>,
    /// How many more it stands for.
    more: u64,
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Written,
    /// To be kept for the end of the window.
    Kept,
    /// Counted only.
    LeftOut,
}

impl Limits {
    pub(super) fn judge(&self, site: Identifier, now: Instant) -> Verdict {
        let mut sites = self.lock();
        let site = sites.entry(site).or_insert(Site { since: now, lines: 0, kept: None });
        if let Some(kept) = &mut site.kept {
            kept.more += 1;
            return Verdict::LeftOut;
        }
        if now.saturating_duration_since(site.since) >= WINDOW {
            (site.since, site.lines) = (now, 0);
        }
        if site.lines < LINES {
            site.lines += 1;
            return Verdict::Written;
        }
        // So that nobody else makes a text.
        site.kept = Some(Kept { text: None, more: 0 });
        Verdict::Kept
    }

    pub(super) fn keep(&self, site: &Identifier, line: String) {
        if let Some(kept) = self.lock().get_mut(site).and_then(|site| site.kept.as_mut()) {
            kept.text = Some(line);
        }
    }

    /// When the next line is due, of those that there are.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.lock().values().filter(|site| site.has_line()).map(|site| site.since + WINDOW).min()
    }

    /// The lines of windows that have ended, or all. One that is still being formatted is due once it is
    /// there.
    pub(super) fn due(&self, now: Instant, all: bool) -> Vec<String> {
        let mut lines = Vec::new();
        for site in self.lock().values_mut() {
            if !site.has_line() || (!all && now < site.since + WINDOW) {
                continue;
            }
            if let Some(Kept { text: Some(text), more }) = site.kept.take() {
                lines.push(with_count(&text, more));
                // It goes on like this until a second has passed in silence.
                (site.since, site.lines) = (now, LINES);
            }
        }
        lines
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identifier, Site>> {
        // Whatever it was that panicked, numbers of lines are not half changed.
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Site {
    fn has_line(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.text.is_some())
    }
}

fn with_count(text: &str, more: u64) -> String {
    match more {
        0 => text.to_owned(),
        _ => format!("{} (and {more} more of this kind)\n", text.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::limited::Limited;
    use super::super::queue::Queue;
    use super::*;
    use std::io::{self, Write};
    use std::sync::Arc;
    use tracing::Level;

    /// Collects what is written.
    #[derive(Clone, Debug, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A place in the code. It is known by its address, so it has one.
    struct Here(#[expect(dead_code, reason = "for its size")] u8);

    static HERE: Here = Here(0);

    impl tracing::Callsite for Here {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("nobody asks")
        }
    }

    /// Runs `events` under a log and returns its lines.
    fn logged(events: impl FnOnce()) -> Vec<String> {
        let (sink, limits) = (Sink::default(), Arc::new(Limits::default()));
        let queue = Queue::start(sink.clone(), Arc::clone(&limits));
        let format = tracing_subscriber::fmt::format().with_ansi(false).with_target(false).without_time();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .event_format(Limited::new(format, limits, Arc::clone(&queue)))
            .with_writer(super::super::queue::Lines(Arc::clone(&queue)))
            .finish();
        tracing::subscriber::with_default(subscriber, events);
        queue.flush(Duration::from_secs(20));
        let text = sink.0.lock().unwrap().clone();
        String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
    }

    /// One line for each refused connection, before any authentication: 60,000 in 25 s.
    #[test]
    fn a_flood_is_its_first_lines_and_then_one_with_a_count_and_other_places_are_heard_as_before() {
        let lines = logged(|| {
            for i in 0..5000 {
                tracing::warn!("refused number {i}");
                if i == 4000 {
                    tracing::warn!("something else");
                }
            }
        });
        let others = lines.iter().filter(|line| line.ends_with("something else")).count();
        assert_eq!(others, 1);
        let flood: Vec<_> = lines.iter().filter(|line| line.contains("refused number")).collect();
        assert_eq!(*flood[LINES as usize - 1], format!(" WARN refused number {}", LINES - 1));
        // One more, unless the machine took seconds for it.
        assert!((LINES as usize + 1..LINES as usize + 20).contains(&flood.len()), "{flood:?}");
        let count = |line: &&String| match line.split_once("(and ") {
            Some((_, more)) => 1 + more.split(' ').next().unwrap().parse::<u64>().unwrap(),
            None => 1,
        };
        assert_eq!(flood.iter().map(count).sum::<u64>(), 5000, "each is counted: {flood:?}");
    }

    #[test]
    fn who_asks_for_every_step_gets_every_line() {
        let lines = logged(|| (0..100).for_each(|i| tracing::debug!("step {i}")));
        assert_eq!(lines.len(), 100);
    }

    /// Time is given, so that the test takes none.
    #[test]
    fn a_flood_that_goes_on_is_told_once_a_second_and_after_a_silent_second_lines_come_at_once() {
        let (limits, begin) = (Limits::default(), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        // One: its hash is of the pointer to the methods too, of which there may be several.
        let here = Identifier(&HERE);
        let site = || here.clone();
        let verdicts = |from: u64| (0..100).map(|i| limits.judge(site(), at(from + i))).collect::<Vec<_>>();
        let mut expected = vec![Verdict::Written; LINES as usize];
        expected.push(Verdict::Kept);
        expected.resize(100, Verdict::LeftOut);
        assert_eq!(verdicts(0), expected);
        limits.keep(&site(), "tenth\n".to_owned());
        assert_eq!(limits.next_due(), Some(at(1000)));
        assert!(limits.due(at(999), false).is_empty());
        assert_eq!(limits.due(at(1000), false), ["tenth (and 89 more of this kind)\n"]);
        assert_eq!(limits.next_due(), None);
        let second = verdicts(1100);
        assert_eq!((second[0], second[1]), (Verdict::Kept, Verdict::LeftOut), "the flood goes on");
        limits.keep(&site(), "later\n".to_owned());
        assert_eq!(limits.due(at(2000), false), ["later (and 99 more of this kind)\n"]);
        assert_eq!(verdicts(3001)[0], Verdict::Written, "it was over");
    }

    /// The second ended between the decision to keep a line and its text, and what was written was an empty
    /// line.
    #[test]
    fn a_line_that_is_being_formatted_when_its_second_ends_is_written_once_it_is_there() {
        let (limits, begin) = (Limits::default(), Instant::now());
        let here = Identifier(&HERE);
        let verdicts: Vec<_> = (0..=LINES).map(|_| limits.judge(here.clone(), begin)).collect();
        assert_eq!(verdicts.last(), Some(&Verdict::Kept));
        let end = begin + WINDOW;
        assert_eq!(limits.next_due(), None);
        assert!(limits.due(end, false).is_empty() && limits.due(end, true).is_empty());
        assert_eq!(limits.judge(here.clone(), end), Verdict::LeftOut);
        limits.keep(&here, "late\n".to_owned());
        assert_eq!(limits.next_due(), Some(end));
        assert_eq!(limits.due(end, false), ["late (and 1 more of this kind)\n"]);
    }
}
