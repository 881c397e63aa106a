//! What the command-line tools share, so that all of them take arguments, print and fail in the same way.
//!
//! A tool's `main` is: [`parse`] its arguments (which also answers the hidden `completions` and `man` commands), do the
//! work, [`report`] an error, give an exit code of [`exit`]. In between it finds here:
//!
//! - [`VolumeArgs`]: which two devices are meant; [`Size`]: `10G`, and back; [`human`] sizes for people;
//! - [`OutputArgs`] and [`Status`]: one result, as aligned lines or as JSON; [`Progress`]: a bar, on a terminal only;
//! - [`control`]: asking the process that has a pool open.
//!
//! Not here: anything that opens a device. This crate knows paths, not what is in the files.

mod command;
pub mod control;
pub mod exit;
mod output;
mod progress;
mod size;
mod volume;

pub use command::{parse, parse_from};
pub use exit::report;
pub use output::{OutputArgs, Status};
pub use progress::{Progress, Unit};
pub use size::{Size, SizeError, human};
pub use volume::{VolumeArgs, VolumeError, VolumePaths};
