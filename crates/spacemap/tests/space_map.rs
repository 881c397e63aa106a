//! The metadata space map against a naive one: a vector of counts and a vector of holds.
//!
//! Contents: random operations against the model; pages going to another map and back; misuse.

use dedup_spacemap::page::{COUNTS_PER_PAGE, MAX_COUNT, PAGE_BYTES};
use dedup_spacemap::{LoadError, SpaceMap};
use proptest::prelude::*;

/// What a block may have done to it; `u64`s choose a block among those that the operation is legal for.
#[derive(Clone, Debug)]
enum Step {
    Allocate(u8),
    Release(u64),
    FreeHeld(u64),
    Hold(u64),
    Unhold(u64),
    SetCount(u64, u8),
    ClearDirty,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..100u8).prop_map(Step::Allocate),
        4 => any::<u64>().prop_map(Step::Release),
        4 => any::<u64>().prop_map(Step::FreeHeld),
        2 => any::<u64>().prop_map(Step::Hold),
        4 => any::<u64>().prop_map(Step::Unhold),
        2 => (any::<u64>(), 0..=MAX_COUNT).prop_map(|(block, count)| Step::SetCount(block, count)),
        1 => Just(Step::ClearDirty),
    ]
}

/// Sizes around group and page borders, small enough that a run fills and wraps.
fn any_size() -> impl Strategy<Value = u64> {
    let page = COUNTS_PER_PAGE as u64;
    prop_oneof![0..200u64, page - 70..page + 70, 2 * page - 1..2 * page + 2]
}

struct Model {
    counts: Vec<u8>,
    held: Vec<bool>,
    cursor: usize,
}

impl Model {
    fn allocatable(&self, block: usize) -> bool {
        self.counts[block] == 0 && !self.held[block]
    }

    fn allocate(&mut self) -> Option<u64> {
        let block = (self.cursor..self.counts.len()).chain(0..self.cursor).find(|b| self.allocatable(*b))?;
        self.counts[block] = 1;
        self.cursor = block + 1;
        Some(block as u64)
    }

    /// Some block of those that have this state.
    fn choose(&self, choice: u64, count: u8, held: bool) -> Option<u64> {
        let at: Vec<_> =
            (0..self.counts.len()).filter(|b| (self.counts[*b], self.held[*b]) == (count, held)).collect();
        (!at.is_empty()).then(|| at[(choice % at.len() as u64) as usize] as u64)
    }

    fn apply(&mut self, map: &mut SpaceMap, step: Step) -> Result<(), TestCaseError> {
        let (choice, count, held) = match step {
            Step::Release(choice) | Step::FreeHeld(choice) => (choice, 1, false),
            Step::Hold(choice) => (choice, 0, false),
            Step::Unhold(choice) => (choice, 0, true),
            Step::SetCount(choice, count) if !self.counts.is_empty() => {
                let block = choice % self.counts.len() as u64;
                map.set_count(block, count);
                self.counts[block as usize] = count;
                return Ok(());
            }
            Step::SetCount(..) => return Ok(()),
            Step::Allocate(n) => {
                for _ in 0..n {
                    prop_assert_eq!(map.allocate(), self.allocate());
                }
                return Ok(());
            }
            Step::ClearDirty => {
                map.clear_dirty();
                return Ok(());
            }
        };
        let Some(block) = self.choose(choice, count, held) else { return Ok(()) };
        let at = block as usize;
        match step {
            Step::Release(_) => map.release(block),
            Step::FreeHeld(_) => map.free_held(block),
            Step::Hold(_) => map.hold(block),
            _ => map.unhold(block),
        }
        self.counts[at] = 0;
        self.held[at] = matches!(step, Step::FreeHeld(_) | Step::Hold(_));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_answer_is_that_of_the_naive_map(
        size in any_size(), full in any::<bool>(), steps in prop::collection::vec(any_step(), 1..60),
    ) {
        let mut map = SpaceMap::new(size);
        let mut model = Model { counts: vec![0; size as usize], held: vec![false; size as usize], cursor: 0 };
        if full {
            // Leaves little free, so that searches cross pages and go round.
            for block in (0..size).filter(|b| b % 97 != 5) {
                map.set_count(block, 1);
                model.counts[block as usize] = 1;
            }
        }
        for step in steps {
            model.apply(&mut map, step)?;
            let in_use = model.counts.iter().filter(|count| **count > 0).count();
            let allocatable = (0..size as usize).filter(|block| model.allocatable(*block)).count();
            prop_assert_eq!((map.in_use(), map.allocatable()), (in_use as u64, allocatable as u64));
        }
        for block in 0..size {
            prop_assert_eq!(map.count(block), model.counts[block as usize]);
            prop_assert_eq!(map.is_held(block), model.held[block as usize]);
        }
    }

    #[test]
    fn the_dirty_pages_are_those_that_changed_and_carry_the_map_to_another(
        size in any_size(), before in prop::collection::vec(any_step(), 0..20), after in prop::collection::vec(any_step(), 0..20),
    ) {
        let mut map = SpaceMap::new(size);
        let mut model = Model { counts: vec![0; size as usize], held: vec![false; size as usize], cursor: 0 };
        let mut copy = SpaceMap::new(size);
        for steps in [before, after] {
            map.clear_dirty();
            let old: Vec<Vec<u8>> = (0..map.page_count()).map(|i| map.page(i).to_vec()).collect();
            for step in steps.into_iter().filter(|step| !matches!(step, Step::ClearDirty)) {
                model.apply(&mut map, step)?;
            }
            let dirty: Vec<usize> = map.dirty_pages().collect();
            for (i, old) in old.iter().enumerate() {
                prop_assert!(dirty.contains(&i) || map.page(i) == old, "page {} changed and is not dirty", i);
            }
            for i in dirty {
                prop_assert_eq!(copy.load_page(i, map.page(i)), Ok(()));
            }
        }
        prop_assert!((0..size).all(|block| copy.count(block) == map.count(block)));
        prop_assert_eq!((copy.in_use(), copy.allocatable()), (map.in_use(), size - map.in_use()));
        prop_assert_eq!(copy.dirty_pages().count(), 0);
    }
}

#[test]
fn blocks_come_in_ascending_order_across_a_page_border() {
    let mut map = SpaceMap::new(3 * COUNTS_PER_PAGE as u64);
    assert!((0..map.len()).all(|block| map.allocate() == Some(block)));
    assert_eq!(map.allocate(), None);
}

#[test]
fn a_page_with_a_block_past_the_end_is_refused_and_changes_nothing() {
    let mut map = SpaceMap::new(10);
    let mut page = vec![0; PAGE_BYTES];
    page[0] = 0b01;
    page[2] = 0b1100_0000;
    let expected = LoadError::PastEnd { page: 0, block: 11, count: 3, blocks: 10 };
    assert_eq!(map.load_page(0, &page), Err(expected));
    assert_eq!((map.in_use(), map.allocatable()), (0, 10));
    let expected = LoadError::Length { page: 0, expected: PAGE_BYTES, found: 7 };
    assert_eq!(map.load_page(0, &[0; 7]), Err(expected));
}

#[test]
fn a_loaded_page_is_not_dirty() {
    let mut map = SpaceMap::new(10);
    map.allocate();
    assert_eq!(map.dirty_pages().count(), 1);
    map.load_page(0, &[0; PAGE_BYTES]).unwrap();
    assert_eq!(map.dirty_pages().count(), 0);
}

#[test]
fn a_loaded_page_keeps_the_holds_on_its_blocks() {
    let mut map = SpaceMap::new(10);
    map.hold(3);
    map.load_page(0, &vec![0; PAGE_BYTES]).unwrap();
    assert_eq!((map.is_held(3), map.allocatable()), (true, 9));
    assert!((0..9).all(|_| map.allocate().is_some_and(|block| block != 3)));
    assert_eq!(map.allocate(), None);
}

type Misuse = fn(&mut SpaceMap);

/// Runs `misuse` on a map of 8 blocks with block 0 used, 1 held, 2 of count 2, and gives the assertion's
/// message.
fn message(misuse: Misuse) -> String {
    let panic = std::panic::catch_unwind(|| {
        let mut map = SpaceMap::new(8);
        map.allocate();
        map.hold(1);
        map.set_count(2, 2);
        misuse(&mut map);
    });
    *panic.expect_err("misuse went through").downcast::<String>().expect("a formatted message")
}

#[test]
fn misuse_panics_and_says_what_was_expected_and_found() {
    let cases: [(Misuse, &str); 8] = [
        (|m| m.release(3), "release of block 3: expected count 1, held false; found count 0, held false"),
        (|m| m.release(2), "release of block 2: expected count 1, held false; found count 2, held false"),
        (|m| m.free_held(1), "free_held of block 1: expected count 1, held false; found count 0, held true"),
        (|m| m.hold(0), "hold of block 0: expected count 0, held false; found count 1, held false"),
        (|m| m.hold(1), "hold of block 1: expected count 0, held false; found count 0, held true"),
        (|m| m.unhold(3), "unhold of block 3: expected count 0, held true; found count 0, held false"),
        (|m| m.release(8), "block 8 of a device of 8 blocks"),
        (|m| m.set_count(3, 4), "block 3 set to count 4, at most 3 fits"),
    ];
    for (misuse, expected) in cases {
        assert_eq!(message(misuse), expected);
    }
}

#[test]
fn a_count_past_the_end_is_named_on_the_page_that_has_it() {
    let blocks = COUNTS_PER_PAGE as u64 + 10;
    let mut map = SpaceMap::new(blocks);
    let mut page = [0; PAGE_BYTES];
    page[3] = 2;
    let expected = LoadError::PastEnd { page: 1, block: COUNTS_PER_PAGE as u64 + 12, count: 2, blocks };
    assert_eq!(map.load_page(1, &page), Err(expected));
    assert_eq!(map.load_page(0, &page), Ok(()), "there it is within the device");
    assert_eq!((map.count(12), map.in_use()), (2, 1));
}

#[test]
fn what_was_written_is_not_written_again() {
    let mut map = SpaceMap::new(2 * COUNTS_PER_PAGE as u64);
    map.set_count(COUNTS_PER_PAGE as u64, 1);
    assert!(map.dirty_pages().any(|page| page == 1));
    map.clear_dirty();
    assert_eq!(map.dirty_pages().count(), 0);
    map.set_count(0, 1);
    assert_eq!(map.dirty_pages().collect::<Vec<_>>(), [0]);
}
