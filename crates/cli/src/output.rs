//! One result, told to a person or to a program; and the one way to standard output.
//!
//! ```text
//!   volume        archive                      {
//!   logical size  1 TiB             --json       "volume": "archive",
//!   used          1.5 GiB                        "logical_size_bytes": 1099511627776, ...
//! ```
//!
//! Who reads may leave early (`| head`): that is no error of the tool, which ends as it would have. Any other
//! failure is one, and none is a panic: the library's `print` macros panic, so no tool uses them.

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
    /// Prints `value` as JSON if `--json` was given, else what `text` makes of it. Errors are standard
    /// output's.
    pub fn print<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> Status) -> io::Result<()> {
        tell(|out| self.write(out, value, text))
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

/// Writes to standard output what `write` has to say. A reader that has gone is no error.
pub fn tell(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    to_reader(io::stdout().lock(), write)
        .map_err(|error| io::Error::new(error.kind(), format!("standard output: {error}")))
}

fn to_reader(out: impl Write, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = io::BufWriter::new(out);
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
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
    fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one() {
        struct Failing(io::ErrorKind);
        impl Write for Failing {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for json in [false, true] {
            let told = |kind| {
                let text = |_: &i32| Status::new().row("a", 1);
                to_reader(Failing(kind), |out| OutputArgs { json }.write(out, &1, text))
            };
            assert!(told(io::ErrorKind::BrokenPipe).is_ok());
            assert_eq!(told(io::ErrorKind::StorageFull).unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
