//! Durations on the command line: numbers of seconds within bounds.

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use std::time::Duration;

/// The longest that makes sense for anything here, in seconds: a day. What is meant to last longer has no
/// limit.
const SECONDS_MAX: f64 = 86_400.0;

/// Seconds from 0 to a day.
pub(crate) fn at_most_a_day() -> Seconds {
    Seconds { least: 0.0, or_none: false }
}

/// Seconds from `least` to a day.
pub(crate) fn at_least(least: f64) -> Seconds {
    Seconds { least, or_none: false }
}

/// The same, or 0.
pub(crate) fn or_none(least: f64) -> Seconds {
    Seconds { least, or_none: true }
}

/// The parser.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seconds {
    least: f64,
    or_none: bool,
}

impl Seconds {
    fn within(self, text: &str) -> Option<Duration> {
        let seconds: f64 = text.parse().ok()?;
        let is_fine = (self.least..=SECONDS_MAX).contains(&seconds) || (self.or_none && seconds == 0.0);
        // What is within the bounds is a duration.
        is_fine.then(|| Duration::from_secs_f64(seconds))
    }
}

impl TypedValueParser for Seconds {
    type Value = Duration;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Duration, clap::Error> {
        let text = value.to_string_lossy();
        self.within(&text).ok_or_else(|| {
            let name = arg.map(ToString::to_string).unwrap_or_default();
            let none = if self.or_none { "0, or " } else { "" };
            let Self { least, .. } = self;
            let message = format!(
                "invalid value '{text}' for '{name}': expected {none}a number of seconds from {least} to {SECONDS_MAX}\n"
            );
            clap::Error::raw(ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}
