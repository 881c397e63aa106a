//! Each command, its limits and its errors.

use crate::fixture::*;
use crate::memory::{Failing, Gated, Memory};
use dedup_nbd_server::PAYLOAD_LEN_MAX;
use dedup_volume::{Op, RequestError};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;
const DONE: u16 = 1;

#[test]
fn what_is_written_is_read_back_unaligned_too() {
    let fixture = serve(Memory::new(1 << 20));
    let mut client = fixture.simple();
    for (flags, offset, len) in [(0, 0, 4096), (FUA, 777, 1), (0, 4095, 100_001), (FUA, 1048575, 1)] {
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8 + 1).collect();
        client.write(flags, 42, offset, &data);
        assert_eq!(client.simple_reply(), (42, 0));
        assert_eq!(client.read(offset, len), data);
    }
}

#[test]
fn trim_and_write_zeroes_zero_their_range_only() {
    let fixture = serve(Memory::new(16384));
    let mut client = fixture.simple();
    for (command, flags) in [(TRIM, 0), (TRIM, FUA), (WRITE_ZEROES, NO_HOLE), (WRITE_ZEROES, FUA)] {
        client.write(0, 1, 0, &[9; 16384]);
        assert_eq!(client.simple_reply(), (1, 0));
        client.request(flags, command, 2, 4096, 4096);
        assert_eq!(client.simple_reply(), (2, 0));
        assert_eq!(client.read(0, 16384), [[9; 4096], [0; 4096], [9; 4096], [9; 4096]].concat());
    }
}

#[test]
fn flush_is_answered_whatever_its_range_says() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.simple();
    for (flags, offset, len) in [(0, 0, 0), (FUA, 0, 0), (0, u64::MAX, 5)] {
        client.request(flags, FLUSH, 3, offset, len);
        assert_eq!(client.simple_reply(), (3, 0));
    }
}

#[test]
fn structured_reads_are_one_chunk_with_offset_and_data() {
    let fixture = serve(Memory::new(8192));
    let mut client = fixture.structured();
    client.write(0, 1, 100, b"hello");
    assert_eq!(client.simple_reply(), (1, 0));
    for flags in [0, DF, DF | FUA] {
        client.request(flags, READ, 2, 99, 7);
        let payload = [&99u64.to_be_bytes()[..], b"\0hello\0"].concat();
        assert_eq!(client.chunk(), Chunk { flags: DONE, kind: 1, cookie: 2, payload });
    }
}

#[test]
fn a_structured_read_fails_with_an_error_chunk_and_never_a_simple_reply() {
    let fixture = serve(Failing(RequestError::Io));
    let mut client = fixture.structured();
    for (flags, offset, len, error) in [
        (0, 0, 512, EIO),
        (NO_HOLE, 0, 512, EINVAL),
        (0, u64::MAX, 512, EINVAL),
        (DF, 0, PAYLOAD_LEN_MAX + 1, EOVERFLOW),
    ] {
        client.request(flags, READ, 5, offset, len);
        assert_eq!(client.error_chunk(5), error);
    }
    client.request(0, READ, 6, 0, 0);
    assert_eq!(client.chunk(), Chunk { flags: DONE, kind: 0, cookie: 6, payload: vec![] });
}

#[test]
fn zero_length_requests_are_answered() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.simple();
    for command in [READ, WRITE, TRIM, CACHE, WRITE_ZEROES] {
        client.request(0, command, 9, 4096, 0);
        assert_eq!(client.simple_reply(), (9, 0), "command {command}");
    }
}

#[test]
fn ranges_past_the_end_are_refused_and_the_connection_stays() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.simple();
    client.write(0, 1, 4000, &[1; 97]);
    assert_eq!(client.simple_reply(), (1, ENOSPC));
    for (command, error) in [(READ, EINVAL), (TRIM, EINVAL), (CACHE, EINVAL), (WRITE_ZEROES, ENOSPC)] {
        client.request(0, command, 2, u64::MAX - 1, 4096);
        assert_eq!(client.simple_reply(), (2, error));
    }
    assert_eq!(client.read(0, 4096), [0; 4096]);
}

#[test]
fn an_oversized_write_is_drained_and_refused_and_the_connection_stays() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.simple();
    client.request(0, FLUSH, 1, 0, 0);
    client.write(0, 2, 0, &vec![1; PAYLOAD_LEN_MAX as usize + 1]);
    client.request(0, READ, 3, 0, 1);
    let mut replies = [client.simple_reply(), client.simple_reply()];
    replies.sort_unstable();
    assert_eq!(replies, [(1, 0), (2, EINVAL)]);
    assert_eq!(client.simple_reply(), (3, 0));
    assert_eq!(client.take(1), [0]);
    client.request(0, READ, 4, 0, PAYLOAD_LEN_MAX + 1);
    assert_eq!(client.simple_reply(), (4, EOVERFLOW));
}

#[test]
fn the_largest_payload_goes_both_ways() {
    let len = PAYLOAD_LEN_MAX as usize;
    let fixture = serve(Memory::new(len + 4096));
    let mut client = fixture.simple();
    let data: Vec<u8> = (0..len).map(|i| (i / 4096) as u8 ^ i as u8).collect();
    client.write(0, 1, 4096, &data);
    assert_eq!(client.simple_reply(), (1, 0));
    assert!(client.read(4096, PAYLOAD_LEN_MAX) == data);
}

#[test]
fn what_has_no_payload_may_be_4_gib_long() {
    let fixture = serve(Failing(RequestError::NoSpace));
    let mut client = fixture.simple();
    for command in [TRIM, WRITE_ZEROES, CACHE] {
        client.request(0, command, 1, 4096, u32::MAX);
        assert_eq!(client.simple_reply(), (1, ENOSPC));
    }
}

#[test]
fn the_export_s_errors_reach_the_client() {
    for (error, on_read, on_write) in [
        (RequestError::Io, EIO, EIO),
        (RequestError::NoSpace, ENOSPC, ENOSPC),
        (RequestError::ReadOnly, EPERM, EPERM),
        (RequestError::ShuttingDown, ESHUTDOWN, ESHUTDOWN),
        (RequestError::OutOfRange, EINVAL, ENOSPC),
    ] {
        let fixture = serve(Failing(error));
        let mut client = fixture.simple();
        client.request(0, READ, 1, 0, 512);
        assert_eq!(client.simple_reply(), (1, on_read));
        client.write(0, 2, 0, &[0; 512]);
        assert_eq!(client.simple_reply(), (2, on_write));
        client.request(0, WRITE_ZEROES, 3, 0, 512);
        assert_eq!(client.simple_reply(), (3, on_write));
    }
}

#[test]
fn a_read_only_export_refuses_whatever_writes() {
    let fixture = serve(Memory { read_only: true, ..Memory::new(4096) });
    let mut client = fixture.simple();
    client.write(0, 1, 0, &[1; 512]);
    assert_eq!(client.simple_reply(), (1, EPERM));
    for command in [TRIM, WRITE_ZEROES] {
        client.request(0, command, 2, 0, 512);
        assert_eq!(client.simple_reply(), (2, EPERM));
    }
    assert_eq!(client.read(0, 4), [0; 4]);
}

#[test]
fn unknown_commands_and_flags_are_invalid_and_the_connection_stays() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.simple();
    // Block status was not asked for in the handshake; 99 does not exist.
    for (flags, command) in [(0, BLOCK_STATUS), (0, 99), (DF, READ), (DF, FLUSH), (REQ_ONE, WRITE_ZEROES)] {
        client.request(flags, command, 8, 0, 512);
        assert_eq!(client.simple_reply(), (8, EINVAL), "command {command}");
    }
    client.write(DF, 9, 0, &[1; 512]);
    assert_eq!(client.simple_reply(), (9, EINVAL));
    assert_eq!(client.read(0, 4), [0; 4]);
}

#[test]
fn zeroes_that_are_to_be_fast_are_refused_unless_they_are() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.simple();
    client.write(0, 1, 0, &[7; 2048]);
    assert_eq!(client.simple_reply(), (1, 0));
    client.request(FAST_ZERO, WRITE_ZEROES, 2, 1, 512);
    assert_eq!(client.simple_reply(), (2, ENOTSUP));
    assert_eq!(client.read(0, 2048), [7; 2048]);
    client.request(FAST_ZERO | NO_HOLE | FUA, WRITE_ZEROES, 3, 512, 512);
    assert_eq!(client.simple_reply(), (3, 0));
    assert_eq!(client.read(511, 514), [&[7][..], &[0; 512], &[7]].concat());
}

#[test]
fn zeros_in_a_structured_read_are_holes() {
    let fixture = serve(Memory::new(8 << 12));
    let mut client = fixture.structured();
    client.write(0, 1, 3 * 4096, &[9; 5000]);
    assert_eq!(client.simple_reply(), (1, 0));
    client.request(0, READ, 2, 100, 7 * 4096);
    let hole = |offset: u64, len: u32| [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    let first = hole(100, 3 * 4096 - 100);
    assert_eq!(client.chunk(), Chunk { flags: 0, kind: HOLE, cookie: 2, payload: first });
    let mut data = (3u64 * 4096).to_be_bytes().to_vec();
    data.extend([9; 5000]);
    data.resize(8 + 8192, 0);
    assert_eq!(client.chunk(), Chunk { flags: 0, kind: DATA, cookie: 2, payload: data });
    let last = hole(5 * 4096, 2 * 4096 + 100);
    assert_eq!(client.chunk(), Chunk { flags: DONE, kind: HOLE, cookie: 2, payload: last });
    // Unfragmented, zeros are sent; unless there is nothing else.
    client.request(DF, READ, 3, 0, 4 * 4096);
    let chunk = client.chunk();
    assert_eq!((chunk.flags, chunk.kind, chunk.payload.len()), (DONE, DATA, 8 + 4 * 4096));
    client.request(DF, READ, 4, 0, 3 * 4096);
    assert_eq!(client.chunk(), Chunk { flags: DONE, kind: HOLE, cookie: 4, payload: hole(0, 3 * 4096) });
}

#[test]
fn a_client_without_structured_replies_is_sent_its_zeros() {
    let fixture = serve(Memory::new(8192));
    assert_eq!(fixture.simple().read(0, 8192), [0; 8192]);
}

#[test]
fn requests_before_a_disconnect_are_answered() {
    let fixture = serve(Memory::new(4096));
    let mut client = fixture.simple();
    let mut bytes = [request(0, WRITE, 1, 0, 3), b"abc".to_vec()].concat();
    bytes.extend(request(0, FLUSH, 2, 0, 0));
    bytes.extend(request(0, DISC, 3, 0, 0));
    client.send(&bytes);
    assert_eq!(client.simple_reply(), (1, 0));
    assert_eq!(client.simple_reply(), (2, 0));
    client.expect_end();
}

#[test]
fn a_slow_flush_holds_up_neither_its_batch_nor_later_requests() {
    let (export, gate) = Gated::new(4096);
    let fixture = serve(export);
    let mut client = fixture.simple();
    let batch = [request(0, FLUSH, 1, 0, 0), request(0, WRITE, 2, 0, 2), b"hi".to_vec()].concat();
    client.send(&batch);
    assert_eq!(client.simple_reply(), (2, 0));
    assert_eq!(client.read(0, 2), b"hi");
    gate.send(()).unwrap();
    assert_eq!(client.simple_reply(), (1, 0));
}

/// A short read or write is expected to be done at once, so no other thread is woken to receive. The
/// expectation can be wrong.
#[test]
fn a_short_request_that_turns_out_slow_holds_up_none_that_comes_later() {
    let slow: [fn(&Op<'_>) -> bool; 2] =
        [|op| matches!(op, Op::Write { .. }), |op| matches!(op, Op::Read { buf, .. } if buf.len() == 7)];
    for (command, is_slow) in [(WRITE, slow[0]), (READ, slow[1])] {
        let (export, gate) = Gated::slow_at(is_slow, 4096);
        let arrived = Arc::clone(&export.arrived);
        let fixture = serve(export);
        let mut client = fixture.simple();
        for round in 1..4 {
            match command {
                WRITE => client.write(0, 1, 0, &[0; 7]),
                _ => client.request(0, READ, 1, 0, 7),
            }
            while arrived.load(Ordering::SeqCst) < round {
                std::thread::yield_now();
            }
            assert_eq!(client.read(0, 2), [0, 0]);
            gate.send(()).unwrap();
            assert_eq!(client.simple_reply(), (1, 0));
            client.take(if command == READ { 7 } else { 0 });
        }
    }
}

#[test]
fn several_slow_flushes_hold_up_nothing_that_comes_later() {
    let (export, gate) = Gated::new(4096);
    let fixture = serve(export);
    let mut client = fixture.simple();
    for cookie in 0..4 {
        client.request(0, FLUSH, cookie, 0, 0);
        assert_eq!(client.read(0, 2), [0, 0]);
        client.write(0, 100, 0, &[0, 0]);
        assert_eq!(client.simple_reply(), (100, 0));
    }
    (0..4).for_each(|_| gate.send(()).unwrap());
    let mut flushed: Vec<_> = (0..4).map(|_| client.simple_reply()).collect();
    flushed.sort_unstable();
    assert_eq!(flushed, [(0, 0), (1, 0), (2, 0), (3, 0)]);
}

#[test]
fn many_large_requests_at_once_wait_for_each_other_and_are_all_answered() {
    let len = 5 << 20;
    let fixture = serve(Memory::new(len));
    let mut client = fixture.simple();
    let mut sender = Client::new(client.stream.try_clone().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for cookie in 0..12 {
                match cookie % 2 {
                    0 => sender.request(0, READ, cookie, 0, len as u32),
                    _ => sender.write(0, cookie, 0, &vec![0; len]),
                }
            }
        });
        let mut answered = Vec::new();
        for _ in 0..12 {
            let (cookie, error) = client.simple_reply();
            assert_eq!(error, 0);
            if cookie % 2 == 0 {
                client.take(len);
            }
            answered.push(cookie);
        }
        answered.sort_unstable();
        assert!(answered.into_iter().eq(0..12));
    });
}

#[test]
fn hundreds_of_requests_in_flight_are_each_answered_with_their_own_data() {
    const REQUESTS: u64 = 500;
    let fixture = serve(Memory::new(REQUESTS as usize * 1000));
    let client = fixture.structured();
    let mut sender = Client::new(client.stream.try_clone().unwrap());
    let mut client = client;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for i in 0..REQUESTS {
                sender.write(0, i, i * 1000, &[i as u8; 1000]);
            }
        });
        let mut cookies: Vec<_> = (0..REQUESTS).map(|_| client.simple_reply()).collect();
        cookies.sort_unstable();
        assert!(cookies.into_iter().eq((0..REQUESTS).map(|i| (i, 0))));
    });
    let mut sender = Client::new(client.stream.try_clone().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || (0..REQUESTS).for_each(|i| sender.request(0, READ, i, i * 1000, 1000)));
        let mut seen = vec![false; REQUESTS as usize];
        for _ in 0..REQUESTS {
            let chunk = client.chunk();
            let data = [chunk.cookie as u8; 1000];
            assert_eq!(chunk.payload, [&(chunk.cookie * 1000).to_be_bytes()[..], &data].concat());
            assert!(!std::mem::replace(&mut seen[chunk.cookie as usize], true));
        }
    });
}
