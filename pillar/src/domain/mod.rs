//! The agent's own picture of the device: what is wanted ([`desired`]), what is ([`observed`]), and the ids of both.

pub mod desired;
pub mod ids;
pub mod observed;
