//! Clusters of real processes under `kill -9` and SIGSTOP, from a seed.
//!
//! A [`storm`] starts hosts, guests, clients and listeners as processes, breaks them as a
//! [`schedule`] says that a seed has drawn, and demands in every calm that all requests are
//! answered. What clients noted ([`log`]) and what the hosts' register files hold ([`registers`])
//! is then one history, which the simulator's checkers judge (`simulator::recorded`).
//!
//! Host agents are the program under test. Guests run the same code as `difato guest-replica`, in a
//! process of this target's ([`process`]), with the simulator's application, whose every reply
//! depends on all that was delivered before. Clients are processes of this target's too: one that
//! shares ours could not be killed.
//!
//!     STORM_SEED=7 STORM_SECONDS=600 cargo test --release --test storm -- --nocapture a_storm
//!
//! | variable | what | if not set |
//! |---|---|---|
//! | `STORM_SEED` | the first round's seed; each further round has the next | 1 |
//! | `STORM_SECONDS` | rounds begin until so many seconds have passed | 0: one of each `f` |
//! | `STORM_ROUND_SECONDS` | how long a round breaks things, besides its calms | 6 |
//! | `STORM_F` | 1 or 2 | the rounds take turns |
//! | `STORM_RING_BYTES` | `ring_bytes` in `cluster.toml` | 2 MiB: rings wrap around |
//! | `STORM_KILLS` | how often the kill loop kills | 15 |
//! | `STORM_PAUSE_SECONDS` | how long the pause test stops a process | 4 |

mod clients;
mod kill_loop;
mod log;
mod pause;
mod process;
mod registers;
mod schedule;
mod settings;
mod storm;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the target `cluster` uses the rest")]
mod support;
mod tampered;
mod watch;
mod world;
