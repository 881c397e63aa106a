//! Trims of a volume: whole blocks are freed, parts of blocks read as zeros, also when there is no space.

use crate::fixture::*;
use crate::stalling::Stalled;

const BLOCK: u64 = 4096;

/// Programs that punch holes through such a client (a file system in user space, say) take what they have
/// trimmed for zeros: so it is with other servers.
#[test]
fn what_was_trimmed_reads_as_zeros_also_where_it_is_part_of_a_block() {
    let (export, _) = Stalled::new(1 << 20);
    let fixture = serve(export);
    let mut client = fixture.simple();
    let size = (8 * BLOCK) as usize;
    let data: Vec<u8> = (0..size).map(|i| (i % 250) as u8 + 1).collect();
    for flags in [0, FUA] {
        for (from, to) in
            [(100, 200), (0, 4096), (4000, 4100), (4095, 20_481), (5, 8192), (8192, 12_289), (0, size)]
        {
            client.write(0, 1, 0, &data);
            assert_eq!(client.simple_reply(), (1, 0));
            client.request(flags, TRIM, 2, from as u64, (to - from) as u32);
            assert_eq!(client.simple_reply(), (2, 0));
            let found = client.read(0, size as u32);
            assert!(found[from..to].iter().all(|byte| *byte == 0), "{from}..{to} does not read as zeros");
            assert!(found[..from] == data[..from] && found[to..] == data[to..], "{from}..{to}: more is gone");
        }
    }
}

/// A part of a block that is zeroed takes a new block. A trim finds that in what it frees.
#[test]
fn on_a_full_volume_trims_free_what_they_cover_and_zero_the_rest() {
    let (export, _) = Stalled::on(9 * BLOCK, 8 << 20);
    let fixture = serve(export);
    let mut client = fixture.simple();
    // All eight blocks.
    for block in 0..8u64 {
        client.write(0, block, block * BLOCK, &[block as u8 + 1; BLOCK as usize]);
        assert_eq!(client.simple_reply(), (block, 0));
    }
    client.write(0, 9, 8 * BLOCK, &[9; BLOCK as usize]);
    assert_eq!(client.simple_reply(), (9, 28), "the volume is full");
    client.request(0, TRIM, 10, 100, (3 * BLOCK) as u32);
    assert_eq!(client.simple_reply(), (10, 0));
    let found = client.read(0, (4 * BLOCK) as u32);
    assert!(found[..100].iter().all(|byte| *byte == 1));
    assert!(found[100..100 + 3 * BLOCK as usize].iter().all(|byte| *byte == 0));
    assert!(found[100 + 3 * BLOCK as usize..].iter().all(|byte| *byte == 4));
}
