//! Many clients in flight on a schedule that a seed fixes, power cuts, and what may be there afterwards.
//!
//! [`oracle`] tells what may be; the rest runs the whole threaded engine under `shuttle`, and so needs the feature `shuttle`.

pub mod oracle;
