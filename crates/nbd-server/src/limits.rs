//! [`Limits`]: what clients may use of a server.

use std::time::Duration;

/// What a server lets clients use of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections_max: usize,
    pub(crate) connections_per_address_max: usize,
    pub(crate) threads_per_connection: usize,
    pub(crate) handshake_timeout: Duration,
    /// Not zero.
    pub(crate) idle_time: Duration,
    /// Not zero.
    pub(crate) idle_limit: Option<Duration>,
    pub(crate) payload_memory: usize,
    /// Not zero.
    pub(crate) stall_time: Duration,
}
