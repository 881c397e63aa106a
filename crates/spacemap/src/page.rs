//! The reference count page: 16256 counts of 2 bits in 4064 bytes, the payload of one metadata block.
//!
//! ```text
//!  byte      0                     1                            4063
//!          | c3 | c2 | c1 | c0 | | c7 | c6 | c5 | c4 |  ...   | c16255 ... c16252 |
//!  bits     7  6 5  4 3  2 1  0
//! ```
//!
//! A count of 0 is a free block, 1 and 2 are exact, and [`MAX_COUNT`] says "3 or more": the exact number is
//! in the overflow tree, which is not this crate's business.
//!
//! Read as little-endian 64-bit words a page is 508 words of 32 counts. Whole words are worked on at a time:
//! a page is counted or searched in well under a microsecond.

/// Bytes of a page: a metadata block (4096) less its header (32).
pub const PAGE_BYTES: usize = 4064;
/// Counts in a page, four to a byte.
pub const COUNTS_PER_PAGE: usize = PAGE_BYTES * 4;
/// The highest count that 2 bits hold; it means "this many or more".
pub const MAX_COUNT: u8 = 3;

/// 64-count groups in a page. That it comes out even is what lets a page be a whole number of bitmap words.
pub(crate) const GROUPS_PER_PAGE: usize = COUNTS_PER_PAGE / 64;
const _: () = assert!(GROUPS_PER_PAGE * 64 == COUNTS_PER_PAGE);

/// The low bit of each of a word's 32 counts.
const LOW_BITS: u64 = 0x5555_5555_5555_5555;

/// Count number `i`, 0 to [`MAX_COUNT`].
///
/// # Panics
/// If `i` is not below [`COUNTS_PER_PAGE`], or `page` is shorter than a page.
pub fn get(page: &[u8], i: usize) -> u8 {
    assert!(i < COUNTS_PER_PAGE, "count {i} of a page of {COUNTS_PER_PAGE}");
    (page[i / 4] >> (i % 4 * 2)) & MAX_COUNT
}

/// Sets count number `i`.
///
/// # Panics
/// If `i` is not below [`COUNTS_PER_PAGE`], `count` is above [`MAX_COUNT`], or `page` is shorter than a page.
pub fn set(page: &mut [u8], i: usize, count: u8) {
    assert!(i < COUNTS_PER_PAGE, "count {i} of a page of {COUNTS_PER_PAGE}");
    assert!(count <= MAX_COUNT, "count {i} set to {count}, at most {MAX_COUNT} fits");
    let shift = i % 4 * 2;
    let byte = &mut page[i / 4];
    *byte = *byte & !(MAX_COUNT << shift) | count << shift;
}

/// How many counts are not zero.
///
/// # Panics
/// If `page` is not [`PAGE_BYTES`] long.
pub fn used(page: &[u8]) -> u64 {
    words(page).iter().map(|word| u64::from(used_bits(*word).count_ones())).sum()
}

/// The first count at or after `from` that is zero. `None` if there is none, also when `from` is past the
/// end.
///
/// # Panics
/// If `page` is not [`PAGE_BYTES`] long.
pub fn next_free(page: &[u8], from: usize) -> Option<usize> {
    let first = from / 64;
    (first..GROUPS_PER_PAGE).find_map(|group| {
        let mut free = free_group(page, group);
        if group == first {
            free &= u64::MAX << (from % 64);
        }
        (free != 0).then(|| group * 64 + free.trailing_zeros() as usize)
    })
}

/// The counts that are not zero, as `(index, count)`, ascending.
///
/// # Panics
/// If `page` is not [`PAGE_BYTES`] long.
pub fn iter(page: &[u8]) -> impl Iterator<Item = (usize, u8)> + '_ {
    words(page).iter().enumerate().flat_map(move |(at, word)| {
        bits(used_bits(*word)).map(move |bit| {
            let i = at * 32 + bit / 2;
            (i, get(page, i))
        })
    })
}

/// The free counts among `64 * group ..` as a bitmap: bit `n` is set if count `64 * group + n` is zero.
pub(crate) fn free_group(page: &[u8], group: usize) -> u64 {
    let words = words(page);
    let low = pack_low_bits(used_bits(words[group * 2]));
    let high = pack_low_bits(used_bits(words[group * 2 + 1]));
    !(high << 32 | low)
}

/// The positions of the bits that are set, ascending.
pub(crate) fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

fn words(page: &[u8]) -> &[[u8; 8]] {
    assert_eq!(page.len(), PAGE_BYTES, "length of a reference count page");
    page.as_chunks::<8>().0
}

/// The low bit of each count that is not zero.
fn used_bits(word: [u8; 8]) -> u64 {
    let word = u64::from_le_bytes(word);
    (word | word >> 1) & LOW_BITS
}

/// Moves bits 0, 2, 4, ... to 0, 1, 2, ...; the other bits must be clear. (The last steps of a Morton
/// decoding, see Warren, *Hacker's Delight*, 7-2, "compress".)
fn pack_low_bits(mut word: u64) -> u64 {
    word = (word | word >> 1) & 0x3333_3333_3333_3333;
    word = (word | word >> 2) & 0x0f0f_0f0f_0f0f_0f0f;
    word = (word | word >> 4) & 0x00ff_00ff_00ff_00ff;
    word = (word | word >> 8) & 0x0000_ffff_0000_ffff;
    (word | word >> 16) & 0x0000_0000_ffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A page whose bytes are mostly 0x00 or 0xff, so that long free and long used runs both occur.
    fn any_page() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![4 => Just(0u8), 4 => Just(0xffu8), 1 => any::<u8>()];
        prop::collection::vec((byte, 1usize..600), 1..60).prop_map(|runs| {
            let runs = runs.into_iter().cycle().flat_map(|(byte, len)| std::iter::repeat_n(byte, len));
            runs.take(PAGE_BYTES).collect()
        })
    }

    proptest! {
        #[test]
        fn a_set_count_is_got_back_and_its_neighbours_keep_theirs(
            mut page in any_page(), i in 0..COUNTS_PER_PAGE, count in 0..=MAX_COUNT,
        ) {
            let mut expected: Vec<u8> = (0..COUNTS_PER_PAGE).map(|i| get(&page, i)).collect();
            expected[i] = count;
            set(&mut page, i, count);
            let found: Vec<u8> = (0..COUNTS_PER_PAGE).map(|i| get(&page, i)).collect();
            prop_assert!(found == expected);
        }

        #[test]
        fn used_and_iter_agree_with_looking_at_each_count(page in any_page()) {
            let expected: Vec<_> =
                (0..COUNTS_PER_PAGE).map(|i| (i, get(&page, i))).filter(|(_, count)| *count > 0).collect();
            prop_assert_eq!(used(&page), expected.len() as u64);
            prop_assert!(iter(&page).eq(expected));
        }

        #[test]
        fn next_free_is_the_first_zero_at_or_after_the_start(page in any_page(), from in 0..COUNTS_PER_PAGE + 100) {
            let expected = (from..COUNTS_PER_PAGE).find(|i| get(&page, *i) == 0);
            prop_assert_eq!(next_free(&page, from), expected);
        }
    }

    #[test]
    fn a_count_stands_in_the_bits_that_the_format_names() {
        let mut page = vec![0; PAGE_BYTES];
        set(&mut page, 5, 2);
        set(&mut page, COUNTS_PER_PAGE - 1, 1);
        assert_eq!((page[1], page[PAGE_BYTES - 1]), (0b0000_1000, 0b0100_0000));
    }

    #[test]
    #[should_panic(expected = "count 7 set to 4, at most 3 fits")]
    fn a_count_that_does_not_fit_is_refused() {
        set(&mut vec![0; PAGE_BYTES], 7, 4);
    }
}
