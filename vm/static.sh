# shellcheck shell=bash
# Has cargo build programs that need no libraries, the same bytes in whatever folder: for $static_target,
# from the sources in $root. To be sourced; .ci/run too builds like this, so that nothing is built twice.

# shellcheck disable=SC2034
static_target=x86_64-unknown-linux-gnu
# shellcheck disable=SC2154
export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$root=/difato --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
export CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=symbols
