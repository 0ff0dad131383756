//! A process that stands still.
