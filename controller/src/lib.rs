//! What the fleet should be: device API, operator API, store.
//!
//! ```text
//! devices --> doors::device --.
//!                              >-- fleet (all rules) -- store (SQLite)
//! operators -> doors::operator'
//! ```

pub mod fleet;
pub mod pki;
pub mod store;
