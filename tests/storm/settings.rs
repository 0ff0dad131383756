//! What the environment asks for.

use std::str::FromStr;

/// The value of a variable; `otherwise` if it is not set.
///
/// # Panics
///
/// If it is set to something else than such a value.
pub(crate) fn setting<T: FromStr>(name: &str, otherwise: T) -> T {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`: not a number")),
        Err(_) => otherwise,
    }
}
