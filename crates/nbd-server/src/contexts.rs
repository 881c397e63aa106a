//! Metadata contexts: which ones a client may ask for, and which it has selected.
//!
//! A query is a context's full name, or for listing also a namespace and its colon, which stands for all of
//! it. What is not known is ignored, as the protocol wants it. A selection belongs to one export name: it
//! counts only if the client then chooses the export under that very name, and each new selection, also a
//! failed one, replaces the one before.

use crate::protocol::{Fields, STRING_LEN_MAX};

/// A context that the client has selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// The name in replies: its place among the export's contexts, from 1 on.
    pub(crate) id: u32,
    pub(crate) name: &'static str,
}

/// The data of `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Queries<'a> {
    pub(crate) export: &'a [u8],
    queries: Vec<&'a [u8]>,
}

impl<'a> Queries<'a> {
    /// `None` if lengths contradict each other, or a string is longer than the protocol allows.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(data);
        let export = string(&mut fields)?;
        // The number may be a lie, so nothing is set aside for it.
        let count = fields.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            queries.push(string(&mut fields)?);
        }
        fields.end()?;
        Some(Self { export, queries })
    }

    /// The contexts that a listing names: all, if it asks for nothing in particular.
    pub(crate) fn list(&self, known: &'static [&'static str]) -> Vec<Context> {
        let named = |name: &str, query: &[u8]| {
            query == name.as_bytes() || (query.ends_with(b":") && name.as_bytes().starts_with(query))
        };
        self.select_by(known, |name| {
            self.queries.is_empty() || self.queries.iter().any(|query| named(name, query))
        })
    }

    /// The contexts that a selection names, each in full.
    pub(crate) fn select(&self, known: &'static [&'static str]) -> Vec<Context> {
        self.select_by(known, |name| self.queries.contains(&name.as_bytes()))
    }

    fn select_by(&self, known: &'static [&'static str], wanted: impl Fn(&str) -> bool) -> Vec<Context> {
        let contexts = (1..).zip(known).map(|(id, name)| Context { id, name });
        contexts.filter(|context| wanted(context.name)).collect()
    }
}

/// A length of 4 bytes, and so many bytes.
fn string<'a>(fields: &mut Fields<'a>) -> Option<&'a [u8]> {
    let len = fields.u32()? as usize;
    fields.bytes(len).filter(|string| string.len() <= STRING_LEN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KNOWN: &[&str] = &["base:allocation", "dedup:sharing"];

    fn encode(export: &[u8], queries: &[Vec<u8>]) -> Vec<u8> {
        let string = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
        let mut data = string(export);
        data.extend((queries.len() as u32).to_be_bytes());
        queries.iter().for_each(|query| data.extend(string(query)));
        data
    }

    fn names(contexts: Vec<Context>) -> Vec<&'static str> {
        contexts.into_iter().map(|context| context.name).collect()
    }

    #[test]
    fn wildcards_list_and_do_not_select() {
        let cases: [(&[&str], &[&str], &[&str]); 6] = [
            (&[], KNOWN, &[]),
            (&["base:"], &KNOWN[..1], &[]),
            (&["dedup:", "base:allocation"], KNOWN, &KNOWN[..1]),
            (&["dedup:sharing", "dedup:sharing"], &KNOWN[1..], &KNOWN[1..]),
            (&["base:other", "nonsense", "", "base", "qemu:dirty-bitmap:x"], &[], &[]),
            (&["base:allocation:"], &[], &[]),
        ];
        for (asked, listed, selected) in cases {
            let asked: Vec<Vec<u8>> = asked.iter().map(|query| query.as_bytes().to_vec()).collect();
            let data = encode(b"disk", &asked);
            let queries = Queries::parse(&data).unwrap();
            assert_eq!(names(queries.list(KNOWN)), listed, "{asked:?}");
            assert_eq!(names(queries.select(KNOWN)), selected, "{asked:?}");
        }
    }

    #[test]
    fn identifiers_differ_and_do_not_depend_on_what_else_is_asked_for() {
        let data = encode(b"", &[b"dedup:sharing".to_vec()]);
        let expected = Context { id: 2, name: "dedup:sharing" };
        assert_eq!(Queries::parse(&data).unwrap().select(KNOWN), [expected]);
    }

    proptest! {
        #[test]
        fn queries_parse_whole_and_never_in_part(
            export: Vec<u8>, queries: Vec<Vec<u8>>, cut in 1usize..8
        ) {
            let data = encode(&export, &queries);
            let parsed = Queries::parse(&data).unwrap();
            prop_assert_eq!(parsed.export, &export[..]);
            prop_assert_eq!(parsed.queries, queries);
            prop_assert_eq!(Queries::parse(&data[..data.len().saturating_sub(cut)]), None);
            let longer = [&data[..], b"x"].concat();
            prop_assert_eq!(Queries::parse(&longer), None);
        }

        #[test]
        fn any_bytes_parse_without_panic(data: Vec<u8>) {
            let _ = Queries::parse(&data);
        }
    }

    #[test]
    fn a_string_may_have_4096_bytes_and_no_more() {
        assert!(Queries::parse(&encode(&[b'x'; 4096], &[])).is_some());
        assert!(Queries::parse(&encode(&[b'x'; 4097], &[])).is_none());
        assert!(Queries::parse(&encode(b"", &[vec![b'x'; 4097]])).is_none());
    }

    #[test]
    fn a_count_of_queries_that_are_not_there_is_refused_at_once() {
        let mut data = encode(b"disk", &[]);
        let count_at = data.len() - 4;
        data[count_at..].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(Queries::parse(&data), None);
    }
}
