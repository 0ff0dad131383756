//! Whole clusters whose guests are real virtual machines, on networks of their own: that they order
//! requests, outlive the loss of a machine, and that an attacker who owns one of them, as root, gets
//! no further than into that machine.
//!
//! But for [`usage`] these need root, QEMU and the images that `vm/build-image` and `tests/vm/build-intruder` make, so
//! they run when asked to: `.ci/run` does (all but [`rejuvenate`], which takes minutes), and so does
//!
//! ```text
//! vm/build-image && tests/vm/build-intruder --image target/vm-image --out target/vm-intruder
//! cargo test -p difato --test vm -- --ignored --nocapture --test-threads 1
//! ```
//!
//! | variable | what it says |
//! |---|---|
//! | `DIFATO_VM_IMAGE` | where the image is [default: `target/vm-image`] |
//! | `DIFATO_VM_INTRUDER` | where the intruder's is [default: `target/vm-intruder`] |
//! | `DIFATO_VM_ACCEL` | `kvm`, `tcg` or `auto` [default: `tcg`] |

mod break_in;
mod cluster;
mod firewall;
mod machines;
mod rejuvenate;
mod run_guest;
mod usage;
