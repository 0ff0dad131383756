//! How the command ends. Exit code 0 means that it did what was asked, 2 that it was asked for
//! something that cannot be (a flag, a file, a key, a port), 1 that it failed while at it.
//!
//! Libraries say what went wrong; which of the two codes that makes is decided here alone. What the
//! command itself finds wrong with its input it marks as [`BadInput`].

use std::fmt;
use std::process::ExitCode;

use client::ClientError;
use guest_replica::GuestError;
use host_agent::AgentError;
use shared_registers::cluster::ConfigError;

/// What was asked for cannot be: one sentence that says what, where, and what to do. Exit code 2.
#[derive(Debug)]
pub(crate) struct BadInput(pub(crate) String);

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// Nobody reads our output any more (`difato listen | head`): not a failure.
#[derive(Debug)]
pub(crate) struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output")
    }
}

impl std::error::Error for OutputClosed {}

/// [`BadInput`] as the error that the command's functions return.
pub(crate) fn bad_input(why: impl Into<String>) -> anyhow::Error {
    anyhow::Error::new(BadInput(why.into()))
}

/// Says on stderr what went wrong, and with which code to exit.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<OutputClosed>() {
        return ExitCode::SUCCESS;
    }
    eprintln!("difato: {}", sentence(error));
    ExitCode::from(code(error))
}

fn code(error: &anyhow::Error) -> u8 {
    let bad_input = error.chain().any(|cause| {
        cause.is::<BadInput>()
            || cause.is::<ConfigError>()
            || cause.downcast_ref().is_some_and(client_was_asked_wrongly)
            || cause.downcast_ref().is_some_and(guest_was_asked_wrongly)
            || cause.downcast_ref().is_some_and(agent_was_asked_wrongly)
    });
    if bad_input { 2 } else { 1 }
}

fn client_was_asked_wrongly(error: &ClientError) -> bool {
    use ClientError::{Refused, TooLarge, TooOld, WrongKey};
    matches!(error, WrongKey { .. } | Refused { .. } | TooLarge { .. } | TooOld { .. })
}

fn guest_was_asked_wrongly(error: &GuestError) -> bool {
    use GuestError::{Damaged, StoreThread, System};
    !matches!(error, Damaged { .. } | StoreThread { .. } | System { .. })
}

fn agent_was_asked_wrongly(error: &AgentError) -> bool {
    !matches!(error, AgentError::Rollback { .. } | AgentError::System { .. })
}

/// What went wrong and why. Some errors name their cause themselves; it is not said twice.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    one_line(&text)
}

/// One sentence on one line, whatever a cause printed.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(": ")
}

/// Says what is wrong with the command line, or prints the help that was asked for.
pub(crate) fn report_usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion,
    };
    match error.kind() {
        DisplayHelp | DisplayVersion => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(2);
        }
        _ => {}
    }
    let text = error.to_string();
    // What follows the first paragraph repeats the usage; `--help` tells it better.
    let what = text.split("\n\n").next().unwrap_or_default();
    let what = one_line(what.trim_start_matches("error: ")).replace("::", ":");
    eprintln!("difato: {what}; `difato --help` tells what can be said");
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cause_prints_over_several_lines_becomes_one() {
        assert_eq!(one_line("cannot start\n\n  no room\n"), "cannot start: no room");
    }

    #[test]
    fn a_cause_is_said_once() {
        let inner = anyhow::anyhow!("port 1 is taken");
        assert_eq!(sentence(&inner.context("cannot start")), "cannot start: port 1 is taken");
        let inner = anyhow::anyhow!("port 1 is taken");
        let outer = inner.context("cannot start: port 1 is taken; free it");
        assert_eq!(sentence(&outer), "cannot start: port 1 is taken; free it");
    }

    #[test]
    fn the_code_tells_bad_input_from_failure() {
        assert_eq!(code(&bad_input("no")), 2);
        assert_eq!(code(&bad_input("no").context("while at it")), 2);
        assert_eq!(code(&anyhow::Error::new(ConfigError("no".into())).context("x")), 2);
        assert_eq!(code(&anyhow::anyhow!("late")), 1);
    }
}
