//! The command as a person runs it: arguments in, two streams and an exit code out.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use super::print_reproduction_on_failure;

/// The program under test.
pub(crate) const DIFATO: &str = env!("CARGO_BIN_EXE_difato");
/// No command takes longer.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);
/// But one that measures on clusters of its own, on a machine with other tests.
const MEASURING_PATIENCE: Duration = Duration::from_secs(300);

/// What a command said, and how it ended.
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    command: String,
}

impl Said {
    pub(crate) fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }

    /// Its output, if it did what it was asked.
    #[track_caller]
    pub(crate) fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.stdout
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Said { code, stdout, stderr, command } = self;
        write!(f, "{command}\nexit code {code:?}\nstdout:\n{stdout}\nstderr:\n{stderr}")
    }
}

/// A command that is not run yet.
pub(crate) struct Line {
    command: Command,
    stdin: Vec<u8>,
}

/// `difato` with arguments.
pub(crate) fn difato<'a>(args: impl IntoIterator<Item = &'a str>) -> Line {
    print_reproduction_on_failure();
    let mut command = Command::new(DIFATO);
    command.args(args);
    Line { command, stdin: Vec::new() }
}

impl Line {
    pub(crate) fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Line {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<Path>) -> Line {
        self.command.env(name, value.as_ref());
        self
    }

    pub(crate) fn stdin(mut self, bytes: &[u8]) -> Line {
        self.stdin = bytes.to_vec();
        self
    }

    pub(crate) fn spawn(self) -> Running {
        let mut input = tempfile::tempfile().unwrap();
        input.write_all(&self.stdin).unwrap();
        input.rewind().unwrap();
        self.start(Stdio::from(input))
    }

    /// Starts it with an input that is written while it runs.
    pub(crate) fn spawn_fed(self) -> (Running, ChildStdin) {
        let mut running = self.start(Stdio::piped());
        let input = running.child.stdin.take().unwrap();
        (running, input)
    }

    fn start(mut self, input: Stdio) -> Running {
        let [output, errors] = std::array::from_fn(|_| tempfile::tempfile().unwrap());
        let command = self.command.stdin(input).stdout(output.try_clone().unwrap());
        let child = command.stderr(errors.try_clone().unwrap()).spawn().unwrap();
        Running { child, output, errors, command: format!("{command:?}") }
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Said {
        self.spawn().wait()
    }

    /// Runs what measures on clusters of its own to its end.
    pub(crate) fn measure(self) -> Said {
        self.spawn().wait_for(MEASURING_PATIENCE)
    }
}

/// A command at work. Dropped, it is killed.
pub(crate) struct Running {
    child: Child,
    output: File,
    errors: File,
    command: String,
}

impl Running {
    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// What it has said on stdout so far.
    pub(crate) fn stdout(&self) -> String {
        said(&self.output)
    }

    /// What it has said on stderr so far.
    pub(crate) fn stderr(&self) -> String {
        said(&self.errors)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it ends.
    pub(crate) fn wait(self) -> Said {
        self.wait_for(COMMAND_PATIENCE)
    }

    fn wait_for(mut self, patience: Duration) -> Said {
        let start = Instant::now();
        while !self.has_ended() {
            let said = (self.stdout(), self.stderr());
            let late = start.elapsed() > patience;
            assert!(!late, "does not end in {patience:?}: {} {said:?}", self.command);
            std::thread::sleep(Duration::from_millis(5));
        }
        let code = self.child.wait().unwrap().code();
        let command = std::mem::take(&mut self.command);
        Said { code, stdout: self.stdout(), stderr: self.stderr(), command }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(file: &File) -> String {
    // A handle of its own: the child's shares its position with ours.
    let mut own = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))
        .expect("a temporary file of ours");
    let mut bytes = Vec::new();
    own.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a process runs. One that ended and nobody has waited for does not.
pub(crate) fn runs(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// Processes that run, with the arguments of each, whose parent is `parent`.
pub(crate) fn children_of(parent: i32) -> Vec<(i32, String)> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children = pids.filter(|pid| stat(*pid).is_some_and(|(_, of)| of == parent) && runs(*pid));
    let arguments = |pid: i32| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    };
    children.map(|pid| (pid, arguments(pid))).collect()
}

/// State and parent.
fn stat(pid: i32) -> Option<(String, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
