//! Metadata contexts, from their selection to what a block status says.

use crate::fixture::*;
use crate::memory::{Failing, Memory, PAIRS};
use dedup_volume::RequestError;
use std::sync::Arc;

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const DONE: u16 = 1;
const ALLOCATION: &str = "base:allocation";
/// Transmission flag: contexts may be named in the payload of a block status.
const STATUS_PAYLOAD: u16 = 1 << 12;

fn allocation() -> (u32, String) {
    (1, ALLOCATION.into())
}

fn pairs() -> (u32, String) {
    (2, PAIRS.into())
}

/// Context and extents of a chunk.
fn extents(chunk: &Chunk) -> (u32, Vec<(u64, u64)>) {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let (head, width) = match chunk.kind {
        5 => (4, 4),
        6 => (8, 8),
        other => panic!("expected a block status, found {other}"),
    };
    let context = number(&chunk.payload[..4]) as u32;
    let bytes = &chunk.payload[head..];
    assert!(bytes.len().is_multiple_of(2 * width) && !bytes.is_empty());
    let extents: Vec<_> =
        bytes.chunks(2 * width).map(|extent| (number(&extent[..width]), number(&extent[width..]))).collect();
    if chunk.kind == 6 {
        assert_eq!(number(&chunk.payload[4..8]), extents.len() as u64);
    }
    (context, extents)
}

/// 16 KiB, of which [4096, 8192) and [12288, 12800) hold data.
fn patchy() -> Fixture {
    let memory = Memory::new(16384);
    memory.bytes.lock().unwrap()[4096..8192].fill(1);
    memory.bytes.lock().unwrap()[12288] = 1;
    serve(memory)
}

#[test]
fn listing_names_what_selecting_then_numbers() {
    let fixture = patchy();
    let mut client = fixture.greeted();
    client.send_option(8, b"");
    client.option_reply(8);
    let unnumbered = |names: &[&str]| names.iter().map(|name| (0, name.to_string())).collect::<Vec<_>>();
    let cases: [(&[&str], &[&str]); 4] = [
        (&[], &[ALLOCATION, PAIRS]),
        (&["base:"], &[ALLOCATION]),
        (&["test:", ALLOCATION], &[ALLOCATION, PAIRS]),
        (&["x-y:"], &[]),
    ];
    for (queries, expected) in cases {
        client.send_option(9, &context_data(b"disk", queries));
        assert_eq!(client.contexts(9), unnumbered(expected));
    }
    assert_eq!(client.select(b"disk", &["base:", "test:pairs", "x-y:z", "nonsense"]), [pairs()]);
    assert_eq!(client.select(b"disk", &[PAIRS, ALLOCATION]), [allocation(), pairs()]);
    assert_eq!(client.select(b"disk", &[]), []);
}

#[test]
fn a_block_status_tells_holes_and_data() {
    let fixture = patchy();
    let mut client = fixture.with_contexts(8, &[ALLOCATION]);
    client.request(0, BLOCK_STATUS, 1, 100, 16000);
    let chunk = client.chunk();
    assert_eq!((chunk.flags, chunk.kind, chunk.cookie), (DONE, 5, 1));
    let expected = [(3996, 3), (4096, 0), (4096, 3), (512, 0), (3300, 3)];
    assert_eq!(extents(&chunk), (1, expected.to_vec()));
    let mut client = fixture.with_contexts(11, &[ALLOCATION]);
    client.extended_request(FUA, BLOCK_STATUS, 2, 100, 16000);
    let chunk = client.extended_chunk(100);
    assert_eq!((chunk.flags, chunk.kind, chunk.cookie), (DONE, 6, 2));
    assert_eq!(extents(&chunk), (1, expected.to_vec()));
}

#[test]
fn one_extent_is_one_and_no_longer_than_asked_for() {
    let fixture = patchy();
    for contexts in [&[ALLOCATION][..], &[ALLOCATION, PAIRS]] {
        let mut client = fixture.with_contexts(8, contexts);
        for (offset, len, expected) in [(0, 16384, (4096, 3)), (0, 100, (100, 3)), (8191, 2, (1, 0))] {
            client.request(REQ_ONE, BLOCK_STATUS, 1, offset, len);
            assert_eq!(extents(&client.chunk()), (1, vec![expected]));
            if contexts.len() > 1 {
                let (context, extents) = extents(&client.chunk());
                assert_eq!((context, extents.len()), (2, 1));
                assert!(extents[0].0 <= u64::from(len));
            }
        }
    }
}

#[test]
fn there_is_one_chunk_for_each_context_and_the_last_one_says_so() {
    let fixture = patchy();
    let mut client = fixture.with_contexts(8, &[ALLOCATION, PAIRS]);
    client.request(0, BLOCK_STATUS, 1, 0, 3);
    let (first, second) = (client.chunk(), client.chunk());
    assert_eq!((first.flags, second.flags), (0, DONE));
    assert_eq!(extents(&first), (1, vec![(3, 3)]));
    assert_eq!(extents(&second), (2, vec![(2, 0), (1, 1)]));
}

#[test]
fn a_chunk_has_at_most_2_to_the_20_extents() {
    let fixture = serve(Memory::new(4 << 20));
    for (option, kind) in [(8, 5), (11, 6)] {
        let mut client = fixture.with_contexts(option, &[ALLOCATION, PAIRS]);
        let mut chunks = Vec::new();
        if option == 8 {
            client.request(0, BLOCK_STATUS, 1, 0, 4 << 20);
            chunks.extend([client.chunk(), client.chunk()]);
        } else {
            client.extended_request(0, BLOCK_STATUS, 1, 0, 4 << 20);
            chunks.extend([client.extended_chunk(0), client.extended_chunk(0)]);
        }
        assert_eq!(chunks[1].kind, kind);
        let (_, extents) = extents(&chunks[1]);
        assert!(extents.len() > 1000 && extents.len() <= 1 << 20, "{}", extents.len());
    }
}

#[test]
fn a_payload_names_the_contexts_that_are_wanted() {
    let fixture = patchy();
    let mut client = fixture.with_contexts(11, &[ALLOCATION, PAIRS]);
    let mut ask = |len: u64, ids: &[u32]| {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_be_bytes()).collect();
        let payload = [&len.to_be_bytes()[..], &ids].concat();
        client.extended_request(PAYLOAD, BLOCK_STATUS, 9, 4, payload.len() as u64);
        client.send(&payload);
        client.extended_chunk(4)
    };
    let chunk = ask(4, &[2]);
    assert_eq!(chunk.flags, DONE);
    assert_eq!(extents(&chunk), (2, vec![(2, 0), (2, 1)]));
    for (len, ids) in [(4, &[][..]), (4, &[3]), (4, &[1, 1]), (4, &[1, 2, 3]), (0, &[1]), (u64::MAX, &[1])] {
        assert_eq!(ask(len, ids).error(9), EINVAL, "{ids:?}");
    }
    assert_eq!(ask(4, &[1]).kind, 6);
}

#[test]
fn contexts_in_a_payload_are_offered_with_extended_headers_and_a_selection_only() {
    let fixture = patchy();
    for (option, selects, offered) in [(8, true, false), (11, false, false), (11, true, true)] {
        let mut client = fixture.greeted();
        client.send_option(option, b"");
        client.option_reply(option);
        if selects {
            client.select(b"disk", &[ALLOCATION]);
        }
        let infos = client.go(b"disk", &[]);
        let flags = u16::from_be_bytes(infos[0][10..12].try_into().unwrap());
        assert_eq!(flags & STATUS_PAYLOAD != 0, offered);
    }
}

#[test]
fn an_invalid_block_status_is_refused_and_the_connection_stays() {
    let fixture = patchy();
    let mut client = fixture.with_contexts(8, &[ALLOCATION]);
    let cases =
        [(0, 0, 0), (0, 16384, 1), (0, u64::MAX, u32::MAX), (0, 0, u32::MAX), (DF, 0, 1), (PAYLOAD, 0, 12)];
    for (flags, offset, len) in cases {
        client.request(flags, BLOCK_STATUS, 1, offset, len);
        assert_eq!(client.error_chunk(1), EINVAL, "{flags} {offset}+{len}");
    }
    client.request(REQ_ONE, BLOCK_STATUS, 2, 16383, 1);
    assert_eq!(extents(&client.chunk()), (1, vec![(1, 3)]));
}

#[test]
fn an_export_that_cannot_tell_fails_the_request() {
    let fixture = serve(Failing(RequestError::Io));
    let mut client = fixture.with_contexts(8, &[ALLOCATION]);
    client.request(0, BLOCK_STATUS, 1, 0, u32::MAX);
    assert_eq!(client.error_chunk(1), EIO);
}

#[test]
fn a_selection_replaces_the_one_before_even_when_it_fails() {
    let fixture = serve_with(|builder| {
        let memory = || Arc::new(Memory::new(4096));
        builder.export("disk", "", memory()).export("other", "", memory())
    });
    let malformed = [&context_data(b"disk", &[ALLOCATION])[..], b"x"].concat();
    let spoilers: [(&[u8], Option<u32>); 4] = [
        (&malformed, Some(3)),
        (&context_data(b"nothing", &[ALLOCATION]), Some(6)),
        (&context_data(b"disk", &["x-y:z"]), None),
        (&context_data(b"other", &[ALLOCATION]), None),
    ];
    for (spoiler, error) in spoilers {
        let mut client = fixture.greeted();
        client.send_option(8, b"");
        client.option_reply(8);
        assert_eq!(client.select(b"disk", &[ALLOCATION]), [allocation()]);
        client.send_option(10, spoiler);
        match error {
            Some(error) => assert_eq!(client.option_error(10), error),
            None => drop(client.contexts(10)),
        }
        client.go(b"disk", &[]);
        client.request(0, BLOCK_STATUS, 1, 0, 512);
        assert_eq!(client.error_chunk(1), EINVAL);
    }
}

#[test]
fn a_selection_counts_for_the_name_that_it_was_made_for() {
    let fixture = patchy();
    // An empty name stands for the only export, and is another name.
    for (selected, chosen, works) in
        [(&b"disk"[..], &b"disk"[..], true), (b"", b"", true), (b"", b"disk", false), (b"disk", b"", false)]
    {
        let mut client = fixture.greeted();
        client.send_option(8, b"");
        client.option_reply(8);
        client.select(selected, &[ALLOCATION]);
        client.go(chosen, &[]);
        client.request(0, BLOCK_STATUS, 1, 0, 512);
        let chunk = client.chunk();
        assert_eq!(chunk.kind == 5, works, "{chunk:?}");
    }
}
