//! Exit codes, and how an error is told.

use crate::logging;
use std::error::Error;

/// Success.
pub const SUCCESS: u8 = 0;
/// The tool failed.
pub const FAILURE: u8 = 1;
/// Wrong arguments: what clap, and most Unix tools, use.
pub const USAGE: u8 = 2;

/// The exit codes of fsck(8), for the checker. `CORRECTED` and `UNCORRECTED` are bits, and may be or-ed.
pub mod fsck {
    /// Nothing wrong.
    pub const CLEAN: u8 = 0;
    /// Errors were found and corrected.
    pub const CORRECTED: u8 = 1;
    /// Errors were found and are still there.
    pub const UNCORRECTED: u8 = 4;
    /// The check could not be done.
    pub const OPERATIONAL: u8 = 8;
    /// Wrong arguments.
    pub const USAGE: u8 = 16;
}

/// Prints `tool: error: what happened: why: why that`, on standard error, behind what was logged.
pub fn report(tool: &str, error: &(dyn Error + 'static)) {
    logging::say(&format!("{tool}: error: {}", chain(error)));
    logging::finish();
}

/// Ends the process without anything but the log being finished: no destructor runs.
pub fn now(code: u8) -> ! {
    logging::finish();
    std::process::exit(i32::from(code))
}

/// An error and its causes on one line. A cause that the text before it already ends with is not said twice.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |cause: &&(dyn Error + 'static)| (*cause).source()) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text = text + ": " + &cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Story {
        #[error("cannot open volume")]
        Open(#[source] Box<Story>),
        #[error("block 7: {0}")]
        Read(#[source] std::io::Error),
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        let error = Story::Open(Box::new(Story::Read(std::io::Error::other("medium error"))));
        assert_eq!(chain(&error), "cannot open volume: block 7: medium error");
    }
}
