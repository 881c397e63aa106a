//! Walking every node of a tree in large reads: for the checker, which reads all of a device.
//!
//! What a [`Visitor`] sees is what a [walk](crate::walk) shows it: parents before children, leaves from left
//! to right. The reads go another way, and ahead:
//!
//! ```text
//!   level 2   ( visited )
//!   level 1   ( visited visited visited | next  next ... )         a few dozen at a time, by the caller
//!   level 0   ( visited | window  window  window | referred to )   a window is read by a job, in the order of the device
//! ```
//!
//! So a visitor is asked about the *references* to leaves before it is shown the leaves on their left.
//! Whoever drives a sweep takes it leaf by leaf ([`Sweep::step`]), and may drive several at once.
//!
//! **Bounds:** of memory, those of [`Window`] and some hundred references for each node that is read ahead
//! above the leaves. A sweep ends, as a walk does, whatever the pointers say.

use crate::rule::Rule;
use crate::walk::{Descend, Visit, Visitor};
use dedup_meta::{Block, BlockRef, Bulk, MetaBlock, MetaError, Root, Store};
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Nodes of level 1 read at a time: they name some thousand leaves.
const PARENTS: usize = 32;
/// Nodes of a higher level read at a time: each names hundreds of nodes that name hundreds.
const ANCESTORS: usize = 2;

/// A part of a sweep's work that can be done by any thread.
pub type Job = Box<dyn FnOnce() + Send>;

/// Who does a [`Job`]: at once, or some time.
pub type Spawn = Arc<dyn Fn(Job) + Send + Sync>;

/// How far a sweep reads ahead. It has at most `nodes * (windows + 1)` leaves in memory, and as many blocks
/// more that lie between them.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Leaves that are read together.
    pub nodes: usize,
    /// Windows that are read before they are asked for.
    pub windows: usize,
}

/// What sweeps read with. A clone is another handle to the same.
#[derive(Clone)]
pub struct Reader {
    store: Arc<Store>,
    spawn: Spawn,
    /// Memory of windows that are done with.
    spent: Arc<Mutex<Vec<Bulk>>>,
}

impl Reader {
    /// Reads from `store`; what can be done by other threads is handed to `spawn`.
    pub fn new(store: Arc<Store>, spawn: Spawn) -> Self {
        Self { store, spawn, spent: Arc::default() }
    }

    /// The next window. For any thread.
    fn window<R: Rule>(&self, places: Vec<Place<R>>) -> Flight<R> {
        let old = self.spent.lock().unwrap_or_else(PoisonError::into_inner).pop();
        self.read(places, old.unwrap_or_default())
    }

    /// All nodes of `places`, which are of one level.
    fn read<R: Rule>(&self, places: Vec<Place<R>>, old: Bulk) -> Flight<R> {
        let Some(Place { rule, .. }) = places.first() else {
            return Flight { places: VecDeque::new(), bulk: old };
        };
        let nodes: Vec<BlockRef> = places.iter().map(|place| place.at).collect();
        let check = |i: usize, block: &Block| places[i].rule.check(block);
        let bulk = self.store.read_bulk(&nodes, rule.kind(), rule.level(), &check, old);
        Flight { places: places.into(), bulk }
    }

    fn give_back(&self, bulk: Bulk) {
        if bulk.is_reusable() {
            self.spent.lock().unwrap_or_else(PoisonError::into_inner).push(bulk);
        }
    }
}

/// A walk that is driven leaf by leaf.
pub trait Sweep {
    /// Shows `visitor` the next leaf, or a node that cannot be read, and whatever nodes above leaves are read
    /// for it or ahead. `false` if there was none.
    fn step(&mut self, visitor: &mut dyn Visitor) -> bool;
}

/// A reference to a node that is to be read.
struct Place<R> {
    at: BlockRef,
    rule: R,
    parent: Option<MetaBlock>,
}

/// Nodes that were read, those still to be visited.
struct Flight<R> {
    places: VecDeque<Place<R>>,
    bulk: Bulk,
}

impl<R: Rule> Flight<R> {
    /// Shows the next node to `visitor`; what it says, and the children of a node that it goes on below.
    fn visit(&mut self, visitor: &mut dyn Visitor) -> Option<(Descend, Vec<Place<R>>)> {
        let place = self.places.pop_front()?;
        let node = self.bulk.next_node()?;
        let Place { at, rule, parent } = place;
        let level = rule.level();
        let block = match node {
            Ok(block) => block,
            Err(error) => {
                let verdict = visitor.node(Visit { at, level, parent, node: Err(error) });
                return Some((verdict, Vec::new()));
            }
        };
        let verdict = visitor.node(Visit { at, level, parent, node: Ok(block) });
        if verdict != Descend::Yes || level == 0 {
            return Some((verdict, Vec::new()));
        }
        let mut children = rule.children(block);
        children.retain(|(child, rule)| visitor.reference(*child, rule.level(), Some(at.block)));
        let parent = Some(at.block);
        Some((verdict, children.into_iter().map(|(at, rule)| Place { at, rule, parent }).collect()))
    }
}

/// The sweep of a tree whose nodes are valid by `R`.
pub(crate) struct Levels<R> {
    reader: Reader,
    window: Window,
    /// Why there is no root.
    failed: Option<(BlockRef, u8, MetaError)>,
    /// The root, before its reference was shown.
    top: Option<Place<R>>,
    /// By level, from left to right. Everything on a lower level stands left of everything on a higher one.
    referred: Vec<VecDeque<Place<R>>>,
    reading: VecDeque<Receiver<Flight<R>>>,
    current: Flight<R>,
    /// Memory for nodes above the leaves.
    spare: Bulk,
}

impl<R: Rule + Send + 'static> Levels<R> {
    /// The tree whose top is `top`, or of which it is said why it has none.
    pub(crate) fn new(
        reader: &Reader,
        window: Window,
        root: &Root,
        top: Result<Option<(BlockRef, R)>, MetaError>,
    ) -> Self {
        let (top, failed) = match (top, root.node) {
            (Ok(top), _) => (top.map(|(at, rule)| Place { at, rule, parent: None }), None),
            (Err(error), Some(at)) => (None, Some((at, root.level, error))),
            (Err(_), None) => (None, None),
        };
        Self {
            reader: reader.clone(),
            window,
            failed,
            top,
            referred: Vec::new(),
            reading: VecDeque::new(),
            current: Flight { places: VecDeque::new(), bulk: Bulk::default() },
            spare: Bulk::default(),
        }
    }

    fn begin(&mut self, visitor: &mut dyn Visitor) {
        let Some(top) = self.top.take() else { return };
        let level = top.rule.level();
        if visitor.reference(top.at, level, None) {
            self.referred.resize_with(usize::from(level) + 1, VecDeque::new);
            self.referred[usize::from(level)].push_back(top);
        }
    }

    fn stop(&mut self) {
        self.referred.clear();
        self.reading.clear();
        self.current.places.clear();
    }

    /// Reads the next few nodes above the leaves; `false` if there are none.
    fn descend(&mut self, visitor: &mut dyn Visitor) -> bool {
        let Some(level) = (1..self.referred.len()).find(|level| !self.referred[*level].is_empty()) else {
            return false;
        };
        let places = &mut self.referred[level];
        let count = places.len().min(if level == 1 { PARENTS } else { ANCESTORS });
        let places = places.drain(..count).collect();
        let mut flight = self.reader.read(places, std::mem::take(&mut self.spare));
        while let Some((verdict, children)) = flight.visit(visitor) {
            if verdict == Descend::Stop {
                self.stop();
                return false;
            }
            self.referred[level - 1].extend(children);
        }
        self.spare = flight.bulk;
        true
    }

    /// Begins to read the next window; `false` if there is none.
    fn launch(&mut self, visitor: &mut dyn Visitor) -> bool {
        while self.referred.first().is_some_and(|leaves| leaves.len() < self.window.nodes)
            && self.descend(visitor)
        {}
        let Some(leaves) = self.referred.first_mut() else { return false };
        let places: Vec<Place<R>> = leaves.drain(..leaves.len().min(self.window.nodes)).collect();
        if places.is_empty() {
            return false;
        }
        let (sender, receiver) = sync_channel(1);
        let reader = self.reader.clone();
        // Nobody waits for it any more if the sweep was stopped.
        (self.reader.spawn)(Box::new(move || _ = sender.send(reader.window(places))));
        self.reading.push_back(receiver);
        true
    }
}

impl<R: Rule + Send + 'static> Sweep for Levels<R> {
    fn step(&mut self, visitor: &mut dyn Visitor) -> bool {
        if let Some((at, level, error)) = self.failed.take() {
            visitor.node(Visit { at, level, parent: None, node: Err(error) });
            return true;
        }
        self.begin(visitor);
        loop {
            if let Some((verdict, _)) = self.current.visit(visitor) {
                if verdict == Descend::Stop {
                    self.stop();
                }
                return true;
            }
            while self.reading.len() < self.window.windows.max(1) && self.launch(visitor) {}
            let Some(reading) = self.reading.pop_front() else { return false };
            let next = reading.recv().expect("a job that was handed over is done, and sends what it read");
            self.reader.give_back(std::mem::replace(&mut self.current, next).bulk);
        }
    }
}
