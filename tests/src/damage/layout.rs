//! Which byte of a block is which field: `docs/format.md` as tables.
//!
//! They are written from that page and not taken from the code that encodes blocks, so a change of the format
//! that the page does not know of shows up here. A [`Field`] is a range of bits of one block; the fields of a
//! block cover every bit of it, each once.

use dedup_meta::{BlockType, HEADER_SIZE, META_BLOCK_SIZE};

/// A named range of bits of a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in `docs/format.md`, with an index in brackets where there are several: `mapping[17].pbn`.
    pub name: String,
    /// First bit, from the block's start; bit 0 is the lowest of the first byte.
    pub start: usize,
    /// Bits.
    pub width: usize,
}

impl Field {
    /// The name without indices: what all fields of the kind have in common.
    pub fn class(&self) -> String {
        let mut class = String::new();
        let mut inside = false;
        for letter in self.name.chars() {
            match letter {
                '[' => inside = true,
                ']' => inside = false,
                _ if !inside => class.push(letter),
                _ => {}
            }
        }
        class
    }

    /// The byte and the mask of one of its bits.
    ///
    /// # Panics
    /// If it has no such bit.
    pub fn bit(&self, bit: usize) -> (usize, u8) {
        assert!(bit < self.width, "{} has {} bits", self.name, self.width);
        let at = self.start + bit;
        (at / 8, 1 << (at % 8))
    }

    /// Its first byte.
    pub fn byte(&self) -> usize {
        self.start / 8
    }
}

/// The shape of a tree's nodes.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Entries of so many bits, so many to a leaf.
    Array {
        /// Bits of an entry of a leaf.
        bits: usize,
        /// Entries of a leaf.
        per_leaf: u64,
    },
    /// Keys and values of so many bytes.
    Sparse {
        /// Bytes of a key.
        key: usize,
        /// Bytes of a value.
        value: usize,
    },
}

/// Bytes of a child reference in a node.
const REFERENCE: usize = 10;
/// Bytes of an array index node's entry.
const ARRAY_CHILD: usize = 16;
const PAYLOAD: usize = META_BLOCK_SIZE - HEADER_SIZE;

/// The shape of a tree; `None` for what is no tree.
pub fn shape(kind: BlockType) -> Option<Shape> {
    Some(match kind {
        BlockType::Mapping => Shape::Array { bits: 96, per_leaf: 338 },
        BlockType::Digest => Shape::Array { bits: 256, per_leaf: 127 },
        BlockType::RefCount | BlockType::MetaMap => Shape::Array { bits: 2, per_leaf: 16256 },
        BlockType::Overflow => Shape::Sparse { key: 6, value: 8 },
        BlockType::Hint => Shape::Sparse { key: 14, value: 0 },
        BlockType::Bad => Shape::Sparse { key: 6, value: 0 },
        BlockType::MappingRun => Shape::Sparse { key: 6, value: 12 },
        BlockType::Superblock | BlockType::Log => return None,
    })
}

/// The name of a tree in a block's name.
pub fn tree_name(kind: BlockType) -> &'static str {
    match kind {
        BlockType::Superblock => "superblock",
        BlockType::Log => "log",
        BlockType::Mapping => "mapping",
        BlockType::Digest => "digest",
        BlockType::RefCount => "refcount",
        BlockType::Overflow => "overflow",
        BlockType::Hint => "hint",
        BlockType::Bad => "bad",
        BlockType::MetaMap => "metamap",
        BlockType::MappingRun => "mapping-run",
    }
}

/// Collects fields from front to back.
struct Fields {
    fields: Vec<Field>,
    /// First bit that has no field yet.
    next: usize,
}

impl Fields {
    fn new(next: usize) -> Self {
        Self { fields: Vec::new(), next: next * 8 }
    }

    fn bits(&mut self, name: impl Into<String>, width: usize) {
        if width > 0 {
            self.fields.push(Field { name: name.into(), start: self.next, width });
            self.next += width;
        }
    }

    fn bytes(&mut self, name: impl Into<String>, bytes: usize) {
        self.bits(name, bytes * 8);
    }

    fn table(&mut self, prefix: &str, table: &[(&str, usize)]) {
        table.iter().for_each(|(name, bytes)| self.bytes(format!("{prefix}{name}"), *bytes));
    }

    /// One field up to the byte `end`.
    fn rest(&mut self, name: &str, end: usize) {
        self.bits(name, end * 8 - self.next);
    }
}

const HEADER: &[(&str, usize)] = &[
    ("crc", 4),
    ("type", 1),
    ("level", 1),
    ("entries", 2),
    ("block number", 8),
    ("birth", 8),
    ("first index", 8),
];

/// The superblock's fields before its first root.
const SUPERBLOCK: &[(&str, usize)] = &[
    ("magic", 8),
    ("version", 4),
    ("block_size", 4),
    ("compat", 8),
    ("ro_compat", 8),
    ("incompat", 8),
    ("pool", 16),
    ("data_device", 16),
    ("digest_algorithm", 1),
    ("verify_match", 1),
    ("padding", 2),
    ("flushrq", 4),
    ("data_blocks", 8),
    ("metadata_blocks", 8),
    ("log_start", 8),
    ("log_blocks", 8),
    ("flags", 4),
    ("volume_count", 4),
    ("epoch", 8),
    ("epoch_start", 8),
    ("log_next", 8),
    ("log_prev_crc", 4),
    ("padding", 4),
    ("op_seq", 8),
    ("counters", 128),
    ("data_used", 8),
    ("mapped", 8),
    ("cursor", 8),
    ("hint_rebuild_next", 8),
];
const ROOT: &[(&str, usize)] = &[("block", 8), ("crc", 4), ("level", 1), ("padding", 3), ("entries", 8)];
const RUNS: usize = 16;
/// Bytes of a root.
pub const ROOT_BYTES: usize = 24;
const VOLUMES: usize = 4;
const VOLUME_BYTES: usize = 432;

/// Where the number of the first log block to replay stands in a superblock, in bytes; its predecessor's CRC
/// follows.
pub const LOG_NEXT_AT: usize = 168;
/// Where a log block names the one before it, in bytes.
pub const LOG_PREV_CRC_AT: usize = 64;
/// Bytes of a root in front of its CRC.
pub const ROOT_CRC_AT: usize = 8;

const LOG: &[(&str, usize)] = &[
    ("seq", 8),
    ("group", 8),
    ("durable", 8),
    ("op_seq", 8),
    ("prev_crc", 4),
    ("length", 2),
    ("flags", 2),
    ("counters", 128),
];

const LABEL: &[(&str, usize)] = &[
    ("magic", 8),
    ("version", 4),
    ("crc", 4),
    ("pool", 16),
    ("data_device", 16),
    ("size", 8),
    ("block_size", 4),
    ("identity", 16),
    ("zeros", 436),
];

/// The roots of a superblock: tree, first byte.
pub fn roots() -> [(BlockType, usize); 7] {
    [
        (BlockType::Digest, 352),
        (BlockType::RefCount, 376),
        (BlockType::Overflow, 400),
        (BlockType::Bad, 424),
        (BlockType::MetaMap, 448),
        (BlockType::Hint, 472),
        (BlockType::Mapping, 888 + 16),
    ]
}

/// The roots of runs in a superblock, the oldest first: tree, first byte of the first.
pub fn runs() -> [(BlockType, usize); 2] {
    [(BlockType::Hint, 472 + ROOT_BYTES), (BlockType::MappingRun, 888 + 16 + ROOT_BYTES)]
}

/// The fields of the data device's label.
pub fn label() -> Vec<Field> {
    let mut fields = Fields::new(0);
    fields.table("", LABEL);
    fields.fields
}

/// The fields of a superblock.
pub fn superblock() -> Vec<Field> {
    let mut fields = Fields::new(0);
    fields.table("", HEADER);
    fields.table("", SUPERBLOCK);
    for root in ["digest root", "refcount root", "overflow root", "bad root", "metamap root"] {
        fields.table(&format!("{root}."), ROOT);
    }
    run_set(&mut fields, "hint");
    fields.table("volume.", &[("id", 4), ("flags", 4), ("logical_blocks", 8)]);
    run_set(&mut fields, "mapping");
    fields.bytes("unused volumes", (VOLUMES - 1) * VOLUME_BYTES);
    fields.bytes("journal id", 16);
    fields.bytes("journal boot", 16);
    fields.bytes("journal place length", 1);
    fields.bytes("journal place", dedup_meta::JOURNAL_PLACE_MAX);
    fields.rest("unused", META_BLOCK_SIZE);
    fields.fields
}

fn run_set(fields: &mut Fields, name: &str) {
    fields.table(&format!("{name} root."), ROOT);
    (0..RUNS).for_each(|i| fields.table(&format!("{name} run[{i}]."), ROOT));
    fields.bytes(format!("{name} run_count"), 4);
    fields.bytes("padding", 4);
}

/// The fields of a log block with these bytes.
pub fn log(block: &[u8]) -> Vec<Field> {
    let mut fields = Fields::new(0);
    fields.table("", HEADER);
    fields.table("", LOG);
    let length_at = LOG_PREV_CRC_AT + 4;
    let length = usize::from(u16::from_le_bytes([block[length_at], block[length_at + 1]]));
    let end = (fields.next / 8 + length).min(META_BLOCK_SIZE);
    for i in 0.. {
        let at = fields.next / 8;
        let Some(parts) = (at < end).then(|| record(block[at])).flatten() else { break };
        if at + parts.iter().map(|(_, bytes)| bytes).sum::<usize>() > end {
            break;
        }
        fields.table(&format!("record[{i}]."), parts);
    }
    fields.rest("unused", META_BLOCK_SIZE);
    fields.fields
}

/// The parts of a record of this type.
fn record(tag: u8) -> Option<&'static [(&'static str, usize)]> {
    Some(match tag {
        1 => &[("allocate type", 1), ("allocate pbn", 6), ("allocate digest", 32)],
        2 => &[
            ("map type", 1),
            ("map lbn", 6),
            ("map pbn", 6),
            ("map crc", 4),
            ("map flags", 2),
            ("map old pbn", 6),
        ],
        3 => &[("unmap type", 1), ("unmap lbn", 6), ("unmap blocks", 6)],
        4 => &[("bad type", 1), ("bad pbn", 6)],
        5 => &[("healed type", 1), ("healed pbn", 6)],
        _ => return None,
    })
}

/// The fields of a node with these bytes. `limit` is the number of indices that an array has.
pub fn node(kind: BlockType, level: u8, block: &[u8], limit: u64) -> Vec<Field> {
    let mut fields = Fields::new(0);
    fields.table("", HEADER);
    match (shape(kind), level) {
        (Some(Shape::Array { bits, per_leaf }), 0) => {
            let first = u64::from_le_bytes(word(block, 24));
            let present = per_leaf.min(limit.saturating_sub(first));
            (first..first + present).for_each(|i| entry(&mut fields, kind, i, bits));
        }
        (Some(Shape::Array { .. }), _) => array_index(&mut fields, block),
        (Some(Shape::Sparse { key, value }), _) => {
            let value = if level == 0 { value } else { REFERENCE };
            sparse(&mut fields, kind, level, block, key, value);
        }
        (None, _) => {}
    }
    fields.rest("unused", META_BLOCK_SIZE);
    fields.fields
}

fn entry(fields: &mut Fields, kind: BlockType, i: u64, bits: usize) {
    match kind {
        BlockType::Mapping => {
            fields.table(&format!("mapping[{i}]."), &[("pbn", 6), ("crc", 4), ("flags", 2)]);
        }
        BlockType::Digest => fields.bits(format!("digest[{i}]"), bits),
        _ => fields.bits(format!("count[{i}]"), bits),
    }
}

fn array_index(fields: &mut Fields, block: &[u8]) {
    for i in 0..PAYLOAD / ARRAY_CHILD {
        let at = HEADER_SIZE + i * ARRAY_CHILD;
        if block[at..][..ARRAY_CHILD].iter().any(|byte| *byte != 0) {
            let before = at * 8 - fields.next;
            fields.bits(format!("absent[{i}]"), before);
            fields.table(&format!("child[{i}]."), &[("block", 6), ("crc", 4), ("used", 6)]);
        }
    }
}

fn sparse(fields: &mut Fields, kind: BlockType, level: u8, block: &[u8], key: usize, value: usize) {
    let capacity = PAYLOAD / (key + value);
    let entries = usize::from(u16::from_le_bytes([block[6], block[7]])).min(capacity);
    for i in 0..entries {
        match kind {
            BlockType::Hint => fields.table(&format!("key[{i}]."), &[("prefix", 8), ("pbn", 6)]),
            BlockType::MappingRun => fields.table(&format!("key[{i}]."), &[("lbn", key)]),
            _ => fields.table(&format!("key[{i}]."), &[("pbn", key)]),
        }
    }
    fields.rest("unused keys", HEADER_SIZE + capacity * key);
    for i in 0..entries {
        match level {
            0 if kind == BlockType::MappingRun => {
                fields.table(&format!("mapping[{i}]."), &[("pbn", 6), ("crc", 4), ("flags", 2)]);
            }
            0 => fields.bytes(format!("value[{i}]"), value),
            _ => fields.table(&format!("child[{i}]."), &[("block", 6), ("crc", 4)]),
        }
    }
    fields.rest("unused values", HEADER_SIZE + capacity * (key + value));
}

/// A child that a node names: block, CRC, and the byte at which the CRC stands.
#[derive(Clone, Copy, Debug)]
pub struct Child {
    /// Its place.
    pub block: u64,
    /// Where its checksum stands in the parent, in bytes.
    pub crc_at: usize,
}

/// The children of an index node with these bytes, in order.
pub fn children(kind: BlockType, block: &[u8]) -> Vec<Child> {
    let at = match shape(kind) {
        Some(Shape::Array { .. }) => {
            (0..PAYLOAD / ARRAY_CHILD).map(|i| HEADER_SIZE + i * ARRAY_CHILD).collect::<Vec<_>>()
        }
        Some(Shape::Sparse { key, .. }) => {
            let capacity = PAYLOAD / (key + REFERENCE);
            let entries = usize::from(u16::from_le_bytes([block[6], block[7]])).min(capacity);
            (0..entries).map(|i| HEADER_SIZE + capacity * key + i * REFERENCE).collect()
        }
        None => Vec::new(),
    };
    at.into_iter()
        .map(|at| Child { block: number(block, at), crc_at: at + 6 })
        .filter(|child| child.block != 0)
        .collect()
}

/// The 48-bit number at a place of a block.
pub fn number(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(word(block, at)) & ((1 << 48) - 1)
}

/// Eight bytes of a block.
pub fn word(block: &[u8], at: usize) -> [u8; 8] {
    let mut word = [0; 8];
    word.copy_from_slice(&block[at..at + 8]);
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_a_block_cover_every_bit_of_it_once() {
        let mut block = vec![0; META_BLOCK_SIZE];
        block[6] = 3;
        block[LOG_PREV_CRC_AT + 4] = 39 + 25;
        block[200] = 1;
        block[239] = 2;
        block[HEADER_SIZE + 5 * ARRAY_CHILD] = 1;
        let kinds = [
            BlockType::Mapping,
            BlockType::Digest,
            BlockType::RefCount,
            BlockType::Overflow,
            BlockType::Hint,
            BlockType::Bad,
            BlockType::MappingRun,
        ];
        let nodes = kinds.iter().flat_map(|kind| [0, 1].map(|level| node(*kind, level, &block, 1000)));
        let all = nodes.chain([superblock(), log(&block)]).map(|fields| (fields, META_BLOCK_SIZE));
        for (fields, bytes) in all.chain([(label(), 512)]) {
            let mut next = 0;
            for field in &fields {
                assert_eq!(field.start, next, "{}", field.name);
                next += field.width;
            }
            assert_eq!(next, bytes * 8, "{:?}", fields.last());
        }
    }

    #[test]
    fn the_roots_of_a_superblock_stand_where_the_fields_say() {
        let fields = superblock();
        for (kind, at) in roots() {
            let name = format!("{} root.block", tree_name(kind));
            let field = fields.iter().find(|field| field.name == name).expect("a root's field");
            assert_eq!(field.byte(), at);
        }
        let log_next = fields.iter().find(|field| field.name == "log_next").expect("the field");
        assert_eq!(log_next.byte(), LOG_NEXT_AT);
    }
}
