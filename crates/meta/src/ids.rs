//! Numbers that must not be mixed up, each its own type.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The one after this.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    };
}

id! {
    /// A 4 KiB block of the metadata device, by its number. Block 0 is a superblock, so 0 in a pointer means
    /// none.
    MetaBlock
}
id! {
    /// A metadata transaction: one superblock write. Rises by one; the superblock's slot is its parity.
    TxId
}
id! {
    /// A block of the intent log, numbered from the volume's birth; its place in the ring is the number
    /// modulo the ring's size.
    LogSeq
}
id! {
    /// One writable opening of the volume. Stamped on each log block, so that blocks lost in one crash cannot
    /// come back after the next.
    Epoch
}
