//! One result, told to a person or to a program.
//!
//! ```text
//!   volume        archive                      {
//!   logical size  1 TiB             --json       "volume": "archive",
//!   used          1.5 GiB                        "logical_size_bytes": 1099511627776, ...
//! ```

use serde::Serialize;
use std::fmt;
use std::io::{self, Write};

/// The `--json` option of every tool that prints a result.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct OutputArgs {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

impl OutputArgs {
    /// Prints `value` as JSON if `--json` was given, else what `text` makes of it. Errors are standard output's.
    pub fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> Status) -> io::Result<()> {
        self.write(io::stdout().lock(), value, text)
    }

    /// [`print`](Self::print) to another place.
    pub fn write<T: Serialize>(
        &self,
        mut out: impl Write,
        value: &T,
        text: impl FnOnce(&T) -> Status,
    ) -> io::Result<()> {
        if self.json {
            serde_json::to_writer_pretty(&mut out, value)?;
            writeln!(out)?;
        } else {
            write!(out, "{}", text(value))?;
        }
        out.flush()
    }
}

/// Lines of `label  value`, the values under each other.
#[derive(Clone, Debug, Default)]
pub struct Status {
    rows: Vec<(String, String)>,
}

impl Status {
    /// No lines yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line.
    pub fn row(mut self, label: impl Into<String>, value: impl fmt::Display) -> Self {
        self.rows.push((label.into(), value.to_string()));
        self
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The formatter pads by characters; labels are the tools' own and hold no wide ones.
        let width = self.rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        self.rows.iter().try_for_each(|(label, value)| writeln!(f, "{label:width$}  {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(_: &serde_json::Value) -> Status {
        Status::new().row("größe", 4).row("logical size", "1 TiB")
    }

    #[test]
    fn values_stand_under_each_other() {
        let mut out = Vec::new();
        OutputArgs { json: false }.write(&mut out, &serde_json::Value::Null, text).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "größe         4\nlogical size  1 TiB\n");
    }

    #[test]
    fn json_is_the_value_and_nothing_else() {
        let value = serde_json::json!({"used": 5, "name": "a\nb"});
        let mut out = Vec::new();
        OutputArgs { json: true }.write(&mut out, &value, text).unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), value);
        assert!(out.ends_with(b"}\n"));
    }

    #[test]
    fn a_closed_pipe_is_an_error_and_no_panic() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = OutputArgs { json: true }.write(Closed, &1, |_| Status::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
