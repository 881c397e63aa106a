//! Planted faults: ways to break this crate on purpose, to prove that the tests would notice.
//!
//! Compiled in only with the feature `planted-faults`, which no tool enables; without it [`Planted`] is a type without content and
//! `is` is `false` at compile time. A fault is handed to the object that it breaks, so that the checker, in the same process,
//! goes on judging with whole code.

#[cfg(all(feature = "planted-faults", not(debug_assertions)))]
compile_error!("planted faults are for tests; a release build must not have them");

macro_rules! faults {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One thing done wrong, and what it would cost.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(
            not(feature = "planted-faults"),
            allow(unreachable_pub, reason = "public only for tests that plant faults")
        )]
        pub enum Fault {
            $($(#[$doc])* $name,)*
        }

        #[cfg(feature = "planted-faults")]
        impl Fault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

faults! {
    /// The last flushed log block is written again with more records in it (R7): a torn write takes records that were
    /// acknowledged as durable.
    LogBlockRewritten,
    /// A log block claims that all before it is durable, flushed or not (R6): a tail that a crash tore is taken for damage.
    DurableClaimedEarly,
    /// Replay steps over a log block that it cannot read: what comes after a hole is not a prefix.
    TornLogBlockSkipped,
    /// Replay goes by the sequence number alone (R4): records that a crash gave up come back after a later one.
    StaleLogBlockReplayed,
    /// A milestone of the ring that cannot be read passes for one that the log never came to (R6): behind a hole, acknowledged
    /// operations vanish in silence.
    DamagedMilestoneBelieved,
    /// A block's own checksum is not compared: a flipped bit becomes a mapping.
    BlockChecksumIgnored,
    /// The checksum that the parent names is not compared: an older version of a node stands in for a lost write.
    ChildChecksumIgnored,
}

/// The fault planted in an object, if any.
#[derive(Clone, Copy, Debug, Default)]
pub struct Planted {
    #[cfg(feature = "planted-faults")]
    fault: Option<Fault>,
}

impl Planted {
    /// This one.
    #[cfg(feature = "planted-faults")]
    pub fn new(fault: Fault) -> Self {
        Self { fault: Some(fault) }
    }

    /// Whether it is this one.
    #[cfg(feature = "planted-faults")]
    pub(crate) fn is(self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Whether it is this one: never, in this build.
    #[cfg(not(feature = "planted-faults"))]
    pub(crate) const fn is(self, _fault: Fault) -> bool {
        false
    }
}
