//! What stands where on a volume's devices: every block that means something, by name, with the places where
//! its checksum is named.
//!
//! ```text
//!   superblock:slot  superblock:spare       the newest superblock's, and older-slot, older-spare
//!   mapping:0:3                             tree, level, number from the left
//!   older:mapping:0:3                       the same in the older superblock's tree, if that is another block
//!   log:0                                   from where replay begins; older:log:0 what only the older superblock replays
//!   label  data:17                          on the data device; the number is the PBN
//! ```
//!
//! The walk is this file's own and believes no checksum, so that a damaged volume can be damaged further; it
//! ends, since it enters a block once and goes down a level a step.

use super::Devices;
use super::layout::{self, Child, Field};
use dedup_meta::{BlockType, LogSeq, MetaBlock, Root, Superblock, SuperblockError, load_superblocks};
use std::collections::{BTreeMap, BTreeSet};

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// The data device's label.
    Label,
    /// A superblock, a log block or a node of a tree.
    Meta(BlockType),
    /// A data block.
    Data,
}

/// Which of the superblocks needs a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// The newest one, and perhaps the older one too.
    Newest,
    /// The older one alone.
    Older,
}

/// Where a checksum stands: the block, and the byte in it.
pub type Place = (MetaBlock, usize);

/// A block that means something.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its name; see the module.
    pub name: String,
    /// What it holds.
    pub what: What,
    /// Its number on its device, in blocks of that device.
    pub at: u64,
    /// Its level in its tree.
    pub level: u8,
    /// Which superblock needs it.
    pub age: Age,
    /// Where its checksum stands outside itself.
    pub named_at: Vec<Place>,
}

impl Site {
    /// Its place, if it is on the metadata device.
    pub fn meta(&self) -> Option<MetaBlock> {
        matches!(self.what, What::Meta(_)).then_some(MetaBlock(self.at))
    }

    /// The type's name, as messages have it.
    pub fn kind(&self) -> &'static str {
        match self.what {
            What::Label => "label",
            What::Data => "data",
            What::Meta(kind) => layout::tree_name(kind),
        }
    }
}

/// The blocks of a volume.
#[derive(Clone, Debug)]
pub struct Atlas {
    /// The newest superblock.
    pub newest: Superblock,
    /// The one before it.
    pub older: Option<Superblock>,
    /// All blocks: label, superblocks, log, nodes (a parent before its children), data blocks in use.
    pub sites: Vec<Site>,
}

impl Atlas {
    /// Looks at a volume.
    ///
    /// # Errors
    /// If there is no superblock to begin with.
    pub fn of(devices: &Devices) -> Result<Self, SuperblockError> {
        let survey = load_superblocks(&*devices.metadata);
        let newest = survey.newest(None)?.clone();
        let older = survey.older(&newest).cloned();
        let mut draft = Draft { devices, newest: &newest, sites: Vec::new(), known: BTreeMap::new() };
        draft.add(Site {
            name: "label".into(),
            what: What::Label,
            at: 0,
            level: 0,
            age: Age::Newest,
            named_at: Vec::new(),
        });
        draft.superblocks(&newest, "", Age::Newest);
        if let Some(older) = &older {
            draft.superblocks(older, "older-", Age::Older);
        }
        draft.log(older.as_ref());
        let mut tops = vec![(&newest, "", Age::Newest)];
        tops.extend(older.as_ref().map(|older| (older, "older:", Age::Older)));
        for (superblock, prefix, age) in tops {
            draft.trees(superblock, prefix, age);
        }
        draft.data();
        let sites = draft.sites;
        Ok(Self { newest, older, sites })
    }

    /// The block of this name.
    pub fn find(&self, name: &str) -> Option<&Site> {
        self.sites.iter().find(|site| site.name == name)
    }

    /// The fields of a block as it stands on the devices.
    pub fn fields(&self, devices: &Devices, site: &Site) -> Vec<Field> {
        match site.what {
            What::Label => layout::label(),
            What::Data => {
                let width = self.newest.block_size as usize * 8;
                vec![Field { name: "content".into(), start: 0, width }]
            }
            What::Meta(BlockType::Superblock) => layout::superblock(),
            What::Meta(BlockType::Log) => layout::log(&devices.meta_block(MetaBlock(site.at))),
            What::Meta(kind) => {
                let bytes = devices.meta_block(MetaBlock(site.at));
                layout::node(kind, site.level, &bytes, self.limit(kind))
            }
        }
    }

    /// Indices that an array tree has a meaning for.
    fn limit(&self, kind: BlockType) -> u64 {
        match kind {
            BlockType::Mapping => self.newest.volumes[0].logical_blocks,
            BlockType::MetaMap => self.newest.layout.metadata_blocks,
            _ => self.newest.data_blocks,
        }
    }
}

/// An atlas while it is drawn.
struct Draft<'a> {
    devices: &'a Devices,
    newest: &'a Superblock,
    sites: Vec<Site>,
    /// Metadata blocks that have a site.
    known: BTreeMap<u64, usize>,
}

impl Draft<'_> {
    fn add(&mut self, site: Site) {
        if site.meta().is_some() {
            self.known.insert(site.at, self.sites.len());
        }
        self.sites.push(site);
    }

    fn superblocks(&mut self, superblock: &Superblock, prefix: &str, age: Age) {
        let (layout, txid) = (superblock.layout, superblock.txid);
        for (at, name) in [(layout.slot(txid), "slot"), (layout.spare(txid), "spare")] {
            let what = What::Meta(BlockType::Superblock);
            let name = format!("superblock:{prefix}{name}");
            self.add(Site { name, what, at: at.0, level: 0, age, named_at: Vec::new() });
        }
    }

    /// The places of a field in both copies of a superblock, those that are that superblock's.
    fn copies(&self, superblock: &Superblock, byte: usize) -> Vec<Place> {
        let (layout, txid) = (superblock.layout, superblock.txid);
        let of_it = |at: &MetaBlock| {
            let bytes = self.devices.meta_block(*at);
            u64::from_le_bytes(layout::word(&bytes, 16)) == txid.0
        };
        let copies = [layout.slot(txid), layout.spare(txid)].into_iter().filter(of_it);
        copies.map(|at| (at, byte)).collect()
    }

    /// The log from where the older superblock's replay begins.
    fn log(&mut self, older: Option<&Superblock>) {
        let (first, middle) = (older.map_or(self.newest.log.next, |o| o.log.next), self.newest.log.next);
        let geometry = self.newest.layout.log;
        let ring_end = first.0.saturating_add(geometry.blocks);
        for seq in first.0..ring_end {
            let at = geometry.place(LogSeq(seq));
            let bytes = self.devices.meta_block(at);
            if bytes[4] != BlockType::Log as u8 || u64::from_le_bytes(layout::word(&bytes, 32)) != seq {
                break;
            }
            let mut named_at = Vec::new();
            for superblock in [Some(self.newest), older].into_iter().flatten() {
                if superblock.log.next.0 == seq + 1 {
                    named_at.extend(self.copies(superblock, layout::LOG_NEXT_AT + 8));
                }
            }
            let next = geometry.place(LogSeq(seq + 1));
            if u64::from_le_bytes(layout::word(&self.devices.meta_block(next), 32)) == seq + 1 {
                named_at.push((next, layout::LOG_PREV_CRC_AT));
            }
            let (name, age) = match seq.checked_sub(middle.0) {
                Some(n) => (format!("log:{n}"), Age::Newest),
                None => (format!("older:log:{}", seq - first.0), Age::Older),
            };
            self.add(Site { name, what: What::Meta(BlockType::Log), at: at.0, level: 0, age, named_at });
        }
    }

    fn trees(&mut self, superblock: &Superblock, prefix: &str, age: Age) {
        let bases = layout::roots().map(|(kind, at)| (kind, String::new(), root_of(superblock, kind), at));
        let runs = layout::runs().into_iter().flat_map(|(kind, first)| {
            let runs = runs_of(superblock, kind).iter().enumerate();
            runs.map(move |(i, root)| (kind, format!("run{i}:"), *root, first + i * layout::ROOT_BYTES))
        });
        for (kind, part, root, at) in bases.into_iter().chain(runs) {
            let Some(node) = root.node else { continue };
            let named_at = self.copies(superblock, at + layout::ROOT_CRC_AT);
            let mut level: Vec<(u64, Vec<Place>)> = vec![(node.block.0, named_at)];
            for height in (0..=root.level).rev() {
                let mut below = Vec::new();
                for (number, (at, named_at)) in level.into_iter().enumerate() {
                    let name = format!("{prefix}{}:{part}{height}:{number}", layout::tree_name(kind));
                    self.node(kind, at, height, age, name, named_at, &mut below);
                }
                level = below;
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that is known of a node")]
    fn node(
        &mut self,
        kind: BlockType,
        at: u64,
        level: u8,
        age: Age,
        name: String,
        named_at: Vec<Place>,
        below: &mut Vec<(u64, Vec<Place>)>,
    ) {
        if at >= self.newest.layout.metadata_blocks {
            return;
        }
        if let Some(known) = self.known.get(&at) {
            // Shared by both superblocks: one more place that names it. What is below it has been seen.
            let places = &mut self.sites[*known].named_at;
            named_at.into_iter().for_each(|place| {
                if !places.contains(&place) {
                    places.push(place);
                }
            });
            return;
        }
        self.add(Site { name, what: What::Meta(kind), at, level, age, named_at });
        if level > 0 {
            let bytes = self.devices.meta_block(MetaBlock(at));
            let place = |child: Child| (child.block, vec![(MetaBlock(at), child.crc_at)]);
            below.extend(layout::children(kind, &bytes).into_iter().map(place));
        }
    }

    /// The data blocks that the mapping tree and the log name.
    fn data(&mut self) {
        let mut pbns = BTreeSet::new();
        for site in self.sites.iter().filter(|site| site.what == What::Meta(BlockType::Log)) {
            let bytes = self.devices.meta_block(MetaBlock(site.at));
            let fields = layout::log(&bytes);
            let named = fields.iter().filter(|field| field.name.ends_with("map pbn"));
            pbns.extend(named.map(|field| layout::number(&bytes, field.byte())));
        }
        let leaves = self.sites.iter().filter(|site| {
            site.what == What::Meta(BlockType::Mapping) && site.level == 0 && site.age == Age::Newest
        });
        for leaf in leaves {
            let bytes = self.devices.meta_block(MetaBlock(leaf.at));
            let entries = bytes[dedup_meta::HEADER_SIZE..].chunks_exact(12);
            pbns.extend(entries.map(|entry| layout::number(entry, 0)));
        }
        let blocks = 1..self.newest.data_blocks;
        for at in pbns.into_iter().filter(|pbn| blocks.contains(pbn)) {
            let (name, what) = (format!("data:{at}"), What::Data);
            self.add(Site { name, what, at, level: 0, age: Age::Newest, named_at: Vec::new() });
        }
    }
}

/// The roots of the runs of a tree.
fn runs_of(superblock: &Superblock, kind: BlockType) -> &[Root] {
    match kind {
        BlockType::Hint => &superblock.hint.runs,
        BlockType::MappingRun => &superblock.volumes[0].mapping.runs,
        _ => &[],
    }
}

/// The root of a tree.
fn root_of(superblock: &Superblock, kind: BlockType) -> Root {
    let roots = &superblock.roots;
    match kind {
        BlockType::Digest => roots.digest,
        BlockType::RefCount => roots.refcount,
        BlockType::Overflow => roots.overflow,
        BlockType::Bad => roots.bad,
        BlockType::MetaMap => roots.metamap,
        BlockType::Hint => superblock.hint.base,
        BlockType::Mapping => superblock.volumes[0].mapping.base,
        BlockType::Superblock | BlockType::Log | BlockType::MappingRun => Root::EMPTY,
    }
}
