//! One line of JSON over a socket, bounded in length and in time.

use super::{ControlError, LINE_BYTES_MAX, io_error};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Sends `value` as a line within `limit`.
pub(super) fn send(
    stream: &UnixStream,
    path: &Path,
    value: &impl Serialize,
    limit: Duration,
) -> Result<(), ControlError> {
    let mut text = serde_json::to_vec(value).map_err(|error| io_error("encode for", path)(error.into()))?;
    text.push(b'\n');
    if text.len() > LINE_BYTES_MAX {
        let found = format!("one of {} bytes", text.len());
        return Err(ControlError::Protocol { expected: "a line of at most 64 KiB", found });
    }
    let end = Instant::now() + limit;
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        let sent = remaining(end).and_then(|time| {
            stream.set_write_timeout(Some(time))?;
            (&mut &*stream).write(rest)
        });
        match sent {
            Ok(n) => rest = &rest[n..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("write to", path)(timed_out(error))),
        }
    }
    Ok(())
}

/// Receives a line within `limit` and parses it. `expected` names it in errors.
pub(super) fn receive<T: DeserializeOwned>(
    stream: &UnixStream,
    path: &Path,
    expected: &'static str,
    limit: Duration,
) -> Result<T, ControlError> {
    let protocol = |found| ControlError::Protocol { expected, found };
    let end = Instant::now() + limit;
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let read = remaining(end).and_then(|time| {
            stream.set_read_timeout(Some(time))?;
            (&mut &*stream).read(&mut piece)
        });
        match read {
            Ok(0) => return Err(protocol(format!("the end of the connection after {} bytes", line.len()))),
            Ok(n) => line.extend_from_slice(&piece[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(io_error("read from", path)(timed_out(error))),
        }
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            return serde_json::from_slice(&line[..end]).map_err(|error| protocol(error.to_string()));
        }
        if line.len() >= LINE_BYTES_MAX {
            return Err(protocol(format!("more than {LINE_BYTES_MAX} bytes without a line end")));
        }
    }
}

/// Time left until `end`, which a socket takes as its timeout; an error if there is none.
fn remaining(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// A socket says "would block" when its timeout is over.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { ErrorKind::TimedOut.into() } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    fn received(sent: &[u8]) -> Result<u32, ControlError> {
        let (mut near, far) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(move || {
                // The reader may hang up early.
                let _ = near.write_all(sent);
            });
            let result = receive(&far, Path::new("test"), "a number", LONG);
            drop(far);
            writer.join().unwrap();
            result
        })
    }

    #[test]
    fn a_line_is_received_in_pieces_and_what_follows_it_is_ignored() {
        let line = format!("{}7\nrest", " ".repeat(10_000));
        assert_eq!(received(line.as_bytes()).unwrap(), 7);
    }

    #[test]
    fn a_line_without_end_a_cut_one_and_garbage_are_protocol_errors() {
        let found = |sent: &[u8]| match received(sent).unwrap_err() {
            ControlError::Protocol { expected: "a number", found } => found,
            other => panic!("{other}"),
        };
        assert_eq!(found(&vec![b' '; LINE_BYTES_MAX * 3]), "more than 65536 bytes without a line end");
        assert_eq!(found(b"12"), "the end of the connection after 2 bytes");
        assert_eq!(found(b"\xff\xfe\n"), "expected value at line 1 column 1");
    }

    #[test]
    fn a_peer_that_sends_a_byte_now_and_then_does_not_stretch_the_time() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let begin = Instant::now();
        let dripping = thread::spawn(move || {
            while near.write_all(b" ").is_ok() && begin.elapsed() < LONG {
                thread::sleep(SOON / 10);
            }
        });
        let error = receive::<u32>(&far, Path::new("test"), "a number", SOON).unwrap_err();
        assert!(
            matches!(&error, ControlError::Io { source, .. } if source.kind() == ErrorKind::TimedOut),
            "{error}"
        );
        assert!(begin.elapsed() < LONG / 2);
        drop(far);
        dripping.join().unwrap();
    }

    #[test]
    fn a_peer_that_does_not_read_times_out_the_sender() {
        let (near, _far) = UnixStream::pair().unwrap();
        let big = "x".repeat(LINE_BYTES_MAX - 3);
        let error = (0..1000).find_map(|_| send(&near, Path::new("test"), &big, SOON).err()).unwrap();
        assert!(
            matches!(&error, ControlError::Io { source, .. } if source.kind() == ErrorKind::TimedOut),
            "{error}"
        );
        assert!(matches!(
            send(&near, Path::new("test"), &(big + "y"), SOON),
            Err(ControlError::Protocol { .. })
        ));
    }
}
