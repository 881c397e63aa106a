//! Writes the seeds of all targets: `cargo run --example seeds` in `fuzz/`. Deterministic; the results are in
//! `corpus/`, each under a name that says what it is.

use dedup_device::{BlockDevice, MemDevice};
use dedup_fuzz::nbd;
use dedup_fuzz::template::TEMPLATE;
use dedup_meta::{BlockType, LogBuilder, META_BLOCK_SIZE};
use dedup_schema::{Mapping, Record};
use dedup_volume::{Digest, Lbn, Pbn};
use std::fs;
use std::path::Path;

fn main() {
    record();
    label();
    superblock();
    node();
    log();
    image();
    nbd_handshake();
    nbd_transmission();
    sizes();
}

fn put(target: &str, name: &str, bytes: &[u8]) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&dir).expect("the corpus can be written");
    fs::write(dir.join(name), bytes).expect("the corpus can be written");
}

fn records() -> Vec<Record<'static>> {
    let new = Mapping { pbn: Pbn(7), crc: 0x1234_5678, flags: 0 };
    vec![
        Record::Allocate { pbn: Pbn(7), digest: Digest([5; 32]) },
        Record::Map { lbn: Lbn(3), new, old: Pbn(2) },
        Record::Unmap { lbn: Lbn(10), blocks: 20 },
        Record::Bad { pbn: Pbn(4) },
        Record::Healed { pbn: Pbn(4) },
        Record::Content { pbn: Pbn(7), offset: 0, bytes: b"content" },
    ]
}

fn record() {
    let mut bytes = Vec::new();
    records().iter().for_each(|record| record.encode(&mut bytes));
    put("record", "one-of-each", &bytes);
    put("record", "cut", &bytes[..60]);
}

fn label() {
    let mut bytes = vec![0, 0, 1];
    let mut label = [0; 512];
    TEMPLATE.disks().data.read(0, &mut label).expect("memory can be read");
    bytes.extend(label);
    put("label", "valid", &bytes);
    bytes[0] = 1;
    bytes[100] ^= 1;
    put("label", "damaged", &bytes);
}

/// A metadata block of the template without its checksum and the zeros at its end, behind its length.
fn sized(device: &MemDevice, at: u64) -> Vec<u8> {
    let mut block = vec![0; META_BLOCK_SIZE];
    device.read(at * META_BLOCK_SIZE as u64, &mut block).expect("memory can be read");
    let len = block.iter().rposition(|byte| *byte != 0).map_or(4, |last| last + 1);
    let mut bytes = ((len - 4) as u16).to_le_bytes().to_vec();
    bytes.extend(&block[4..len]);
    bytes
}

fn superblock() {
    let disks = TEMPLATE.disks();
    let copy = |place: u64| [vec![1], sized(&disks.metadata, place)].concat();
    put("superblock", "one-slot", &copy(0));
    put("superblock", "both-slots", &[copy(0), copy(256)].concat());
    put("superblock", "slots-and-spares", &[copy(0), copy(256), copy(767), copy(1023)].concat());
}

/// A root of each tree of the template, alone or with the nodes below the first children.
fn node() {
    let disks = TEMPLATE.disks();
    let survey = dedup_meta::load_superblocks(&*disks.metadata);
    let superblock = survey.newest(None).expect("the template has a superblock");
    let trees = [
        (BlockType::Mapping, 0, "mapping"),
        (BlockType::Digest, 1, "digest"),
        (BlockType::RefCount, 2, "refcount"),
        (BlockType::MetaMap, 3, "metamap"),
        (BlockType::Overflow, 4, "overflow"),
        (BlockType::Hint, 5, "hint"),
        (BlockType::Bad, 6, "bad"),
        (BlockType::MappingRun, 7, "mapping-run"),
    ];
    for (kind, number, name) in trees {
        let (_, _, root) = superblock.roots().find(|(_, k, _)| *k == kind).expect("every tree has a root");
        let Some(top) = root.node else { continue };
        let mut bytes = vec![number, root.level];
        bytes.extend(0_u64.to_le_bytes());
        for key in 0..4_u8 {
            bytes.extend([key * 50; 2]);
            bytes.extend([0; 14]);
        }
        bytes.extend(with_children(&disks.metadata, top.block.0, kind, root.level));
        put("node", name, &bytes);
    }
}

/// A node, and below it the first two leaves, numbered as the target numbers them.
fn with_children(device: &MemDevice, at: u64, kind: BlockType, level: u8) -> Vec<u8> {
    let mut top = sized(device, at);
    if level == 0 {
        return top;
    }
    let (refs, step) = match kind {
        BlockType::Overflow => (dedup_btree::BTree::<Pbn, dedup_schema::Count>::FANOUT * 6, 10),
        BlockType::Hint => (dedup_btree::BTree::<dedup_schema::HintKey, ()>::FANOUT * 14, 10),
        BlockType::Bad | BlockType::MappingRun => (dedup_btree::BTree::<Pbn, ()>::FANOUT * 6, 10),
        _ => (0, 16),
    };
    let mut below = Vec::new();
    for child in 0..7 {
        // The length, then the block without its checksum.
        let place = 2 + dedup_meta::HEADER_SIZE - 4 + refs + child * step;
        let Some(reference) = top.get_mut(place..place + 6) else { break };
        let mut number = [0; 8];
        number[..6].copy_from_slice(reference);
        let block = u64::from_le_bytes(number);
        if block == 0 {
            break;
        }
        reference.copy_from_slice(&(child as u64 + 2).to_le_bytes()[..6]);
        below.extend(sized(device, block));
    }
    [top, below].concat()
}

fn log() {
    let mut builder = LogBuilder::new();
    for (i, record) in records().iter().enumerate() {
        builder.push(i as u64 + 1, &[i as u64; dedup_meta::COUNTERS], |bytes| record.encode(bytes));
    }
    let pending = builder.take();
    let payload = &pending[0].payload;
    let block = |seq: u64, epoch: u64, control: u8| {
        let mut bytes = vec![0, 0, 5, 0];
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(epoch.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        [seq, 1, seq, seq * 5].iter().for_each(|field| bytes.extend(field.to_le_bytes()));
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend((payload.len() as u16).to_le_bytes());
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend([0; 8 * dedup_meta::COUNTERS]);
        bytes.extend(payload);
        [vec![control], (bytes.len() as u16).to_le_bytes().to_vec(), bytes].concat()
    };
    let from =
        |next: u64| [&next.to_le_bytes()[..], &[0; 4], &1_u64.to_le_bytes(), &next.to_le_bytes()].concat();
    put("log", "chain", &[from(5), block(5, 1, 0), block(6, 1, 0), block(7, 1, 0)].concat());
    put("log", "gap", &[from(5), block(5, 1, 0), block(6, 1, 1), block(7, 1, 0)].concat());
    put("log", "older-epoch", &[from(14), block(14, 2, 0), block(15, 1, 0), block(16, 2, 2)].concat());
    put("log", "torn", &[from(30), block(30, 1, 0), block(31, 1, 4)].concat());
}

/// One change: kind, block, byte, bits.
fn change(kind: u8, block: u8, byte: u16, xor: u8) -> Vec<u8> {
    [vec![kind, block], byte.to_le_bytes().to_vec(), vec![xor]].concat()
}

fn image() {
    let operations: Vec<u8> = [
        (1, 5, 9),
        (0x81, 6, 9),
        (3, 7, 30),
        (4, 100, 12),
        (7, 0, 0),
        (5, 2, 4),
        (6, 0, 0),
        (7, 0, 1),
        (0, 1, 0),
        (7, 0, 2),
    ]
    .iter()
    .flat_map(|(kind, lbn, argument)| [*kind, *lbn, 0, *argument])
    .collect();
    put("image", "whole", &[vec![0], operations.clone()].concat());
    let last = TEMPLATE.blocks.len() as u8;
    // The superblock copies are the last blocks; the log's come first, then nodes from the leaves up.
    for (name, changes) in [
        ("log-torn", change(1, 7, 200, 1)),
        ("leaf-damaged", change(1, 14, 100, 1)),
        ("leaf-resealed", change(0, 14, 100, 1)),
        ("superblock-torn", change(1, last - 4, 50, 1)),
        ("superblock-resealed", change(0, last - 4, 120, 1)),
        ("data-damaged", change(3, 9, 0, 1)),
        ("label-damaged", change(3, 0, 20, 1)),
        ("log-record-resealed", change(0, 3, 205, 1)),
    ] {
        put("image", name, &[vec![1], changes, operations.clone()].concat());
    }
}

fn nbd_handshake() {
    let go = nbd::go_data("disk", &[3]);
    let raw = [vec![1], nbd::CLIENT_FLAGS.to_vec(), nbd::option(3, &[]), nbd::option(7, &go)].concat();
    put("nbd_handshake", "raw-list-go", &raw);
    let short = |number: u8, data: &[u8]| [vec![number, data.len() as u8], data.to_vec()].concat();
    put("nbd_handshake", "export-name", &[vec![0, 3], short(1, b"disk")].concat());
    put(
        "nbd_handshake",
        "structured-info-go",
        &[vec![0, 3], short(8, &[]), short(6, &go), short(7, &go)].concat(),
    );
    let contexts = nbd::context_data("disk", &["base:allocation"]);
    put(
        "nbd_handshake",
        "extended-contexts-go",
        &[vec![0, 3], short(11, &[]), short(9, &contexts), short(10, &contexts), short(7, &go)].concat(),
    );
    put("nbd_handshake", "starttls", &[vec![0, 3], short(5, &[]), vec![22, 3, 1, 0, 0]].concat());
    put("nbd_handshake", "unknown-abort", &[vec![0, 1], short(99, b"x"), short(2, &[])].concat());
}

fn nbd_transmission() {
    let request = |flags: u16, command: u16, offset: u32, len: u32| {
        [&flags.to_be_bytes()[..], &command.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()].concat()
    };
    let all = [
        request(0, 0, 0, 4096),
        request(1, 1, 512, 16),
        vec![7; 16],
        request(0, 3, 0, 0),
        request(1, 4, 0, 1 << 20),
        request(3, 6, 4096, 4096),
        request(0, 0, u32::MAX, 1),
        request(0, 5, 0, 1 << 20),
        request(8, 7, 0, 1 << 20),
        request(0, 7, 512, 512),
        request(16, 6, 1, 512),
        request(0, 2, 0, 0),
    ]
    .concat();
    put("nbd_transmission", "simple", &[vec![0], all.clone()].concat());
    put("nbd_transmission", "structured", &[vec![1 | 8], all.clone()].concat());
    let named = [&4096u64.to_be_bytes()[..], &1u32.to_be_bytes()].concat();
    let extended = [request(32, 1, 0, 16), vec![7; 16], request(32, 7, 0, 12), named, all].concat();
    put("nbd_transmission", "extended", &[vec![4 | 8], extended].concat());
    put(
        "nbd_transmission",
        "raw",
        &[vec![2], nbd::request(0, 0, 1, 0, 512), nbd::request(0, 2, 2, 0, 0)].concat(),
    );
}

fn sizes() {
    put("sizes", "size", b"1.5G");
    put("sizes", "defaults", b"v\n--logical-size=1M");
    put("sizes", "all", b"--data-dev=a\n--metadata-dev=b\n--logical-size\n64K\n--data-size=128K\n--metadata-size\n8M\n--block-size=512\n--crypto-alg=md5\n--flushrq=7\n--verify-match=yes\n--force\n--json");
}
