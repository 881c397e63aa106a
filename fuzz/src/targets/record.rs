//! Any bytes as log records: each decodes or fails, the decoding ends, and what was decoded encodes to the
//! same bytes.

use dedup_schema::Record;

/// Runs one input.
pub fn run(bytes: &[u8]) {
    let mut rest = bytes;
    let mut again = Vec::new();
    while let Ok(record) = Record::decode(&mut rest) {
        record.encode(&mut again);
        assert_eq!(again, bytes[..bytes.len() - rest.len()], "{record:?}");
    }
}
