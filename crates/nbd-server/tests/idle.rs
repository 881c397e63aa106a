//! A connection that was busy and is idle, in a process of its own: its memory is measured, and its threads
//! counted.

// The helpers are test code too, which clippy does not see outside `#[test]` functions; not all of them are
// used here.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "suite/fixture.rs"]
mod fixture;

use dedup_nbd_server::{Export, PAYLOAD_MEMORY_MIN};
use dedup_volume::{Op, Request, RequestError, Wanted};
use fixture::{Client, Fixture, PATIENCE, READ, serve_with};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const THREADS: u64 = 8;
/// The largest request of which every thread may hold one.
const LEN: usize = 4 << 20;
const MIB: u64 = 1 << 20;

/// Reads sevens, and completes large requests only when every thread has one.
#[derive(Default)]
struct Gathering {
    arrived: Mutex<u64>,
    changed: Condvar,
}

impl Export for Gathering {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn block_size(&self) -> u32 {
        4096
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn execute<'a>(
        &self,
        _wanted: Wanted<'_>,
        batch: Vec<Request<'a>>,
        done: &mut dyn FnMut(Request<'a>, Result<(), RequestError>),
    ) {
        for mut request in batch {
            let len = match &mut request.op {
                Op::Read { buf, .. } => {
                    buf.fill(7);
                    buf.len()
                }
                Op::Write { data, .. } => data.len(),
                _ => 0,
            };
            if len == LEN {
                let mut arrived = self.arrived.lock().unwrap();
                *arrived += 1;
                self.changed.notify_all();
                let all = (*arrived).next_multiple_of(THREADS);
                let gathered = self.changed.wait_timeout_while(arrived, PATIENCE, |arrived| *arrived < all);
                assert!(!gathered.unwrap().1.timed_out(), "not all threads came to work");
            }
            done(request, Ok(()));
        }
    }
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// Threads that serve connections.
fn workers() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // One may end while it is looked at.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "nbd-worker").count() as u64
}

/// Makes every thread read, then write, a large request.
fn keep_all_threads_busy(client: &mut Client<UnixStream>, data: &[u8]) {
    (0..THREADS).for_each(|i| client.request(0, READ, i, i << 22, LEN as u32));
    for _ in 0..THREADS {
        assert_eq!(client.simple_reply().1, 0);
        assert!(client.take(LEN).iter().all(|byte| *byte == 7));
    }
    (0..THREADS).for_each(|i| client.write(0, i, i << 22, data));
    (0..THREADS).for_each(|_| assert_eq!(client.simple_reply().1, 0));
}

fn serve_for(idle_time: Duration) -> Fixture {
    serve_with(|builder| builder.export("disk", "", Arc::new(Gathering::default())).idle_time(idle_time))
}

/// What is freed goes back to the system at once only if the allocator has been told so before the process
/// starts.
fn run_again_with_plain_allocator(test: &str) -> bool {
    const VARIABLE: &str = "MALLOC_MMAP_THRESHOLD_";
    if std::env::var_os(VARIABLE).is_some() {
        return false;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    let again = again.args(["--exact", test, "--nocapture"]).env(VARIABLE, "65536");
    assert!(again.status().unwrap().success());
    true
}

/// Eight threads, each with 4 MiB received and 4 MiB read, stayed for as long as their client did, however
/// long it was silent.
#[test]
fn a_connection_that_is_idle_gives_back_its_threads_and_memory_and_takes_them_again() {
    let this = "a_connection_that_is_idle_gives_back_its_threads_and_memory_and_takes_them_again";
    if run_again_with_plain_allocator(this) {
        return;
    }
    let fixture = serve_for(Duration::from_millis(100));
    let data = vec![5; LEN];
    let mut client = fixture.simple();
    let before = resident();
    for _ in 0..2 {
        keep_all_threads_busy(&mut client, &data);
        let deadline = Instant::now() + PATIENCE;
        while workers() > 1 || resident() > before + MIB {
            let (workers, more) = (workers(), resident().saturating_sub(before) >> 10);
            assert!(
                Instant::now() < deadline,
                "{workers} threads and {more} KiB more than at first are left"
            );
            std::thread::yield_now();
        }
        // The one that is left serves.
        assert_eq!(client.read(4096, 4096), [7; 4096]);
    }
}

/// The other way round: what a pause at work would only have to get again stays.
#[test]
fn a_connection_keeps_its_threads_during_a_short_pause() {
    let this = "a_connection_keeps_its_threads_during_a_short_pause";
    if run_again_with_plain_allocator(this) {
        return;
    }
    let fixture = serve_for(Duration::from_secs(3600));
    let mut client = fixture.simple();
    let before = resident();
    keep_all_threads_busy(&mut client, &vec![5; LEN]);
    assert_eq!(workers(), THREADS);
    let kept = (resident() - before) / MIB;
    assert!(kept > 60, "{kept} MiB kept");
}

/// Forty clients that took no replies held 2.6 GiB.
#[test]
fn clients_that_take_no_replies_share_one_budget_and_others_are_served_beside_them() {
    let this = "clients_that_take_no_replies_share_one_budget_and_others_are_served_beside_them";
    if run_again_with_plain_allocator(this) {
        return;
    }
    const CLIENTS: u64 = 40;
    // The least that there can be.
    const BUDGET: u64 = PAYLOAD_MEMORY_MIN;
    let fixture = serve_with(|builder| {
        let builder = builder.export("disk", "", Arc::new(Gathering::default()));
        builder.payload_memory(BUDGET as usize).stall_time(Duration::from_secs(3600))
    });
    let before = resident();
    let mut stalled: Vec<_> = (0..CLIENTS).map(|_| fixture.simple()).collect();
    for client in &mut stalled {
        (0..64).for_each(|i| client.request(0, READ, i, i << 21, 2 << 20));
    }
    let mut client = fixture.simple();
    let mut most = 0;
    for _ in 0..100 {
        assert_eq!(client.read(4096, 65536), [7; 65536]);
        most = most.max(resident().saturating_sub(before));
        std::thread::sleep(Duration::from_millis(5));
    }
    // What is set aside for a reply is touched as it is filled, and some of it waits for its turn to be.
    assert!(most > BUDGET / 4, "{} MiB: they were to use it up", most / MIB);
    // Beside the budget, each connection has what small requests take.
    assert!(most < BUDGET + (CLIENTS + 1) * MIB, "{} MiB", most / MIB);
}
