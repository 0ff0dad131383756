//! What an attacker does who owns a guest's machine: the init of a test's image, in place of
//! `difato`. It boots as a guest does, with a guest's devices and keys, and then does what a guest
//! should not be able to do. What it found it says on the console, for the test to judge. It is no
//! part of the image that `vm/build-image` makes.
//!
//! Booted in the place of `difato` it is a sequencer that proposes what it must not, when told to, and
//! nothing else.
//!
//! The same program listens for the attacker's frames on the host's side:
//! `vm-intruder listen DEVICE SECONDS` prints how many frames of each [kind](frames::KINDS) came.
//!
//! | module | one job |
//! |---|---|
//! | `registers` | attacks on the register files and the doorbell |
//! | `sequencer` | a proposal for which others convict it |
//! | `network` | frames that must not leave this machine, and ears for what must not reach it |
//! | `frames` | those frames, byte by byte |
//! | `socket` | a socket for raw frames |

#![forbid(unsafe_code)]

mod frames;
mod network;
mod registers;
mod sequencer;
mod socket;

use std::process::ExitCode;

use anyhow::{Result, bail};
use guest_replica::vm;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let listens = args.first().is_some_and(|first| first == "listen");
    let ended = if listens { listen(&args[1..]) } else { attack() };
    if let Err(error) = &ended {
        println!("intruder: failed: {error:#}");
    }
    if !listens {
        vm::power_off();
    }
    if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn listen(args: &[String]) -> Result<()> {
    match args {
        [device, seconds] => network::listen(device, seconds.parse()?),
        _ => bail!("usage: vm-intruder listen DEVICE SECONDS"),
    }
}

fn attack() -> Result<()> {
    let options = vm::boot()?;
    if std::env::args().next().is_some_and(|name| name == "/difato") {
        return sequencer::attack(&options);
    }
    registers::attack(&options)?;
    network::attack(&options)
}
