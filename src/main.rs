//! The one command of DifATo: every process and every tool is a subcommand of it, so that it always
//! finds the processes that it starts (it starts itself).
//!
//! | module | subcommand |
//! |---|---|
//! | [`init`], [`up`] | `cluster init`, `cluster up` |
//! | [`role`] | `host-agent`, `guest-replica` |
//! | [`guard`] | `guard`, and the hidden `guarded` |
//! | [`send`], [`listen`], [`status`], [`retire`] | the same |
//! | [`mod@bench`] | `bench`, and the hidden `floor-node` |
//! | [`demo`] | `demo` |
//!
//! Shared by them: [`cli`] (arguments), [`exit`] (which error makes which exit code), [`output`]
//! (lines on stdout), [`escape`] (payloads as text), [`regular`] (files that another user owns),
//! [`registers`] (a host's streams, read from outside), [`session`] (a cluster as a client sees it)
//! and [`supervisor`] (the processes of a cluster as children).

#![forbid(unsafe_code)]

mod bench;
mod cli;
mod demo;
mod escape;
mod exit;
mod guard;
mod init;
mod listen;
mod output;
mod registers;
mod regular;
mod retire;
mod role;
mod send;
mod session;
mod status;
mod supervisor;
mod up;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::cli::{Cli, ClusterCommand, Command};

// What is deployed keeps every rule (see `shared_registers::canary`).
const _: () = assert!(!shared_registers::canary::BUILT_IN, "`canaries` is for the simulator alone");

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::report_usage(&error),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Cluster(ClusterCommand::Init(args)) => init::run(args),
        Command::Cluster(ClusterCommand::Up(args)) => up::run(args),
        Command::HostAgent(args) => role::run_host_agent(args),
        Command::GuestReplica(args) => role::run_guest_replica(args),
        Command::Guard(args) => guard::run(&args),
        Command::Guarded(args) => guard::run_guarded(&args),
        Command::Send(args) => send::run(args),
        Command::Listen(args) => listen::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Status(args) => status::run(args),
        Command::Retire(args) => retire::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::FloorNode(args) => bench::floor_node::run(args),
    }
}
