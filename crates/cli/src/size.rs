//! Sizes as people write and read them.
//!
//! `K`, `M`, `G`, `T`, `P` and `E` are powers of 1024, as `qemu-img` and `truncate` take them; `KiB` says the
//! same. `KB` is 1000 to one tool and 1024 to another, so it is refused. A fraction is taken if it comes to
//! whole bytes: `1.5G`.

use std::fmt;
use std::str::FromStr;

/// Suffix letters; each is 1024 times the one before, the first 1024 bytes.
const UNITS: [char; 6] = ['K', 'M', 'G', 'T', 'P', 'E'];
/// Digits allowed after the point; a byte is less than 10^-18 of no size that fits, and the arithmetic stays
/// below 2^128.
const FRACTION_DIGITS_MAX: usize = 18;

/// A number of bytes on a command line. Prints as it would be typed, exactly: `10G`, `1536K`, `4097`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// The text does not begin with a number.
    #[error("expected a size such as 4096, 64K or 10G, found {found:?}")]
    Number {
        /// The whole text.
        found: String,
    },
    /// What follows the number is no unit.
    #[error(
        "expected one of the units K, M, G, T, P, E (powers of 1024; KiB, MiB, ... say the same), found {found:?}"
    )]
    Unit {
        /// The text after the number.
        found: String,
    },
    /// The fraction does not come to whole bytes.
    #[error("expected a whole number of bytes, found {found:?}")]
    Fraction {
        /// The whole text.
        found: String,
    },
    /// The size does not fit 64 bits.
    #[error("expected at most {} bytes (just under 16E), found {found:?}", u64::MAX)]
    Overflow {
        /// The whole text.
        found: String,
    },
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let found = || text.to_owned();
        let trimmed = text.trim();
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return Err(SizeError::Number { found: found() });
        }
        let unit = unit(suffix.trim_start())?;
        if fraction.len() > FRACTION_DIGITS_MAX {
            return Err(SizeError::Fraction { found: found() });
        }
        // Both parts are digits, so a failure to parse can only be that they are too large.
        let overflow = || SizeError::Overflow { found: found() };
        let whole: u64 = whole.parse().map_err(|_| overflow())?;
        let part: u64 = fraction.parse().map_err(|_| overflow())?;
        let scale = 10u128.pow(fraction.len() as u32);
        let part = u128::from(part) * u128::from(unit);
        if part % scale != 0 {
            return Err(SizeError::Fraction { found: found() });
        }
        let bytes = u128::from(whole) * u128::from(unit) + part / scale;
        u64::try_from(bytes).map(Self).map_err(|_| overflow())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = (self.0.trailing_zeros() / 10).min(UNITS.len() as u32);
        match power.checked_sub(1) {
            Some(unit) if self.0 != 0 => write!(f, "{}{}", self.0 >> (10 * power), UNITS[unit as usize]),
            _ => self.0.fmt(f),
        }
    }
}

/// Bytes for people to read, to a tenth of the largest unit that fits: `512 B`, `4 KiB`, `1.5 GiB`.
pub fn human(bytes: u64) -> String {
    let mut power = (bytes | 1).ilog2() / 10;
    if power == 0 {
        return format!("{bytes} B");
    }
    let tenths = |power: u32| (u128::from(bytes) * 10 + (1 << (10 * power - 1))) >> (10 * power);
    if tenths(power) >= 10240 && power < UNITS.len() as u32 {
        power += 1; // rounding reached the next unit
    }
    let (tenths, unit) = (tenths(power), UNITS[power as usize - 1]);
    match tenths % 10 {
        0 => format!("{} {unit}iB", tenths / 10),
        tenth => format!("{}.{tenth} {unit}iB", tenths / 10),
    }
}

/// Bytes of the unit that `suffix` names, 1 if it is empty.
fn unit(suffix: &str) -> Result<u64, SizeError> {
    let error = || SizeError::Unit { found: suffix.to_owned() };
    let mut chars = suffix.chars();
    let Some(letter) = chars.next() else { return Ok(1) };
    let power = UNITS.iter().position(|unit| unit.eq_ignore_ascii_case(&letter)).ok_or_else(error)?;
    match chars.as_str() {
        "" | "iB" => Ok(1 << (10 * (power + 1))),
        _ => Err(error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_printed_size_parses_back_to_itself(bytes in any::<u64>(), shift in 0..64u32) {
            let size = Size(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn no_text_panics(text in "[0-9.KMGTPEiBkb ]{0,30}|.{0,20}") {
            let _ = text.parse::<Size>();
        }

        #[test]
        fn a_human_size_is_within_a_twentieth_of_its_unit(bytes in any::<u64>(), shift in 0..64u32) {
            let bytes = bytes >> shift;
            let text = human(bytes);
            let (number, unit) = text.split_once(' ').unwrap();
            let power = "BKMGTPE".find(&unit[..1]).unwrap() as i32;
            let shown: f64 = number.parse().unwrap();
            let exact = bytes as f64 / 1024f64.powi(power);
            prop_assert!((shown - exact).abs() <= 0.0500001 && (shown < 1024.0), "{} for {}", text, bytes);
        }
    }

    #[test]
    fn units_are_powers_of_1024_in_either_case_and_spelling() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("64K", 65536),
            ("64k", 65536),
            ("64KiB", 65536),
            ("3 MiB", 3 << 20),
            ("1.5G", 3 << 29),
            ("0.5K", 512),
            ("2T", 2 << 40),
            ("7P", 7 << 50),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn an_error_names_what_was_expected_and_what_was_found() {
        let cases = [
            ("", "expected a size such as 4096, 64K or 10G, found \"\""),
            ("G", "expected a size such as 4096, 64K or 10G, found \"G\""),
            ("-1", "expected a size such as 4096, 64K or 10G, found \"-1\""),
            ("1.2.3K", "expected a size such as 4096, 64K or 10G, found \"1.2.3K\""),
            ("1.K", "expected a size such as 4096, 64K or 10G, found \"1.K\""),
            ("0.3", "expected a whole number of bytes, found \"0.3\""),
            ("16E", "expected at most 18446744073709551615 bytes (just under 16E), found \"16E\""),
            (
                "99999999999999999999",
                "expected at most 18446744073709551615 bytes (just under 16E), found \"99999999999999999999\"",
            ),
        ];
        for (text, message) in cases {
            assert_eq!(text.parse::<Size>().unwrap_err().to_string(), message);
        }
        for suffix in ["KB", "B", "x", "Ki", "Kib", "K K"] {
            let error = format!("5{suffix}").parse::<Size>().unwrap_err();
            assert_eq!(error, SizeError::Unit { found: suffix.to_owned() });
        }
    }

    #[test]
    fn human_sizes_read_as_people_write_them() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4 KiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 20) - 1, "1 MiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
    }
}
