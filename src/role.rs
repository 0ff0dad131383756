//! `difato host-agent` and `difato guest-replica`: one process of one server.

use anyhow::{Context, Result};
use guest_replica::vm::{self, VmError};
use host_agent::Level;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use tracing::level_filters::LevelFilter;

use crate::cli::{GuestArgs, RoleArgs};
use crate::exit::bad_input;

/// Sets how much the role processes log: `error`, `warn`, `info`, `debug`, `trace` or `off`.
const LOG_VARIABLE: &str = "DIFATO_LOG";

/// Runs `difato host-agent` until SIGTERM or SIGINT.
pub(crate) fn run_host_agent(args: RoleArgs) -> Result<()> {
    prepare(args.supervised_by)?;
    let options = host_agent::Options { dir: args.dir, id: args.id };
    let mut log = |level, line: &str| match level {
        Level::Info => tracing::info!("{line}"),
        Level::Error => tracing::error!("{line}"),
    };
    Ok(host_agent::run(&options, &mut log)?)
}

/// Runs `difato guest-replica` until SIGTERM or SIGINT, or as long as its machine runs.
pub(crate) fn run_guest_replica(args: GuestArgs) -> Result<()> {
    prepare(args.supervised_by)?;
    match (args.dir, args.id) {
        (Some(dir), Some(id)) => Ok(guest_replica::run(guest_replica::Options { dir, id })?),
        _ => run_machine(),
    }
}

/// The init of a machine has nobody to return to: the machine ends with it, and its host's console
/// says why.
fn run_machine() -> Result<()> {
    let ended = match vm::boot() {
        Ok(options) => guest_replica::run(options).map_err(anyhow::Error::new),
        Err(error @ VmError::NotInit) => return Err(bad_input(error.to_string())),
        Err(error) => Err(error.into()),
    };
    if let Err(error) = &ended {
        tracing::error!("this guest ends: {error}");
    }
    vm::power_off();
    ended
}

fn prepare(supervised_by: Option<i32>) -> Result<()> {
    if let Some(parent) = supervised_by {
        end_with(parent)?;
    }
    log_to_stderr()
}

/// Whatever is logged from now on goes to standard error.
pub(crate) fn log_to_stderr() -> Result<()> {
    let level = match std::env::var(LOG_VARIABLE) {
        Ok(level) => level.parse().map_err(|_| {
            let known = "error, warn, info, debug, trace or off";
            bad_input(format!("{LOG_VARIABLE} is `{level}`; it can be {known}"))
        })?,
        Err(_) => LevelFilter::INFO,
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_target(false)
        .init();
    Ok(())
}

/// Has this process told to stop when the one that started it ends, however it ends.
pub(crate) fn end_with(parent: i32) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGTERM).context("cannot tie this process to its parent")?;
    // It may have ended before that took hold.
    if getppid() != Pid::from_raw(parent) {
        return Err(bad_input(format!("the parent process is not {parent}")));
    }
    Ok(())
}
