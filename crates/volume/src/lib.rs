//! (to be written)
mod request;
pub use request::{Op, Request, RequestError};
