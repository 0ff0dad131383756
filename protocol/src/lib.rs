//! The protocol as pure state machines.
pub mod messages;
