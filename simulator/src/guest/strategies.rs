//! What a guest that was broken into does, as data: what, and when.

use rand_chacha::ChaCha8Rng;

/// One thing that a broken-in guest does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strategy {}

/// Draws what a broken-in guest of a cluster of `n` does.
pub fn draw(_rng: &mut ChaCha8Rng, _n: usize) -> Vec<Strategy> {
    Vec::new()
}
