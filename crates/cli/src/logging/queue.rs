//! Lines on their way to where they are written, by a thread of their own.
//!
//! ```text
//!   any thread ─ try_send ─> [ at most LINES_MAX lines ] ─> the log's thread ─> write ─> a pipe, a file, a terminal
//!                  │ full                                        │ failed, cut off
//!                  └──────────────> lost: n <────────────────────┘     told as soon as a line can be written again
//! ```
//!
//! Invariants: who logs never waits; who is written to may be slow, full or gone. Not here: which lines are
//! worth writing (`limit`).

use super::limit::Limits;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait at most: at some 100 bytes a line, about what a pipe holds too.
const LINES_MAX: usize = 1024;
/// How often it is told at most that lines were lost.
const TOLD_INTERVAL: Duration = Duration::from_secs(1);
/// How often a full queue is tried again by who waits for it to be written.
const FLUSH_PAUSE: Duration = Duration::from_millis(5);

enum Message {
    Line(Box<[u8]>),
    /// There is something in the limits to be told later.
    Wake,
    /// Everything before has been written, or given up, when this is answered.
    Flush(SyncSender<()>),
}

/// The way in.
#[derive(Debug)]
pub(super) struct Queue {
    sender: Option<SyncSender<Message>>,
    lost: Arc<AtomicU64>,
}

impl Queue {
    /// Starts the thread that writes to `out` what comes out of the queue and of `limits`.
    pub(super) fn start(out: impl Write + Send + 'static, limits: Arc<Limits>) -> Arc<Self> {
        let (sender, receiver) = mpsc::sync_channel(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let printer = Printer { out, lost: Arc::clone(&lost), torn: false, told: None };
        let thread =
            thread::Builder::new().name("log".to_owned()).spawn(move || print(printer, &receiver, &limits));
        // Without a thread there is no log, and everything else goes on.
        Arc::new(Self { sender: thread.is_ok().then_some(sender), lost })
    }

    /// Takes a line, its end included; it is lost if there are too many.
    pub(super) fn line(&self, line: &[u8]) {
        if !line.is_empty() && !self.try_send(Message::Line(line.into())) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has the thread look into the limits. If the queue is full, it is about to do so.
    pub(super) fn wake(&self) {
        self.try_send(Message::Wake);
    }

    /// Waits until everything is written, for `limit` at most.
    pub(super) fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        let (done, written) = mpsc::sync_channel(1);
        while !self.try_send(Message::Flush(done.clone())) {
            if self.sender.is_none() || Instant::now() >= end {
                return;
            }
            thread::sleep(FLUSH_PAUSE);
        }
        // Whether it was written or not, the program ends.
        let _ = written.recv_timeout(end.saturating_duration_since(Instant::now()));
    }

    fn try_send(&self, message: Message) -> bool {
        match &self.sender {
            Some(sender) => !matches!(sender.try_send(message), Err(TrySendError::Full(_))),
            None => false,
        }
    }
}

fn print(mut printer: Printer<impl Write>, receiver: &Receiver<Message>, limits: &Limits) {
    loop {
        let message = match limits.next_due() {
            None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => receiver.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let mut flushed = None;
        match message {
            Ok(Message::Line(line)) => printer.line(&line),
            Ok(Message::Flush(done)) => flushed = Some(done),
            Ok(Message::Wake) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = Instant::now();
        for line in limits.due(now, flushed.is_some()) {
            printer.line(line.as_bytes());
        }
        printer.tell_lost(now, flushed.is_some());
        // Who waited may have given up.
        let _ = flushed.map(|done| done.try_send(()));
    }
}

/// Writes whole lines, and says later what it could not write.
struct Printer<W> {
    out: W,
    lost: Arc<AtomicU64>,
    /// The last line was cut off.
    torn: bool,
    /// When it was last told that lines were lost.
    told: Option<Instant>,
}

impl<W: Write> Printer<W> {
    fn line(&mut self, line: &[u8]) {
        if !self.write(line) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tell_lost(&mut self, now: Instant, at_once: bool) {
        let recently = self.told.is_some_and(|told| now.saturating_duration_since(told) < TOLD_INTERVAL);
        if self.lost.load(Ordering::Relaxed) == 0 || (recently && !at_once) {
            return;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let line = format!(
            " WARN {lost} lines of the log were lost: they could not be written, or not soon enough\n"
        );
        match self.write(line.as_bytes()) {
            true => self.told = Some(now),
            false => drop(self.lost.fetch_add(lost, Ordering::Relaxed)),
        }
    }

    /// Whether the line was written whole.
    fn write(&mut self, line: &[u8]) -> bool {
        let ended = [b"\n", line].concat();
        let mut rest = if self.torn { &ended } else { line };
        let all = rest.len();
        while !rest.is_empty() {
            match self.out.write(rest) {
                Ok(n) if n > 0 => rest = &rest[n..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => {
                    self.torn |= rest.len() < all;
                    return false;
                }
            }
        }
        self.torn = false;
        true
    }
}

/// Standard error without the library's lock: whoever holds that while nobody reads would keep a panic from
/// being told.
pub(super) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        loop {
            match rustix::io::write(stderr.as_fd(), bytes) {
                // Somebody who shares it has made it so; this thread can wait.
                Err(rustix::io::Errno::AGAIN) => wait_until_writable(&stderr)?,
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wait_until_writable(stderr: &io::Stderr) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    match poll(&mut [PollFd::new(stderr, PollFlags::OUT)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the queue a place to write formatted events to, each of which is written at once.
#[derive(Debug)]
pub(super) struct Lines(pub(super) Arc<Queue>);

/// One event's line.
pub(super) struct Line<'a>(&'a Queue);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Condvar, Mutex};

    /// What was written, and what may be.
    #[derive(Debug, Default)]
    struct Pipe {
        written: Mutex<(String, Capacity)>,
        changed: Condvar,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    enum Capacity {
        #[default]
        Any,
        /// Nobody reads.
        Blocked,
        /// There is room for so many bytes.
        Bytes(usize),
    }

    impl Pipe {
        fn set(&self, capacity: Capacity) {
            self.written.lock().unwrap().1 = capacity;
            self.changed.notify_all();
        }

        fn text(&self) -> String {
            self.written.lock().unwrap().0.clone()
        }
    }

    struct End(Arc<Pipe>);

    impl Write for End {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut written = self.0.written.lock().unwrap();
            while written.1 == Capacity::Blocked {
                written = self.0.changed.wait(written).unwrap();
            }
            let n = match &mut written.1 {
                Capacity::Bytes(0) => return Err(ErrorKind::StorageFull.into()),
                Capacity::Bytes(left) => {
                    let n = bytes.len().min(*left);
                    *left -= n;
                    n
                }
                _ => bytes.len(),
            };
            written.0.push_str(str::from_utf8(&bytes[..n]).unwrap());
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    fn start() -> (Arc<Pipe>, Arc<Queue>) {
        let pipe = Arc::new(Pipe::default());
        (Arc::clone(&pipe), Queue::start(End(pipe), Arc::default()))
    }

    #[test]
    fn lines_come_out_in_order_before_a_flush_returns() {
        let (pipe, queue) = start();
        (0..100).for_each(|i| queue.line(format!("{i}\n").as_bytes()));
        queue.flush(LONG);
        assert_eq!(pipe.text(), (0..100).map(|i| format!("{i}\n")).collect::<String>());
    }

    /// A log that nobody read stopped the whole volume: lines were written by those who had them to say.
    #[test]
    fn a_log_that_nobody_reads_holds_up_nobody_and_tells_later_how_much_was_lost() {
        let (pipe, queue) = start();
        pipe.set(Capacity::Blocked);
        let lines = LINES_MAX * 2;
        let begin = Instant::now();
        (0..lines).for_each(|_| queue.line(b"x\n"));
        queue.flush(Duration::from_millis(50));
        assert!(begin.elapsed() < LONG / 2, "who logs has waited");
        pipe.set(Capacity::Any);
        queue.flush(LONG);
        let text = pipe.text();
        let written = text.matches("x\n").count();
        let lost: usize = text.split_once(" WARN ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
        assert!(written >= LINES_MAX && written + lost == lines, "{written} written, {lost} lost of {lines}");
    }

    /// A line that could not be written ended the process.
    #[test]
    fn lines_that_cannot_be_written_are_counted_and_the_first_that_can_be_stands_on_a_line_of_its_own() {
        let (pipe, queue) = start();
        pipe.set(Capacity::Bytes(6));
        ["one\n", "two\n", "three\n"].iter().for_each(|line| queue.line(line.as_bytes()));
        queue.flush(LONG);
        assert_eq!(pipe.text(), "one\ntw");
        pipe.set(Capacity::Any);
        queue.line(b"four\n");
        queue.flush(LONG);
        let text = pipe.text();
        assert!(text.starts_with("one\ntw\nfour\n WARN 2 lines of the log were lost"), "{text}");
        queue.flush(LONG);
        assert_eq!(pipe.text(), text, "it is told once");
    }
}
