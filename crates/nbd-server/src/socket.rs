//! A connected stream socket, Unix or TCP, in the clear: what a [`Transport`](crate::transport::Transport)
//! moves its bytes over.
//!
//! It is blocking: a thread that has nothing to do sleeps in the kernel. Shutting one direction down from
//! another thread ([`end_receiving`](Socket::end_receiving), [`end`](Socket::end)) is what wakes it.

use crate::budget::Budget;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How long a call may wait for the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// As long as it takes.
    Forever,
    /// As long as [`Socket::set_patience`] says; only for receiving.
    Patience,
    /// Until then; afterwards the call fails.
    Until(Instant),
    /// Not at all.
    Never,
}

impl Wait {
    /// What is left of it, for the system.
    fn timeout(self) -> io::Result<Option<Duration>> {
        let Self::Until(deadline) = self else { return Ok(None) };
        match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            remaining => Ok(Some(remaining)),
        }
    }
}

/// One client's connection. Both directions may be used at once, each by one thread at a time.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    /// What tells that the peer has gone: one of the constants below.
    sign: AtomicU8,
    /// What the peer's slowness may cost others.
    budget: OnceLock<Arc<Budget>>,
}

/// How a peer takes the replies of a batch, which may be sent in many calls.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// How long it was waited for.
    waited: Duration,
    /// What it took meanwhile.
    bytes: u64,
}

/// After how much silence a peer's machine is asked whether it is still there, how often, and how many
/// questions may have no answer: after two minutes a machine that has died is known to have.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_COUNT: u32 = 3;
/// How long what was sent may go without any progress, in milliseconds: as long. It would be a quarter of an
/// hour.
const USER_TIMEOUT_MS: u32 = 120_000;

/// The peer sends no more. One that has only ended its sending side counts as gone too: over TCP, and through
/// a proxy, the two look alike.
const SENDS_NO_MORE: u8 = 0;
/// We receive no more ourselves, which hides that sign; the end of both directions is seen still.
const HUNG_UP: u8 = 1;
/// It had gone before.
const GONE: u8 = 2;

impl Socket {
    /// Wraps a connected stream; `tcp` sets the options that only TCP has.
    pub(crate) fn new(fd: OwnedFd, tcp: bool) -> io::Result<Self> {
        if tcp {
            // Replies are gathered before they are sent, so waiting for more would only add latency.
            sockopt::set_tcp_nodelay(&fd, true)?;
            // A client whose machine died says nothing: without probes its connection would stay for ever.
            sockopt::set_socket_keepalive(&fd, true)?;
            sockopt::set_tcp_keepidle(&fd, KEEPALIVE_IDLE)?;
            sockopt::set_tcp_keepintvl(&fd, KEEPALIVE_INTERVAL)?;
            sockopt::set_tcp_keepcnt(&fd, KEEPALIVE_COUNT)?;
            sockopt::set_tcp_user_timeout(&fd, USER_TIMEOUT_MS)?;
        }
        Ok(Self { fd, sign: AtomicU8::new(SENDS_NO_MORE), budget: OnceLock::new() })
    }

    /// Receives what is there, up to `buf`'s length, waiting for the first byte. 0 is the end of the stream;
    /// `None` means that there is nothing yet and the call was not to wait, or no longer.
    pub(crate) fn recv(&self, buf: &mut [u8], wait: Wait) -> io::Result<Option<usize>> {
        let flags = if wait == Wait::Never { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
        loop {
            if let Some(timeout) = wait.timeout()? {
                sockopt::set_socket_timeout(&self.fd, Timeout::Recv, Some(timeout))?;
            }
            match net::recv(&self.fd, &mut *buf, flags) {
                Ok((received, _)) => return Ok(Some(received)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => match wait {
                    Wait::Never | Wait::Patience => return Ok(None),
                    // What ran out is the patience of others.
                    Wait::Forever => {}
                    Wait::Until(_) => return Err(io::ErrorKind::TimedOut.into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How long [`Wait::Patience`] is, `None` for ever.
    pub(crate) fn set_patience(&self, patience: Option<Duration>) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.fd, Timeout::Recv, patience)?)
    }

    /// Ends what waiting until a moment has left behind.
    pub(crate) fn clear_timeouts(&self) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.fd, Timeout::Recv, None)?;
        Ok(sockopt::set_socket_timeout(&self.fd, Timeout::Send, None)?)
    }

    /// From now on, a peer that does not take what is sent for ever is given up when others wait for the
    /// memory in which it lies.
    pub(crate) fn send_within(&self, budget: &Arc<Budget>) -> io::Result<()> {
        // A wait for ever is interrupted now and then, to look.
        sockopt::set_socket_timeout(&self.fd, Timeout::Send, Some(budget.stall_time() / 2))?;
        // It is set once.
        let _ = self.budget.set(Arc::clone(budget));
        Ok(())
    }

    /// Sends all bytes of all slices, with as few system calls as the kernel lets it. If it fails, a part may
    /// have been sent.
    pub(crate) fn send_all(
        &self,
        mut slices: &mut [IoSlice<'_>],
        wait: Wait,
        pace: &mut Pace,
    ) -> io::Result<()> {
        let is_patient = matches!(wait, Wait::Forever | Wait::Patience);
        let budget = self.budget.get().filter(|_| is_patient);
        // Mostly all goes at once. Only what does not has to be timed.
        let mut at_once = wait == Wait::Never || budget.is_some();
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            if let Some(timeout) = wait.timeout()? {
                sockopt::set_socket_timeout(&self.fd, Timeout::Send, Some(timeout))?;
            }
            let some = &slices[..slices.len().min(SLICES_MAX)];
            let wanted: usize = some.iter().map(|slice| slice.len()).sum();
            let dont_wait = if at_once { SendFlags::DONTWAIT } else { SendFlags::empty() };
            let begin = (!at_once).then(Instant::now);
            let flags = SendFlags::NOSIGNAL | dont_wait;
            let sent = match net::sendmsg(&self.fd, some, &mut SendAncillaryBuffer::default(), flags) {
                Ok(sent) => sent,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) if is_patient => 0,
                Err(error) => return Err(error.into()),
            };
            IoSlice::advance_slices(&mut slices, sent);
            at_once &= budget.is_none() || sent == wanted;
            if let (Some(budget), Some(begin)) = (budget, begin) {
                pace.waited += begin.elapsed();
                pace.bytes += sent as u64;
                if budget.is_too_slow(pace.waited, pace.bytes) {
                    let what = "the client takes no replies, and others wait for the memory";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
            }
        }
        Ok(())
    }

    /// Whether something waits to be received.
    pub(crate) fn has_input(&self) -> bool {
        rustix::io::ioctl_fionread(&self.fd).is_ok_and(|len| len > 0)
    }

    /// Whether the peer has not ended the connection, as far as the kernel has heard, whatever it has sent
    /// before and nobody has received.
    pub(crate) fn is_open(&self) -> bool {
        loop {
            let sign = self.sign.load(Ordering::SeqCst);
            let event = match sign {
                SENDS_NO_MORE => PollFlags::RDHUP,
                // Reported unasked.
                HUNG_UP => PollFlags::empty(),
                _ => return false,
            };
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            match poll(&mut [PollFd::new(&self.fd, event)], Some(&now)) {
                Ok(0) => return true,
                Err(rustix::io::Errno::INTR) => {}
                // Our own end of receiving came in between, and may be all that was seen.
                Ok(_) if self.sign.load(Ordering::SeqCst) != sign => {}
                // If it cannot be asked, the connection is of no more use.
                Ok(_) | Err(_) => return false,
            }
        }
    }

    /// Whether [`end_receiving`](Self::end_receiving) has been called.
    pub(crate) fn has_ended_receiving(&self) -> bool {
        self.sign.load(Ordering::SeqCst) != SENDS_NO_MORE
    }

    /// No more is received than what has arrived by now (over TCP: than what arrives before a moment of
    /// silence). Replies can still be sent.
    pub(crate) fn end_receiving(&self) {
        let sign = if self.is_open() { HUNG_UP } else { GONE };
        self.sign.store(sign, Ordering::SeqCst);
        // It fails only if the peer has already gone, and then there is nothing to end.
        let _ = net::shutdown(&self.fd, Shutdown::Read);
    }

    /// Ends both directions: every call that waits on the socket returns.
    pub(crate) fn end(&self) {
        let _ = net::shutdown(&self.fd, Shutdown::Both);
    }
}

/// Slices in one `sendmsg`: Linux's `UIO_MAXIOV`.
const SLICES_MAX: usize = 1024;
