//! A connected stream socket, Unix or TCP, as the handshake and the transmission phase use it.
//!
//! It is blocking: a thread that has nothing to do sleeps in the kernel. Shutting one direction down from another
//! thread ([`end_receiving`](Socket::end_receiving), [`end`](Socket::end)) is what wakes it.

use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// One client's connection. Both directions may be used at once, each by one thread at a time.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Wraps a connected stream; `tcp` sets the options that only TCP has.
    pub(crate) fn new(fd: OwnedFd, tcp: bool) -> io::Result<Self> {
        if tcp {
            // Replies are gathered before they are sent, so waiting for more would only add latency.
            sockopt::set_tcp_nodelay(&fd, true)?;
            // A client whose machine died says nothing: without probes its connection would stay for ever.
            sockopt::set_socket_keepalive(&fd, true)?;
        }
        Ok(Self { fd })
    }

    /// Receives what is there, up to `buf`'s length, waiting for the first byte. 0 is the end of the stream.
    pub(crate) fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.recv_with(buf, RecvFlags::empty())
    }

    /// As [`recv`](Self::recv), but `None` instead of waiting.
    pub(crate) fn try_recv(&self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        match self.recv_with(buf, RecvFlags::DONTWAIT) {
            Ok(received) => Ok(Some(received)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn recv_with(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        loop {
            match net::recv(&self.fd, &mut *buf, flags) {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other?.0),
            }
        }
    }

    /// Fills `buf`, or fails: at the end of the stream, or when `deadline` has passed.
    pub(crate) fn recv_exact_until(&self, mut buf: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !buf.is_empty() {
            sockopt::set_socket_timeout(&self.fd, Timeout::Recv, Some(remaining(deadline)?))?;
            match self.recv(buf)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                received => buf = &mut buf[received..],
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`, or fails when `deadline` has passed.
    pub(crate) fn send_all_until(&self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.fd, Timeout::Send, Some(remaining(deadline)?))?;
        self.send_all(&mut [IoSlice::new(bytes)])
    }

    /// Ends what deadlines of the handshake have left behind.
    pub(crate) fn clear_timeouts(&self) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.fd, Timeout::Recv, None)?;
        Ok(sockopt::set_socket_timeout(&self.fd, Timeout::Send, None)?)
    }

    /// Sends all bytes of all slices, with as few system calls as the kernel lets it.
    pub(crate) fn send_all(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let some = &slices[..slices.len().min(SLICES_MAX)];
            match net::sendmsg(&self.fd, some, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                Ok(sent) => IoSlice::advance_slices(&mut slices, sent),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// No more is received than what has arrived by now (over TCP: than what arrives before a moment of silence).
    /// Replies can still be sent.
    pub(crate) fn end_receiving(&self) {
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

fn remaining(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        remaining => Ok(remaining),
    }
}
