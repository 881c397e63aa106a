//! Formatting events, as far as the limits let them through.

use super::limit::{Limits, Verdict};
use super::queue::Queue;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Formats the events that are to be written.
#[derive(Debug)]
pub(super) struct Limited<F> {
    format: F,
    limits: Arc<Limits>,
    queue: Arc<Queue>,
}

impl<F> Limited<F> {
    pub(super) fn new(format: F, limits: Arc<Limits>, queue: Arc<Queue>) -> Self {
        Self { format, limits, queue }
    }
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return self.format.format_event(context, writer, event);
        }
        let site = metadata.callsite();
        match self.limits.judge(site.clone(), Instant::now()) {
            Verdict::Written => self.format.format_event(context, writer, event),
            Verdict::Kept => {
                let mut text = String::new();
                let formatted = self.format.format_event(context, Writer::new(&mut text), event);
                self.limits.keep(&site, text);
                self.queue.wake();
                formatted
            }
            Verdict::LeftOut => Ok(()),
        }
    }
}
