//! What the fleet should be: device API, operator API, store.
//!
//! ```text
//! devices ---> doors::device ----.
//!                                 >--> fleet (every rule) --> store (SQLite)
//! operators -> doors::operator --'
//! ```

pub mod doors;
pub mod fleet;
pub mod pki;
pub mod server;
pub mod setup;
pub mod store;
