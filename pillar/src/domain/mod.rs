//! The agent's own picture of the device: what is wanted ([`desired`]), and what is ([`observed`]).

pub mod desired;
pub mod observed;
