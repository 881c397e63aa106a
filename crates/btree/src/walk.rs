//! Walking every node of a tree, damaged or not: for the checker, and to recompute which metadata blocks are
//! in use.
//!
//! The walk goes depth first, parents before children, left to right. The visitor is asked twice about a
//! node: before it is read, when only the reference is known, and afterwards. So one that only counts
//! references reads no leaves, and one that has met a block before can leave it alone; what was met before is
//! the visitor's own knowledge.
//!
//! **Bounds:** recursion is at most as deep as the root's level. A node that is reached a second time through
//! a damaged pointer fails its place's check, so even without help from the visitor a walk reads each
//! reference of the nodes that are in their right places, and nothing else.

use crate::rule::{self, Rule, damaged};
use dedup_meta::{Block, BlockRef, MetaBlock, MetaError, NodeSource, Root};

/// What a tree's walk is for.
pub trait Visitor {
    /// A reference to a node: whether to read it. `parent` is `None` for the root.
    fn reference(&mut self, _at: BlockRef, _level: u8, _parent: Option<MetaBlock>) -> bool {
        true
    }

    /// A node that was read, or that should have been.
    fn node(&mut self, visit: Visit<'_>) -> Descend;
}

/// A node on a walk.
#[derive(Debug)]
pub struct Visit<'a> {
    /// Where it is, and which version.
    pub at: BlockRef,
    /// The level it has or should have.
    pub level: u8,
    /// The node that refers to it, `None` for the root.
    pub parent: Option<MetaBlock>,
    /// The node, valid in its place, or what is wrong with it.
    pub node: Result<&'a Block, MetaError>,
}

/// Whether a walk goes on below a node. Nothing is below a leaf or a damaged node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descend {
    /// Visit the children.
    Yes,
    /// Go on with the next sibling.
    No,
    /// End the walk.
    Stop,
}

/// Walks the tree whose top is `top`, or reports why it has none.
pub(crate) fn walk<R: Rule, S: NodeSource + ?Sized>(
    source: &S,
    root: &Root,
    top: Result<Option<(BlockRef, R)>, MetaError>,
    visitor: &mut dyn Visitor,
) {
    match (top, root.node) {
        (Ok(Some((at, rule))), _) => {
            if visitor.reference(at, rule.level(), None) {
                below(source, at, &rule, None, visitor);
            }
        }
        (Err(error), Some(at)) => {
            visitor.node(Visit { at, level: root.level, parent: None, node: Err(error) });
        }
        (Ok(None), _) | (Err(_), None) => {}
    }
}

/// Visits the node at `at` and what is below it.
fn below<R: Rule, S: NodeSource + ?Sized>(
    source: &S,
    at: BlockRef,
    rule: &R,
    parent: Option<MetaBlock>,
    visitor: &mut dyn Visitor,
) -> Descend {
    // The whole check, also for a cached node: what was checked when it was cached may have been less, as a
    // prefetch knows no place.
    let read = rule::read(source, at, rule)
        .and_then(|block| rule.check(&block).map(|()| block).map_err(|fault| damaged(at.block, rule, fault)));
    let block = match read {
        Ok(block) => block,
        Err(error) => return visitor.node(Visit { at, level: rule.level(), parent, node: Err(error) }),
    };
    let verdict = visitor.node(Visit { at, level: rule.level(), parent, node: Ok(&block) });
    if verdict != Descend::Yes {
        return verdict;
    }
    let mut children = rule.children(&block);
    children.retain(|(child, rule)| visitor.reference(*child, rule.level(), Some(at.block)));
    if let Some((_, rule)) = children.first() {
        let nodes: Vec<_> = children.iter().map(|(child, _)| *child).collect();
        rule::prefetch(source, &nodes, rule);
    }
    for (child, rule) in children {
        if below(source, child, &rule, Some(at.block), visitor) == Descend::Stop {
            return Descend::Stop;
        }
    }
    Descend::Yes
}

/// A visitor that hands on leaves, and errors of nodes of any level.
pub(crate) struct Leaves<F>(pub(crate) F);

impl<F: FnMut(Result<&Block, MetaError>)> Visitor for Leaves<F> {
    fn node(&mut self, visit: Visit<'_>) -> Descend {
        match visit.node {
            Ok(block) if visit.level > 0 => debug_assert_eq!(block.header.level, visit.level),
            leaf => (self.0)(leaf),
        }
        Descend::Yes
    }
}
