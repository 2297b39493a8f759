//! What the fleet should be: device API, operator API, store.
