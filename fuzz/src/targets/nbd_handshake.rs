//! Any bytes from a client that has just connected: the server answers or hangs up. With an odd first byte
//! they are taken as they are, else as options, whose magic and length are put right.

use crate::{Input, nbd};
use dedup_nbd_server::test_client::option;

/// What a server says first: `NBDMAGIC`, `IHAVEOPT`, flags.
const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\0\x03";

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let sent = if input.u8() % 2 == 1 { input.rest().to_vec() } else { options(input) };
    let answer = nbd::exchange(&sent);
    assert_eq!(&answer[..GREETING.len()], GREETING);
}

/// Client flags, then options: number 1, length 1, data.
fn options(mut input: Input<'_>) -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, input.u8()];
    while !input.is_empty() {
        let number = u32::from(input.u8());
        let len = usize::from(input.u8());
        bytes.extend(option(number, input.bytes(len)));
    }
    bytes
}
