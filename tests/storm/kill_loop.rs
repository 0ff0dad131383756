//! A host agent that is killed again and again.
