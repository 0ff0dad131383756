//! A cluster of real processes, made by `difato cluster init` and started one by one. Shared by the
//! test targets `cluster` and `storm`.

pub(crate) mod clients;
pub(crate) mod command;
pub(crate) mod memory;
pub(crate) mod permit;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use client::StatusError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::messages::Status;
use shared_registers::cluster::{Cluster as Description, OperatorKeys, Paths, load_keys};
use tempfile::TempDir;

use command::{DIFATO, Said, difato};
use permit::Permit;

/// Nothing here takes longer, unless it never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The bound on the time without service after the sequencer's guest was killed.
pub(crate) const SERVICE_GAP: Duration = Duration::from_secs(2);
/// A server has so long to answer a question.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// How often conditions are looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Room for all records of a test.
const RING_BYTES: u64 = 16 << 20;
/// Lines of each log that a failure prints.
const LOG_LINES: usize = 15;

/// Waits for a condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(LOOK);
    }
}

thread_local! {
    /// What stands before the command that runs this thread's test again.
    static SETTINGS: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The command that runs this thread's test again needs these environment variables, and may be
/// another profile's.
pub(crate) fn reproduce_with(settings: String) {
    SETTINGS.with(|known| *known.borrow_mut() = settings);
}

/// Makes every failure print the command that reproduces it.
pub(crate) fn print_reproduction_on_failure() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            earlier(info);
            // The test harness names a test's thread after it, unless all run on the main one.
            let thread = thread::current();
            let settings = SETTINGS.with(|known| known.borrow().clone());
            let release = if cfg!(debug_assertions) { "" } else { "--release " };
            let target = env!("CARGO_CRATE_NAME");
            let command = format!(
                "{settings}cargo test {release}-p difato --test {target} -- --exact --nocapture"
            );
            match thread.name() {
                Some("main") => eprintln!("reproduce: {command} NAME-OF-THE-TEST"),
                Some(test) => eprintln!("reproduce: {command} {test}"),
                None => {}
            }
        }));
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    Host,
    Guest,
}

impl Role {
    fn subcommand(self) -> &'static str {
        match self {
            Role::Host => "host-agent",
            Role::Guest => "guest-replica",
        }
    }
}

/// What a cluster shall be.
pub(crate) struct Builder {
    f: u16,
    application: &'static str,
    settings: Vec<(&'static str, String)>,
    clients: u32,
    guest: Option<Program>,
}

/// Makes the command that runs a guest, of the cluster in a folder, otherwise than as
/// `difato guest-replica`.
pub(crate) type Program = fn(&Path, u16) -> Command;

impl Builder {
    pub(crate) fn new() -> Builder {
        let settings = vec![("ring_bytes", RING_BYTES.to_string())];
        Builder { f: 1, application: "echo-sized", settings, clients: 4, guest: None }
    }

    pub(crate) fn clients(mut self, clients: u32) -> Builder {
        self.clients = clients;
        self
    }

    pub(crate) fn guest(mut self, program: Program) -> Builder {
        self.guest = Some(program);
        self
    }

    pub(crate) fn f(mut self, f: u16) -> Builder {
        self.f = f;
        self
    }

    pub(crate) fn application(mut self, name: &'static str) -> Builder {
        self.application = name;
        self
    }

    pub(crate) fn set(mut self, key: &'static str, value: impl ToString) -> Builder {
        self.settings.push((key, value.to_string()));
        self
    }

    /// A cluster's folder with nobody at work in it.
    pub(crate) fn init(self) -> Folder {
        print_reproduction_on_failure();
        let temp = tempfile::Builder::new().prefix("difato-test-").tempdir().unwrap();
        let dir = temp.path().join("c");
        let (f, clients) = (self.f.to_string(), self.clients.to_string());
        let [trusted, payload] = addresses(2 * self.f + 1);
        let said = difato(["cluster", "init", path(&dir), "--f", &f])
            .args(["--application", self.application, "--clients", &clients])
            .args(["--trusted", &trusted, "--payload", &payload])
            .run();
        assert_eq!(said.code, Some(0), "{said}");
        let folder = Folder { temp, dir };
        for (key, value) in &self.settings {
            folder.set(key, value);
        }
        folder
    }

    /// A cluster that serves, all hosts connected.
    pub(crate) fn start(self) -> Cluster {
        let permit = Permit::wait();
        let guest = self.guest;
        let folder = self.init();
        let description = Description::load(&folder.paths()).unwrap();
        fs::create_dir(folder.paths().logs()).unwrap();
        let processes = BTreeMap::new();
        let mut cluster = Cluster { folder, description, processes, guest, _permit: permit };
        for role in [Role::Host, Role::Guest] {
            for id in cluster.ids() {
                cluster.start(role, id);
            }
        }
        let peers = cluster.n() as u64 - 1;
        until("all servers serve and all hosts are connected", || {
            let connected = |said: &Result<Status, _>| {
                said.as_ref().is_ok_and(|status| counter(status, "host_link_ups") >= peers)
            };
            cluster.ask().iter().all(connected)
        });
        cluster
    }
}

/// Addresses for the trusted and the payload network that no other cluster of any test uses, nor any
/// program by chance: those of this process on loopback, below the ports that the system gives away.
/// (A free port that was found may be another's by the time that a server is started again.)
fn addresses(n: u16) -> [String; 2] {
    static NEXT: AtomicU16 = AtomicU16::new(10_000);
    let process = std::process::id();
    let network = format!("127.{}.{}", 1 + process / 250 % 250, process % 250);
    let one = || {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        let servers = (1..=n).map(|server| format!("{network}.{server}:{port}"));
        servers.collect::<Vec<_>>().join(",")
    };
    [one(), one()]
}

/// A path as an argument. Those of the tests are text.
pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A cluster's folder.
pub(crate) struct Folder {
    temp: TempDir,
    pub(crate) dir: PathBuf,
}

impl Folder {
    pub(crate) fn paths(&self) -> Paths {
        Paths::new(&self.dir)
    }

    /// A folder outside of the cluster's, for what a test needs besides.
    pub(crate) fn beside(&self) -> &Path {
        self.temp.path()
    }

    /// Sets a value of `cluster.toml` that is there already.
    pub(crate) fn set(&self, key: &str, value: &str) {
        let path = self.paths().cluster_toml();
        let text = fs::read_to_string(&path).unwrap();
        let start = format!("{key} = ");
        assert!(text.lines().any(|line| line.starts_with(&start)), "no {key} in {text}");
        let edited: Vec<String> = text
            .lines()
            .map(|line| match line.starts_with(&start) {
                true => format!("{start}{value}"),
                false => line.to_owned(),
            })
            .collect();
        fs::write(&path, edited.join("\n") + "\n").unwrap();
    }

    /// A subcommand of a client's or the operator's on this cluster.
    pub(crate) fn command(&self, subcommand: &str, args: &[&str]) -> Said {
        difato([subcommand, "--dir", path(&self.dir)]).args(args.iter().copied()).run()
    }

    /// All servers' answers to the operator's question.
    pub(crate) fn ask(&self) -> Vec<Result<Status, StatusError>> {
        let paths = self.paths();
        let cluster = Description::load(&paths).unwrap();
        let keys: OperatorKeys = load_keys(&paths.operator_keys()).unwrap();
        clients::runtime().block_on(client::query_status(&cluster, &keys, STATUS_PATIENCE))
    }

    fn log_tails(&self) -> String {
        let mut text = String::new();
        let Ok(logs) = fs::read_dir(self.paths().logs()) else { return text };
        let mut logs: Vec<_> = logs.flatten().map(|entry| entry.path()).collect();
        logs.sort();
        for log in logs {
            let all = fs::read(&log).unwrap_or_default();
            let all = String::from_utf8_lossy(&all);
            let lines: Vec<_> = all.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
            let _ = writeln!(text, "--- {}\n{}", log.display(), tail.join("\n"));
        }
        text
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the ends of the logs:\n{}", self.log_tails());
        }
    }
}

/// The value of a counter.
pub(crate) fn counter(status: &Status, name: &str) -> u64 {
    let found = status.counters.iter().find(|(n, _)| n == name);
    found.unwrap_or_else(|| panic!("no counter {name}")).1
}

/// Processes that run, or did, in a folder. All are killed when this is dropped.
pub(crate) struct Cluster {
    pub(crate) folder: Folder,
    pub(crate) description: Description,
    processes: BTreeMap<(Role, u16), Child>,
    guest: Option<Program>,
    _permit: Permit,
}

impl Cluster {
    pub(crate) fn n(&self) -> usize {
        self.description.n()
    }

    pub(crate) fn ids(&self) -> std::ops::Range<u16> {
        0..self.n() as u16
    }

    /// Starts a process that does not run.
    pub(crate) fn start(&mut self, role: Role, id: u16) {
        assert!(!self.processes.contains_key(&(role, id)), "{role:?} {id} runs");
        let log = self.folder.paths().logs().join(format!("{}-{id}.log", role.subcommand()));
        let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = self
            .command(role, id)
            // Should the tests themselves be killed, nothing stays behind: one that is stopped then
            // is woken by the hang-up of its orphaned group.
            .process_group(0)
            // The log's end shall say what it died of, not where from.
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.processes.insert((role, id), child);
    }

    fn command(&self, role: Role, id: u16) -> Command {
        if let (Role::Guest, Some(program)) = (role, self.guest) {
            return program(&self.folder.dir, id);
        }
        let mut command = Command::new(DIFATO);
        command
            .args([role.subcommand(), "--dir", path(&self.folder.dir), "--id", &id.to_string()])
            .args(["--supervised-by", &std::process::id().to_string()]);
        command
    }

    /// Whether a process is there; it may have ended by itself.
    pub(crate) fn has(&self, role: Role, id: u16) -> bool {
        self.processes.contains_key(&(role, id))
    }

    /// The process id of one that is there.
    pub(crate) fn pid(&self, role: Role, id: u16) -> i32 {
        self.processes[&(role, id)].id() as i32
    }

    /// Has a process stand still (SIGSTOP).
    pub(crate) fn pause(&self, role: Role, id: u16) {
        kill(Pid::from_raw(self.pid(role, id)), Signal::SIGSTOP).unwrap();
    }

    /// Has it go on (SIGCONT).
    pub(crate) fn resume(&self, role: Role, id: u16) {
        kill(Pid::from_raw(self.pid(role, id)), Signal::SIGCONT).unwrap();
    }

    /// Kills a process at once (SIGKILL).
    pub(crate) fn kill(&mut self, role: Role, id: u16) {
        let mut child = self.processes.remove(&(role, id)).expect("a process that runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Kills all processes at once (SIGKILL).
    pub(crate) fn kill_all(&mut self) {
        for child in self.processes.values_mut() {
            child.kill().unwrap();
        }
        for (_, mut child) in std::mem::take(&mut self.processes) {
            child.wait().unwrap();
        }
    }

    /// Has a process stop (SIGTERM).
    pub(crate) fn stop(&mut self, role: Role, id: u16) {
        let child = self.processes.get_mut(&(role, id)).expect("a process that runs");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        until("a process that was told to stop ends", || child.try_wait().unwrap().is_some());
        let status = child.wait().unwrap();
        self.processes.remove(&(role, id));
        assert!(status.success(), "{role:?} {id} stopped with {status}");
    }

    /// Takes note of a process that ended by itself, with exit code 2.
    pub(crate) fn reap(&mut self, role: Role, id: u16) {
        let mut child = self.processes.remove(&(role, id)).expect("a process that was started");
        until("a process ends", || child.try_wait().unwrap().is_some());
        assert_eq!(child.wait().unwrap().code(), Some(2), "{role:?} {id}");
    }

    /// Starts a process anew and waits until its server answers.
    pub(crate) fn restart(&mut self, role: Role, id: u16) {
        self.start(role, id);
        until("a server answers again", || self.ask()[usize::from(id)].is_ok());
    }

    /// No process has ended that was not killed.
    pub(crate) fn assert_all_run(&mut self) {
        for ((role, id), child) in &mut self.processes {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{role:?} {id} has died: {ended:?}");
        }
    }

    pub(crate) fn ask(&self) -> Vec<Result<Status, StatusError>> {
        self.folder.ask()
    }

    /// A server's answer.
    pub(crate) fn status(&self, id: u16) -> Status {
        self.ask().swap_remove(usize::from(id)).unwrap_or_else(|e| panic!("server {id}: {e}"))
    }

    pub(crate) fn counter(&self, id: u16, name: &str) -> u64 {
        counter(&self.status(id), name)
    }

    /// The sum of a counter over all servers.
    pub(crate) fn total(&self, name: &str) -> u64 {
        self.ids().map(|id| self.counter(id, name)).sum()
    }

    /// The highest term that a server is in.
    pub(crate) fn term(&self) -> u64 {
        let said = self.ask();
        said.iter().flatten().map(|status| status.term.0).max().expect("a server that answers")
    }

    /// The sequencer of that term.
    pub(crate) fn sequencer(&self) -> u16 {
        (self.term() % self.n() as u64) as u16
    }

    /// The server that comes `steps` after the sequencer.
    pub(crate) fn after_sequencer(&self, steps: u16) -> u16 {
        (self.sequencer() + steps) % self.n() as u16
    }

    /// Waits until a server has delivered so much.
    pub(crate) fn await_delivered(&self, id: u16, order: u64) {
        until(&format!("server {id} has delivered order {order}"), || {
            let said = self.ask().swap_remove(usize::from(id));
            said.is_ok_and(|status| status.delivered.0 >= order)
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.processes.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
