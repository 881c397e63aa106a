//! The data block policy against naive models: a set of free blocks, and a list of regions looked at one by
//! one.

use dedup_spacemap::page::{self, PAGE_BYTES};
use dedup_spacemap::{REGION_BLOCKS, REGIONS_PER_WINDOW, Regions};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

fn flatten(runs: &[std::ops::Range<u64>]) -> Vec<u64> {
    runs.iter().cloned().flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn take_gives_the_lowest_free_blocks_of_page_and_overrides_once_each(
        region in 0..3u64,
        blocks in prop_oneof![2 * REGION_BLOCKS + 1..3 * REGION_BLOCKS, Just(3 * REGION_BLOCKS)],
        bytes in prop::option::of(prop::collection::vec(any::<u8>(), 1..300)),
        overrides in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..200),
        takes in prop::collection::vec((0..4000u64, any::<prop::sample::Index>()), 1..20),
    ) {
        let range = region * REGION_BLOCKS..blocks.min((region + 1) * REGION_BLOCKS);
        let len = (range.end - range.start) as usize;
        let page: Option<Vec<u8>> = bytes.map(|bytes| bytes.into_iter().cycle().take(PAGE_BYTES).collect());
        let overrides: Vec<_> =
            overrides.into_iter().map(|(at, busy)| (range.start + at.index(len) as u64, busy)).collect();
        let mut free: BTreeSet<u64> = range
            .clone()
            .filter(|pbn| page.as_ref().is_none_or(|page| page::get(page, (pbn - range.start) as usize) == 0))
            .collect();
        for (pbn, busy) in &overrides {
            if *busy { free.remove(pbn); } else { free.insert(*pbn); }
        }
        free.remove(&0);

        let mut regions = Regions::new(blocks, 0);
        regions.open(region, page.as_deref(), overrides);
        for (n, back) in takes {
            prop_assert_eq!(regions.available(), free.len() as u64);
            let runs = regions.take(n);
            let taken = flatten(&runs);
            let expected: Vec<u64> = free.iter().copied().take(n as usize).collect();
            prop_assert_eq!(&taken, &expected);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start), "runs touch: {:?}", runs);
            for pbn in &taken {
                free.remove(pbn);
            }
            if !taken.is_empty() {
                let pbn = taken[back.index(taken.len())];
                regions.give_back(pbn);
                free.insert(pbn);
            }
        }
    }

    #[test]
    fn the_next_region_is_the_first_below_average_else_the_first_not_full(
        counts in prop::collection::vec((0..6u64, 1..200usize), 1..12),
        cursor in any::<prop::sample::Index>(),
        opened in any::<bool>(),
        average in 0..6u64,
    ) {
        // Sixths of a region, in runs, so that whole windows are empty or full.
        let used: Vec<u64> = counts
            .into_iter()
            .flat_map(|(sixths, n)| std::iter::repeat_n(if sixths == 5 { REGION_BLOCKS } else { sixths * 100 }, n))
            .collect();
        let n = used.len() as u64;
        let cursor = cursor.index(used.len()) as u64;
        let mut regions = Regions::new(n * REGION_BLOCKS, cursor);
        if opened {
            regions.open(cursor, None, []);
        }
        let start = cursor + u64::from(opened);
        let turn = || (start..start + n).map(|region| region % n);
        let capacity = |region: u64| REGION_BLOCKS - u64::from(region == 0);
        let not_full = |region: &u64| used[*region as usize] < capacity(*region);
        let expected = turn()
            .filter(not_full)
            .find(|region| used[*region as usize] <= average * 100)
            .or_else(|| turn().find(not_full));

        let asked = RefCell::new(BTreeMap::new());
        let window = |w: u64| {
            *asked.borrow_mut().entry(w).or_insert(0) += 1;
            let range = (w * REGIONS_PER_WINDOW) as usize..(((w + 1) * REGIONS_PER_WINDOW) as usize).min(used.len());
            let used = used[range].to_vec();
            Ok::<_, Infallible>(used.iter().any(|used| *used > 0).then_some(used))
        };
        prop_assert_eq!(regions.next_region(window, average * 100), Ok(expected));
        prop_assert!(asked.borrow().values().all(|times| *times == 1), "windows asked for: {:?}", asked.borrow());
    }

    #[test]
    fn allocation_goes_on_until_every_free_block_is_given_out_then_says_none(
        last in 1..REGION_BLOCKS, busy in prop::collection::vec(0..3u8, 1..5), lies in any::<bool>(),
    ) {
        // Each region: empty, every second block busy, or full. If the used counts lie, all look empty.
        let n = busy.len() as u64;
        let blocks = (n - 1) * REGION_BLOCKS + last;
        let is_busy = |pbn: u64| match busy[(pbn / REGION_BLOCKS) as usize] {
            0 => false,
            1 => pbn % 2 == 1,
            _ => true,
        };
        let range = |region: u64| region * REGION_BLOCKS..blocks.min((region + 1) * REGION_BLOCKS);
        let used: Vec<u64> = (0..n).map(|r| range(r).filter(|pbn| !lies && is_busy(*pbn)).count() as u64).collect();
        let mut regions = Regions::new(blocks, 0);
        let mut taken = BTreeSet::new();
        let mut opened = 0;
        while let Some(region) = regions.next_region(|_| Ok::<_, Infallible>(Some(used.clone())), 1000).unwrap() {
            opened += 1;
            prop_assert!(opened <= 2 * n, "regions opened for ever");
            let overrides: Vec<_> =
                range(region).filter(|pbn| is_busy(*pbn) || taken.contains(pbn)).map(|pbn| (pbn, true)).collect();
            regions.open(region, None, overrides);
            loop {
                let some = flatten(&regions.take(5000));
                if some.is_empty() {
                    break;
                }
                for pbn in some {
                    prop_assert!(taken.insert(pbn), "block {} given out twice", pbn);
                }
            }
        }
        let expected: BTreeSet<u64> = (1..blocks).filter(|pbn| !is_busy(*pbn)).collect();
        prop_assert!(taken == expected);
    }
}

fn all_empty(_: u64) -> Result<Option<Vec<u64>>, Infallible> {
    Ok(None)
}

#[test]
fn block_zero_is_not_given_out_even_if_an_override_calls_it_free() {
    let mut regions = Regions::new(100, 0);
    regions.open(0, None, [(0, false)]);
    assert_eq!(regions.take(1000), vec![1..100]);
    assert_eq!(regions.capacity(0), 99);
}

#[test]
fn a_device_of_the_label_alone_or_of_nothing_has_no_region_to_open() {
    for blocks in [0, 1] {
        let mut regions = Regions::new(blocks, 0);
        assert_eq!(regions.next_region(all_empty, 0), Ok(None));
        assert_eq!(regions.take(1), vec![]);
    }
}

#[test]
fn a_restart_goes_on_in_the_region_that_was_open() {
    let mut regions = Regions::new(5 * REGION_BLOCKS, 0);
    regions.open(3, None, []);
    let mut restarted = Regions::new(5 * REGION_BLOCKS, regions.cursor());
    assert_eq!(restarted.next_region(all_empty, 0), Ok(Some(3)));
    assert_eq!(Regions::new(2 * REGION_BLOCKS, regions.cursor()).cursor(), 0, "shrunk");
}

#[test]
fn a_barren_region_is_passed_over_until_a_search_finds_nothing_or_a_block_is_given_back() {
    let mut regions = Regions::new(3 * REGION_BLOCKS, 0);
    let busy = |region: u64| (region * REGION_BLOCKS..(region + 1) * REGION_BLOCKS).map(|pbn| (pbn, true));
    for region in [0, 1] {
        assert_eq!(regions.next_region(all_empty, 0), Ok(Some(region)));
        regions.open(region, None, busy(region));
    }
    regions.open(2, None, []);
    assert_eq!(regions.next_region(all_empty, 0), Ok(Some(2)), "0 and 1 are barren");
    regions.give_back(REGION_BLOCKS + 7);
    assert_eq!(regions.next_region(all_empty, 0), Ok(Some(1)));
    regions.open(1, None, busy(1));
    regions.open(2, None, busy(2));
    assert_eq!(regions.next_region(all_empty, 0), Ok(None));
    assert_eq!(regions.next_region(all_empty, 0), Ok(Some(0)), "after a reclaim, all are looked at again");
}

/// Freed blocks were found only once a checkpoint had told the tree.
#[test]
fn a_region_that_the_tree_calls_full_is_opened_for_a_block_that_was_given_back() {
    let mut regions = Regions::new(3 * REGION_BLOCKS, 0);
    let full = |_| Ok::<_, ()>(Some(vec![REGION_BLOCKS; 3]));
    assert_eq!(regions.next_region(full, REGION_BLOCKS), Ok(None));
    regions.give_back(2 * REGION_BLOCKS + 9);
    assert_eq!(regions.next_region(full, REGION_BLOCKS), Ok(Some(2)));
    let all = (2 * REGION_BLOCKS..3 * REGION_BLOCKS).map(|pbn| (pbn, pbn != 2 * REGION_BLOCKS + 9));
    regions.open(2, None, all);
    assert_eq!(regions.take(5), vec![2 * REGION_BLOCKS + 9..2 * REGION_BLOCKS + 10]);
    assert_eq!(regions.next_region(full, REGION_BLOCKS), Ok(None), "and not again");
}

#[test]
fn an_error_of_the_tree_is_handed_up() {
    let mut regions = Regions::new(REGION_BLOCKS, 0);
    assert_eq!(regions.next_region(|_| Err("damaged"), 0), Err("damaged"));
}

#[test]
#[should_panic(expected = "block 5 of open region 0 given back twice")]
fn a_block_given_back_twice_is_refused() {
    let mut regions = Regions::new(100, 0);
    regions.open(0, None, []);
    regions.take(10);
    regions.give_back(5);
    regions.give_back(5);
}
