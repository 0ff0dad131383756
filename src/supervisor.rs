//! The processes of a cluster as children of this one: `cluster up`, `demo` and `bench` run them.
//!
//! Every child is this same program (unless a guest was given another) with the subcommand of its
//! role. It appends what it says to its own file in `DIR/logs`, is in a process group of its own (so
//! that Ctrl-C reaches us alone, and we decide when it stops), and ends when we end, however we end
//! (`--supervised-by`). Nothing is restarted: a server that died stays away until a person has looked
//! why.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared_registers::cluster::{Cluster, Paths};
use shared_registers::ids::ServerId;

use crate::exit::bad_input;

/// A process has so long to stop before it is killed: a host agent syncs its files first, and all its
/// rings may have to be written to a disk that is busy.
const STOP_MS: u64 = 60_000;
/// How much of a log is looked at for its last line, in bytes.
const LOG_TAIL_BYTES: u64 = 8 << 10;

/// Which process of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The trusted one.
    HostAgent,
    /// The one that may be broken into.
    GuestReplica,
}

impl Role {
    fn subcommand(self) -> &'static str {
        match self {
            Role::HostAgent => "host-agent",
            Role::GuestReplica => "guest-replica",
        }
    }

    fn log(self, paths: &Paths, id: ServerId) -> PathBuf {
        paths.logs().join(match self {
            Role::HostAgent => format!("host-{id}.log"),
            Role::GuestReplica => format!("guest-{id}.log"),
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::HostAgent => "host agent",
            Role::GuestReplica => "guest replica",
        })
    }
}

/// A process that runs, or that was not yet found dead.
pub(crate) struct Process {
    /// Which process of its server.
    pub(crate) role: Role,
    /// Which server.
    pub(crate) id: ServerId,
    child: Child,
    log: PathBuf,
    /// Where in the log this run of it begins.
    log_start: u64,
}

impl Process {
    fn start(dir: &Path, program: &Path, role: Role, id: ServerId) -> Result<Process> {
        let path = role.log(&Paths::new(dir), id);
        let cannot_log = || format!("cannot write {}", path.display());
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let log = log.with_context(cannot_log)?;
        let log_start = log.metadata().with_context(cannot_log)?.len();
        let stdout = log.try_clone().with_context(cannot_log)?;
        let child = Command::new(program)
            .arg(role.subcommand())
            .arg("--dir")
            .arg(dir)
            .args(["--id", &id.to_string()])
            .args(["--supervised-by", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {role} {id} ({})", program.display()))?;
        Ok(Process { role, id, child, log: path, log_start })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        // It is not waited for yet, so the id is still its own; it may be dead, which is as well.
        let _ = kill(Pid::from_raw(self.pid() as i32), signal);
    }

    fn died(&self, status: ExitStatus) -> Death {
        Death {
            role: self.role,
            id: self.id,
            pid: self.pid(),
            status,
            log: self.log.clone(),
            last_line: last_line(&self.log, self.log_start).unwrap_or_default(),
        }
    }
}

/// A process ended without being told to.
pub(crate) struct Death {
    role: Role,
    id: ServerId,
    pid: u32,
    status: ExitStatus,
    log: PathBuf,
    last_line: Option<String>,
}

impl Death {
    /// Whose process it was.
    pub(crate) fn id(&self) -> ServerId {
        self.id
    }

    /// What it said about its input, if that is what it died of.
    pub(crate) fn bad_input(&self) -> Option<String> {
        let said = self.last_line.as_deref().unwrap_or("it did not say why");
        let said = said.strip_prefix("difato: ").unwrap_or(said);
        let who = format!("{} {}", self.role, self.id);
        let names_itself = said.starts_with(&who);
        (self.status.code() == Some(2))
            .then(|| if names_itself { said.to_owned() } else { format!("{who}: {said}") })
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (pid {}) ", self.role, self.id, self.pid)?;
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => write!(f, "ended with exit code {code}")?,
            (_, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => write!(f, "was killed by signal {number} ({signal})")?,
                Err(_) => write!(f, "was killed by signal {number}")?,
            },
            _ => write!(f, "ended")?,
        }
        write!(f, "; its log is {}", self.log.display())?;
        match &self.last_line {
            Some(line) => write!(f, ", last line: {line}"),
            None => write!(f, ", and empty"),
        }
    }
}

/// Guests that run another program, which must know the subcommand `guest-replica`, by server.
pub(crate) type Programs = BTreeMap<ServerId, PathBuf>;

/// All processes of a cluster on this machine. Dropped, it kills those that still run.
pub(crate) struct Supervisor {
    processes: Vec<Process>,
    dir: PathBuf,
    /// This program itself.
    own: PathBuf,
    programs: Programs,
    _lock: Flock<File>,
}

impl Supervisor {
    /// Starts a host agent and a guest replica for every server. To be called on the main thread:
    /// a child ends with the *thread* that started it.
    pub(crate) fn start(dir: &Path, cluster: &Cluster) -> Result<Supervisor> {
        Supervisor::start_with(dir, cluster, &Programs::new())
    }

    /// The same, with guests that run other programs than this one.
    pub(crate) fn start_with(
        dir: &Path,
        cluster: &Cluster,
        programs: &Programs,
    ) -> Result<Supervisor> {
        let own = std::env::current_exe().context("cannot find this program itself")?;
        let paths = Paths::new(dir);
        let lock = lock(&paths)?;
        let mut folder = DirBuilder::new();
        folder.mode(0o700).recursive(true);
        let logs = paths.logs();
        folder.create(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let (processes, dir, programs) = (Vec::new(), dir.to_owned(), programs.clone());
        let mut this = Supervisor { processes, dir, own, programs, _lock: lock };
        for role in [Role::HostAgent, Role::GuestReplica] {
            for id in ServerId::all(cluster.n()) {
                // On an error those that run already are killed as `this` is dropped.
                this.start_again(role, id)?;
            }
        }
        Ok(this)
    }

    /// Starts a process that was killed; which must not run. On the main thread, as in
    /// [`Self::start`].
    pub(crate) fn start_again(&mut self, role: Role, id: ServerId) -> Result<()> {
        let program = match role {
            Role::HostAgent => &self.own,
            Role::GuestReplica => self.programs.get(&id).unwrap_or(&self.own),
        };
        self.processes.push(Process::start(&self.dir, program, role, id)?);
        Ok(())
    }

    /// Those that run.
    pub(crate) fn processes(&self) -> &[Process] {
        &self.processes
    }

    /// The process ids of those of one role that run, by server.
    pub(crate) fn pids(&self, role: Role) -> Vec<u32> {
        let of_role = self.processes.iter().filter(|process| process.role == role);
        of_role.map(Process::pid).collect()
    }

    /// Whether this process of the server runs.
    pub(crate) fn runs(&self, role: Role, id: ServerId) -> bool {
        self.processes.iter().any(|process| (process.role, process.id) == (role, id))
    }

    /// Sends a process SIGKILL and waits for nothing. [`Self::kill`] must follow before anybody
    /// asks for deaths: until then this one would be news.
    pub(crate) fn strike(&self, role: Role, id: ServerId) -> Result<()> {
        self.processes[self.find(role, id)?].signal(Signal::SIGKILL);
        Ok(())
    }

    fn find(&self, role: Role, id: ServerId) -> Result<usize> {
        let found = self.processes.iter().position(|p| (p.role, p.id) == (role, id));
        found.with_context(|| format!("{role} {id} does not run any more"))
    }

    /// Kills one process at once (SIGKILL), and waits until it is dead. Returns its id; that it died
    /// is then no news.
    pub(crate) fn kill(&mut self, role: Role, id: ServerId) -> Result<u32> {
        let mut process = self.processes.remove(self.find(role, id)?);
        let killed = process.child.kill().and_then(|()| process.child.wait());
        killed.with_context(|| format!("cannot kill {role} {id}"))?;
        Ok(process.pid())
    }

    /// Those that died since the last call.
    pub(crate) fn deaths(&mut self) -> Vec<Death> {
        let mut deaths = Vec::new();
        self.processes.retain_mut(|process| match process.child.try_wait() {
            Ok(Some(status)) => {
                deaths.push(process.died(status));
                false
            }
            // An error would mean that it is no child of ours, which cannot be.
            Ok(None) | Err(_) => true,
        });
        deaths
    }

    /// Stops all: SIGTERM first, and SIGKILL for those that have not stopped after [`STOP_MS`].
    /// Returns what did not go clean.
    pub(crate) fn stop(mut self) -> Vec<String> {
        let mut unclean: Vec<String> = self.deaths().iter().map(Death::to_string).collect();
        for process in &self.processes {
            process.signal(Signal::SIGTERM);
        }
        let deadline = Instant::now() + Duration::from_millis(STOP_MS);
        while !self.processes.is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
            let told_to = |death: &Death| {
                death.status.success() || death.status.signal() == Some(Signal::SIGTERM as i32)
            };
            let deaths = self.deaths();
            unclean.extend(deaths.iter().filter(|d| !told_to(d)).map(Death::to_string));
        }
        for process in &self.processes {
            let (role, id) = (process.role, process.id);
            unclean.push(format!("{role} {id} did not stop within {STOP_MS} ms and was killed"));
        }
        unclean
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

/// Two sets of processes on the same files would spoil each other's registers before one of them
/// finds its port taken.
fn lock(paths: &Paths) -> Result<Flock<File>> {
    let path = paths.cluster_toml();
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, _)| {
        let dir = paths.dir().display();
        bad_input(format!("another `difato cluster up {dir}` is running; stop it first"))
    })
}

fn last_line(log: &Path, start: u64) -> io::Result<Option<String>> {
    let mut file = File::open(log)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(start.max(len.saturating_sub(LOG_TAIL_BYTES))))?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL_BYTES).read_to_end(&mut tail)?;
    let tail = String::from_utf8_lossy(&tail);
    let last = tail.lines().rev().find(|line| !line.trim().is_empty());
    // A log holds what a guest said, which may be anything.
    Ok(last.map(|line| line.chars().filter(|c| !c.is_control()).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_this_run_is_found() {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("log");
        std::fs::write(&log, "earlier run\n").unwrap();
        assert_eq!(last_line(&log, 12).unwrap(), None);
        std::fs::write(&log, "earlier run\nfirst\nsec\x1bond\n\n").unwrap();
        assert_eq!(last_line(&log, 12).unwrap().as_deref(), Some("second"));
        std::fs::write(&log, "x".repeat(20_000)).unwrap();
        assert_eq!(last_line(&log, 0).unwrap().unwrap().len(), LOG_TAIL_BYTES as usize);
    }

    #[test]
    fn a_death_says_who_how_and_where_to_look() {
        let death = |raw, last_line: Option<&str>| Death {
            role: Role::GuestReplica,
            id: ServerId(1),
            pid: 7,
            status: ExitStatus::from_raw(raw),
            log: "d/logs/guest-1.log".into(),
            last_line: last_line.map(str::to_owned),
        };
        let killed = death(9, Some("hello"));
        assert_eq!(
            killed.to_string(),
            "guest replica 1 (pid 7) was killed by signal 9 (SIGKILL); its log is \
             d/logs/guest-1.log, last line: hello"
        );
        assert_eq!(killed.bad_input(), None);
        let refused = death(2 << 8, Some("difato: port 1 is taken"));
        assert!(refused.to_string().contains("exit code 2"));
        assert_eq!(refused.bad_input().unwrap(), "guest replica 1: port 1 is taken");
    }
}
