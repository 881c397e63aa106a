//! Which fault is planted. In the copy of the sources that has them all, and nowhere else.

use std::sync::{PoisonError, RwLock};

static PLANTED: RwLock<String> = RwLock::new(String::new());

/// From now on this one, and no other.
pub fn plant(name: &str) {
    name.clone_into(&mut PLANTED.write().unwrap_or_else(PoisonError::into_inner));
}

/// Whether it is this one.
pub fn is(name: &str) -> bool {
    *PLANTED.read().unwrap_or_else(PoisonError::into_inner) == name
}
