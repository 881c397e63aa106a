//! The handshake: from the first byte to the moment both sides know which export is served, and how.
//!
//! ```text
//!  server: NBDMAGIC IHAVEOPT flags     client: flags     then, until an export is chosen:
//!  client: option                      server: one or more option replies, the last of them final
//! ```
//!
//! Nothing here trusts the client. The whole handshake has one deadline, however slowly bytes come; an
//! option's data is held only up to [`OPTION_DATA_MAX`] and read past up to [`OPTION_SKIP_MAX`]; names are
//! compared, never interpreted. An option that is not known, or that is malformed, is answered with an error,
//! and the handshake goes on.
//!
//! With STARTTLS the handshake begins anew: what was agreed on in the clear may have been said by somebody in
//! between, so it is forgotten. No byte is taken from the socket before it is needed, so none that came
//! before is left to be read after.

use crate::command::{PAYLOAD_LEN_MAX, Terms};
use crate::contexts::{Context, Queries};
use crate::export::Export;
use crate::places::Place;
use crate::presence::{Entries, Entry};
use crate::protocol::{
    EXPORT_NAME_PADDING, Fields, Framing, INIT_MAGIC, OPTION_HEADER_SIZE, OPTION_MAGIC, STRING_LEN_MAX,
    handshake_flag, info, option, option_reply, put_option_reply, transmission_flag,
};
use crate::tls::TlsConfig;
use crate::transport::Transport;
use ipnet::IpNet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Largest option data that is looked at: a name, and an information request for each of the few thousand
/// types that nobody has defined yet.
const OPTION_DATA_MAX: usize = 4 * STRING_LEN_MAX;
/// Largest option data that is read past to answer that it was too much; a client that sends more is cut off.
const OPTION_SKIP_MAX: usize = 1 << 20;
/// Smallest preferred block size that is advertised: what the specification tells clients to assume.
const PREFERRED_BLOCK_SIZE_MIN: u32 = 4096;
/// Requests may begin and end at any byte.
const MINIMUM_BLOCK_SIZE: u32 = 1;

/// An export and what it is called.
#[derive(Clone)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) export: Arc<dyn Export>,
    /// Counts its connections.
    pub(crate) entries: Entries,
}

/// All that a server offers.
#[derive(Default)]
pub(crate) struct Exports {
    /// In the order of the list.
    pub(crate) list: Vec<Named>,
    /// What an empty name stands for, unless an export's name is empty.
    pub(crate) default: Option<String>,
    /// What TLS is done with, if it is.
    pub(crate) tls: Option<TlsConfig>,
    /// Nothing is told or served in the clear.
    pub(crate) tls_required: bool,
    /// Where clients over TCP may come from; empty: from anywhere.
    pub(crate) allowed: Vec<IpNet>,
}

impl Exports {
    /// The export of this name. A client that names none gets the default: the one so named, else the one
    /// declared so, else the only one.
    pub(crate) fn find(&self, name: &[u8]) -> Option<&Named> {
        let exact = |name: &[u8]| self.list.iter().find(|named| named.name.as_bytes() == name);
        exact(name).or_else(|| match (&self.default, &self.list[..]) {
            _ if !name.is_empty() => None,
            (Some(default), _) => exact(default.as_bytes()),
            (None, [only]) => Some(only),
            (None, _) => None,
        })
    }
}

/// What the client chose.
pub(crate) struct Agreed {
    /// The export's name, also if the client named none.
    pub(crate) name: String,
    pub(crate) export: Arc<dyn Export>,
    pub(crate) entry: Entry,
    pub(crate) terms: Terms,
    /// The metadata contexts selected.
    pub(crate) contexts: Vec<Context>,
}

/// Runs the handshake; `None` if the client ended it politely. Fails if the client goes away, breaks the
/// protocol, asks in a form that has no error reply for an export that does not exist, or has not finished by
/// `deadline`.
pub(crate) fn handshake(
    transport: &Transport,
    place: &mut Place,
    exports: &Exports,
    stopping: &AtomicBool,
    deadline: Instant,
) -> io::Result<Option<Agreed>> {
    let (flags, haggled) = (0, Haggled::default());
    let mut session = Session { transport, place, exports, stopping, deadline, flags, haggled };
    session.greet()?;
    loop {
        match session.next_option()? {
            Step::Continue => {}
            Step::Chosen(agreed) => return Ok(Some(agreed)),
            Step::End => return Ok(None),
        }
    }
}

struct Session<'a> {
    transport: &'a Transport,
    place: &'a mut Place,
    exports: &'a Exports,
    stopping: &'a AtomicBool,
    deadline: Instant,
    /// Those of [`handshake_flag`] that the client has too.
    flags: u16,
    haggled: Haggled,
}

/// What options have brought about so far, apart from the choice of an export.
struct Haggled {
    framing: Framing,
    /// The metadata contexts selected last, and for which export name.
    selected: Option<(Vec<u8>, Vec<Context>)>,
}

impl Default for Haggled {
    fn default() -> Self {
        Self { framing: Framing::Simple, selected: None }
    }
}

enum Step {
    Continue,
    Chosen(Agreed),
    End,
}

fn violation(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Session<'_> {
    fn greet(&mut self) -> io::Result<()> {
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        let mut greeting = Vec::new();
        greeting.extend(INIT_MAGIC.to_be_bytes());
        greeting.extend(OPTION_MAGIC.to_be_bytes());
        greeting.extend(flags.to_be_bytes());
        self.send(&greeting)?;
        let mut answer = [0; 4];
        self.recv(&mut answer)?;
        let client_flags = u32::from_be_bytes(answer);
        if client_flags & !u32::from(flags) != 0 {
            return Err(violation("unknown client flags"));
        }
        self.flags = client_flags as u16;
        Ok(())
    }

    fn next_option(&mut self) -> io::Result<Step> {
        let mut header = [0; OPTION_HEADER_SIZE];
        self.recv(&mut header)?;
        let mut fields = Fields::new(&header);
        let (Some(OPTION_MAGIC), Some(option), Some(len)) = (fields.u64(), fields.u32(), fields.u32()) else {
            return Err(violation("an option without its magic"));
        };
        let len = len as usize;
        if len > OPTION_DATA_MAX {
            self.skip(option, len)?;
            let message = "option data too long";
            return self.reply(option, option_reply::ERR_TOO_BIG, message.as_bytes());
        }
        let mut data = vec![0; len];
        self.recv(&mut data)?;
        if self.exports.tls_required
            && !self.transport.is_encrypted()
            && !matches!(option, option::STARTTLS | option::ABORT)
        {
            if option == option::EXPORT_NAME {
                return Err(violation("an export was asked for in the clear"));
            }
            return self.reply(option, option_reply::ERR_TLS_REQD, b"this server wants TLS");
        }
        if self.stopping.load(Ordering::Relaxed) && option != option::ABORT {
            if option == option::EXPORT_NAME {
                return Err(violation("an export was asked for during shutdown"));
            }
            return self.reply(option, option_reply::ERR_SHUTDOWN, b"server is shutting down");
        }
        self.answer(option, &data)
    }

    fn answer(&mut self, option: u32, data: &[u8]) -> io::Result<Step> {
        match option {
            option::EXPORT_NAME => self.export_name(data),
            option::ABORT => {
                // The client may be gone already.
                let _ = self.reply(option, option_reply::ACK, b"");
                Ok(Step::End)
            }
            option::STARTTLS => self.start_tls(data),
            option::LIST if data.is_empty() => self.list(),
            option::STRUCTURED_REPLY if data.is_empty() => self.structured_reply(),
            option::EXTENDED_HEADERS if data.is_empty() => {
                self.haggled.framing = Framing::Extended;
                self.reply(option, option_reply::ACK, b"")
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                self.reply(option, option_reply::ERR_INVALID, b"option takes no data")
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(option, data),
            option::INFO | option::GO => self.info_or_go(option, data),
            _ => self.reply(option, option_reply::ERR_UNSUP, b"option not supported"),
        }
    }

    fn start_tls(&mut self, data: &[u8]) -> io::Result<Step> {
        let option = option::STARTTLS;
        if !data.is_empty() || self.transport.is_encrypted() {
            let message = b"option takes no data, and is for once only";
            return self.reply(option, option_reply::ERR_INVALID, message);
        }
        // A client that does not speak the fixed handshake could not be told what it may do next.
        let fixed = self.flags & handshake_flag::FIXED_NEWSTYLE != 0;
        let Some(config) = self.exports.tls.as_ref().filter(|_| fixed) else {
            return self.reply(option, option_reply::ERR_POLICY, b"this server does no TLS");
        };
        self.reply(option, option_reply::ACK, b"")?;
        self.transport.start_tls(config, self.deadline)?;
        self.haggled = Haggled::default();
        Ok(Step::Continue)
    }

    fn structured_reply(&mut self) -> io::Result<Step> {
        let option = option::STRUCTURED_REPLY;
        if self.haggled.framing == Framing::Extended {
            let message = b"extended headers have been agreed on";
            return self.reply(option, option_reply::ERR_EXT_HEADER_REQD, message);
        }
        self.haggled.framing = Framing::Structured;
        self.reply(option, option_reply::ACK, b"")
    }

    /// Lists metadata contexts, or selects some. Whatever becomes of a selection, the one before is
    /// forgotten.
    fn meta_context(&mut self, option: u32, data: &[u8]) -> io::Result<Step> {
        let selects = option == option::SET_META_CONTEXT;
        if selects {
            self.haggled.selected = None;
        }
        if self.haggled.framing < Framing::Structured {
            let message = b"structured replies have not been agreed on";
            return self.reply(option, option_reply::ERR_INVALID, message);
        }
        let Some(queries) = Queries::parse(data) else {
            return self.reply(option, option_reply::ERR_INVALID, b"malformed option");
        };
        let Some(named) = self.exports.find(queries.export) else {
            return self.reply(option, option_reply::ERR_UNKNOWN, b"no such export");
        };
        let known = named.export.contexts();
        let contexts = if selects { queries.select(known) } else { queries.list(known) };
        let mut replies = Vec::new();
        for Context { id, name } in &contexts {
            let id = if selects { *id } else { 0 };
            let data = [&id.to_be_bytes(), name.as_bytes()];
            put_option_reply(&mut replies, option, option_reply::META_CONTEXT, &data);
        }
        put_option_reply(&mut replies, option, option_reply::ACK, &[]);
        if selects {
            self.haggled.selected = Some((queries.export.to_vec(), contexts));
        }
        self.send(&replies)?;
        Ok(Step::Continue)
    }

    /// The old way to choose, which has no error reply.
    fn export_name(&mut self, name: &[u8]) -> io::Result<Step> {
        if self.haggled.framing == Framing::Extended {
            return Err(violation("extended headers need NBD_OPT_GO"));
        }
        let named = self.exports.find(name).ok_or_else(|| violation("no such export"))?;
        self.place.take_seat().map_err(|refused| io::Error::other(refused.to_string()))?;
        let agreed = self.agree(named, name);
        let mut reply = Vec::new();
        reply.extend(agreed.terms.size.to_be_bytes());
        reply.extend(transmission_flags(&agreed.terms).to_be_bytes());
        if self.flags & handshake_flag::NO_ZEROES == 0 {
            reply.extend([0; EXPORT_NAME_PADDING]);
        }
        self.send(&reply)?;
        Ok(Step::Chosen(agreed))
    }

    fn list(&mut self) -> io::Result<Step> {
        let mut replies = Vec::new();
        for named in &self.exports.list {
            // Names are at most `STRING_LEN_MAX` bytes: the builder has checked.
            let len = (named.name.len() as u32).to_be_bytes();
            let data = [&len, named.name.as_bytes(), named.description.as_bytes()];
            put_option_reply(&mut replies, option::LIST, option_reply::SERVER, &data);
        }
        put_option_reply(&mut replies, option::LIST, option_reply::ACK, &[]);
        self.send(&replies)?;
        Ok(Step::Continue)
    }

    fn info_or_go(&mut self, option: u32, data: &[u8]) -> io::Result<Step> {
        let Some((name, wanted)) = parse_info(data) else {
            return self.reply(option, option_reply::ERR_INVALID, b"malformed option");
        };
        if name.len() > STRING_LEN_MAX {
            return self.reply(option, option_reply::ERR_TOO_BIG, b"export name too long");
        }
        let Some(named) = self.exports.find(name) else {
            return self.reply(option, option_reply::ERR_UNKNOWN, b"no such export");
        };
        if option == option::GO
            && let Err(refused) = self.place.take_seat()
        {
            tracing::warn!("a client is refused: {refused}");
            return self.reply(option, option_reply::ERR_POLICY, refused.to_string().as_bytes());
        }
        let terms = self.terms(named, name);
        let agreed = (option == option::GO).then(|| self.agree(named, name));
        let mut replies = Vec::new();
        let mut put = |kind: u16, parts: [&[u8]; 3]| {
            let [a, b, c] = parts;
            put_option_reply(&mut replies, option, option_reply::INFO, &[&kind.to_be_bytes(), a, b, c]);
        };
        let flags = transmission_flags(&terms).to_be_bytes();
        put(info::EXPORT, [&terms.size.to_be_bytes(), &flags, &[]]);
        if wanted.contains(&info::NAME) {
            put(info::NAME, [named.name.as_bytes(), &[], &[]]);
        }
        if wanted.contains(&info::DESCRIPTION) && !named.description.is_empty() {
            put(info::DESCRIPTION, [named.description.as_bytes(), &[], &[]]);
        }
        if wanted.contains(&info::BLOCK_SIZE) {
            let preferred = named.export.block_size().clamp(PREFERRED_BLOCK_SIZE_MIN, PAYLOAD_LEN_MAX);
            let [a, b, c] = [MINIMUM_BLOCK_SIZE, preferred, PAYLOAD_LEN_MAX].map(u32::to_be_bytes);
            put(info::BLOCK_SIZE, [&a, &b, &c]);
        }
        put_option_reply(&mut replies, option, option_reply::ACK, &[]);
        self.send(&replies)?;
        Ok(agreed.map_or(Step::Continue, Step::Chosen))
    }

    /// The contexts selected for the export that the client calls `name`.
    fn contexts(&self, name: &[u8]) -> &[Context] {
        match &self.haggled.selected {
            Some((selected_for, contexts)) if selected_for == name => contexts,
            _ => &[],
        }
    }

    /// The terms for this export, which the client calls `name`.
    fn terms(&self, named: &Named, name: &[u8]) -> Terms {
        Terms {
            size: named.export.size(),
            block_size: u64::from(named.export.block_size().max(1)),
            read_only: named.export.is_read_only(),
            framing: self.haggled.framing,
            has_contexts: !self.contexts(name).is_empty(),
        }
    }

    /// It is chosen: to be called before the client is told.
    fn agree(&self, named: &Named, name: &[u8]) -> Agreed {
        Agreed {
            name: named.name.clone(),
            export: Arc::clone(&named.export),
            entry: Entry::new(&named.entries),
            terms: self.terms(named, name),
            contexts: self.contexts(name).to_vec(),
        }
    }

    fn skip(&mut self, option: u32, len: usize) -> io::Result<()> {
        if option == option::EXPORT_NAME || len > OPTION_SKIP_MAX {
            return Err(violation("option data far too long"));
        }
        let mut chunk = [0; 4096];
        let mut left = len;
        while left > 0 {
            let some = left.min(chunk.len());
            self.recv(&mut chunk[..some])?;
            left -= some;
        }
        Ok(())
    }

    fn reply(&mut self, option: u32, reply: u32, message: &[u8]) -> io::Result<Step> {
        let mut bytes = Vec::new();
        put_option_reply(&mut bytes, option, reply, &[message]);
        self.send(&bytes)?;
        Ok(Step::Continue)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.transport.send_all_until(bytes, self.deadline)
    }

    fn recv(&self, buf: &mut [u8]) -> io::Result<()> {
        self.transport.recv_exact_until(buf, self.deadline)
    }
}

/// Name and information requests of `NBD_OPT_INFO` and `NBD_OPT_GO`; `None` if the lengths in it contradict
/// its own.
fn parse_info(data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let mut fields = Fields::new(data);
    let name_len = fields.u32()? as usize;
    let name = fields.bytes(name_len)?;
    let count = fields.u16()?;
    let wanted = (0..count).map(|_| fields.u16()).collect::<Option<Vec<_>>>()?;
    fields.end()?;
    Some((name, wanted))
}

fn transmission_flags(terms: &Terms) -> u16 {
    use transmission_flag::*;
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    flags |= if terms.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO };
    if terms.framing >= Framing::Structured {
        flags |= SEND_DF;
    }
    if terms.framing == Framing::Extended && terms.has_contexts {
        flags |= BLOCK_STATUS_PAYLOAD;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(name: &[u8], wanted: &[u16]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend(name);
        data.extend((wanted.len() as u16).to_be_bytes());
        wanted.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
        data
    }

    proptest! {
        #[test]
        fn an_info_option_parses_whole_and_never_in_part(
            name: Vec<u8>, wanted in proptest::collection::vec(any::<u16>(), 0..8), cut in 1usize..8
        ) {
            let data = encode(&name, &wanted);
            prop_assert_eq!(parse_info(&data), Some((&name[..], wanted)));
            prop_assert_eq!(parse_info(&data[..data.len().saturating_sub(cut)]), None);
            let longer = [&data[..], b"x"].concat();
            prop_assert_eq!(parse_info(&longer), None);
        }

        #[test]
        fn any_bytes_parse_without_panic(data: Vec<u8>) {
            let _ = parse_info(&data);
        }
    }

    fn exports(names: &[&str], default: Option<&str>) -> Exports {
        let list = names.iter().map(|name| Named {
            name: name.to_string(),
            description: String::new(),
            export: Arc::new(crate::NullExport::new(0)),
            entries: Entries::default(),
        });
        Exports { list: list.collect(), default: default.map(String::from), ..Exports::default() }
    }

    #[test]
    fn an_empty_name_finds_the_default() {
        let found = |exports: &Exports, name: &str| exports.find(name.as_bytes()).map(|n| n.name.clone());
        assert_eq!(found(&exports(&["a"], None), ""), Some("a".into()));
        assert_eq!(found(&exports(&["a", "b"], None), ""), None);
        assert_eq!(found(&exports(&["a", "b"], Some("b")), ""), Some("b".into()));
        assert_eq!(found(&exports(&["a", ""], Some("a")), ""), Some("".into()));
        assert_eq!(found(&exports(&["a"], Some("a")), "b"), None);
    }
}
