//! One life of a guest: a command and whatever it starts, in a process group of its own. It ends with
//! the guard, however that ends, and all of it at once.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// The exit code of a command that could not be run, as shells have it.
pub(crate) const CANNOT_RUN: i32 = 127;
/// A guest that is told to stop has so long before it is killed.
const STOP: Duration = Duration::from_secs(5);

/// A guest that runs, or was not yet found to have ended.
pub(crate) struct Life {
    child: Child,
    began: Instant,
}

/// How a guest ended by itself.
pub(crate) struct Ended {
    status: ExitStatus,
    pub(crate) lived: Duration,
}

impl Ended {
    /// Whether there is no such command, or none that can be run.
    pub(crate) fn was_never_run(&self) -> bool {
        self.status.code() == Some(CANNOT_RUN)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended by itself after {} ms ({})", self.lived.as_millis(), self.status)
    }
}

impl Life {
    /// Starts the command. To be called on the main thread: it ends with the *thread* that started
    /// it.
    pub(crate) fn start(command: &[OsString]) -> Result<Life> {
        // This very program, also when another has taken its place on the disk.
        let child = Command::new("/proc/self/exe")
            .args(["guarded", "--guard", &std::process::id().to_string(), "--"])
            .args(command)
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the guest")?;
        Ok(Life { child, began: Instant::now() })
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<Ended> {
        let status = self.child.try_wait().ok().flatten()?;
        // What it started may be there still.
        self.signal(Signal::SIGKILL);
        Some(Ended { status, lived: self.began.elapsed() })
    }

    /// Has it stop, and kills it if it does not.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let start = Instant::now();
        while self.ended().is_none() && start.elapsed() < STOP {
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        // The group is there as long as its first process is not waited for, or others are in it.
        let _ = killpg(Pid::from_raw(self.child.id() as i32), signal);
    }
}

impl Drop for Life {
    /// Kills all of it at once: a guest keeps nothing that is worth a farewell.
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }
}
