//! A thousand clients, in a process of their own: its memory is measured, and so is nobody else's.

// The helpers are test code too, which clippy does not see outside `#[test]` functions; not all of them are
// used here.
#![allow(clippy::unwrap_used, dead_code)]

#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/memory.rs"]
mod memory;

use fixture::{DF, FLUSH, FUA, READ, serve};
use memory::Memory;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_thousand_connections_are_served_and_those_that_are_idle_take_little_memory() {
    const OPEN: usize = 1000;
    const ACTIVE: usize = 64;
    const ROUNDS: u64 = 30;
    // Both ends of each are in this process.
    let limit = getrlimit(Resource::Nofile);
    assert!(limit.maximum.is_none_or(|maximum| maximum > 2 * OPEN as u64 + 100), "too few file descriptors");
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let fixture = serve(Memory::new(ACTIVE << 16));
    let before = resident();
    let mut clients: Vec<_> = (0..OPEN).map(|_| fixture.structured()).collect();
    let each = resident().saturating_sub(before) / OPEN as u64;
    assert!(each < 150 << 10, "{each} bytes for each idle connection");
    println!("{} KiB for each idle connection", each >> 10);
    std::thread::scope(|scope| {
        for (i, client) in clients.iter_mut().rev().take(ACTIVE).enumerate() {
            scope.spawn(move || {
                let base = (i as u64) << 16;
                for round in 0..ROUNDS {
                    let data = [(i as u64 + round) as u8 | 1; 4096];
                    client.write(if round % 8 == 0 { FUA } else { 0 }, round, base + round * 512, &data);
                    assert_eq!(client.simple_reply(), (round, 0));
                    client.request(DF, READ, round, base + round * 512, 4096);
                    assert_eq!(client.chunk().payload[8..], data);
                }
            });
        }
    });
    // None of those that were idle meanwhile has been lost.
    for client in &mut clients {
        client.request(0, FLUSH, 99, 0, 0);
        assert_eq!(client.simple_reply(), (99, 0));
    }
    assert_eq!(fixture.server.connections(), OPEN);
}
