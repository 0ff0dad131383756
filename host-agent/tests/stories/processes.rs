//! Three host agents as real processes, on loopback addresses and in a folder of their own; the
//! tests play the guests. Every wait is for a condition, and bounded.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use host_agent::MAX_STRANGERS;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use shared_registers::bell;
use shared_registers::cluster::{Cluster, Paths};
use shared_registers::guest_side::{GuestRegisters, Next};
use shared_registers::host_side::Counter;
use shared_registers::ids::{Seq, ServerId};
use shared_registers::layout::{LinkState, SET, read};
use shared_registers::words::{MappedReadOnly, MappedReadWrite, News};

use crate::world::accept;

const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) struct Folder {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) paths: Paths,
}

impl Folder {
    /// Describes a cluster of three, with addresses that are free, and makes its keys.
    pub(crate) fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path());
        // Bound all at once, so that they differ.
        let free: Vec<_> =
            (0..3).map(|i| TcpListener::bind(format!("127.0.1.{}:0", i + 1)).unwrap()).collect();
        let mut text = format!(
            "cluster_id = \"{}\"\nf = 1\nclients = 1\napplication = \"log\"\n\
             [limits]\nmax_payload_bytes = 1000\nring_bytes = {}\nwrite_ring_bytes = {}\n",
            "07".repeat(32),
            4 << 20,
            4 << 20
        );
        for (id, listener) in free.iter().enumerate() {
            let trusted = listener.local_addr().unwrap();
            let (id_line, payload) = (format!("id = {id}"), format!("127.0.2.{}:1", id + 1));
            text += &format!(
                "[[server]]\n{id_line}\ntrusted = \"{trusted}\"\npayload = \"{payload}\"\n"
            );
        }
        fs::write(paths.cluster_toml(), text).unwrap();
        fs::create_dir(paths.keys()).unwrap();
        for id in 0..3u16 {
            let mut text = format!("orders = [\"{}\"]\n", "11".repeat(32));
            for server in (0..3u16).filter(|server| *server != id) {
                let key = format!("{:02x}", 0x20 + id + server).repeat(32);
                text += &format!("[[links]]\nserver = {server}\nkey = \"{key}\"\n");
            }
            let path = paths.host_keys(ServerId(id));
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            fs::create_dir_all(paths.registers(ServerId(id))).unwrap();
            fs::write(paths.fresh(ServerId(id)), "").unwrap();
        }
        Folder { dir, paths }
    }

    pub(crate) fn command(&self, id: u16) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host-agent"));
        command.arg("--dir").arg(self.dir.path()).args(["--id", &id.to_string()]);
        command
    }

    pub(crate) fn start(&self, id: u16) -> Agent {
        let path = self.dir.path().join(format!("log-{id}"));
        let log = OpenOptions::new().create(true).append(true).open(path).unwrap();
        Agent(self.command(id).stderr(Stdio::from(log)).stdin(Stdio::null()).spawn().unwrap())
    }

    pub(crate) fn log(&self, id: u16) -> String {
        fs::read_to_string(self.dir.path().join(format!("log-{id}"))).unwrap_or_default()
    }

    /// Starts an agent that must refuse; returns its sentence.
    fn refusal(&self, id: u16) -> String {
        refusal(self.command(id))
    }

    fn word(&self, id: u16, word: usize) -> u64 {
        let mut bytes = [0; 8];
        let file = File::open(self.paths.read_file(ServerId(id))).unwrap();
        file.read_exact_at(&mut bytes, 8 * word as u64).unwrap();
        u64::from_le_bytes(bytes)
    }
}

/// Starts an agent that must refuse; returns its sentence.
pub(crate) fn refusal(mut command: Command) -> String {
    let mut agent = Agent(command.stderr(Stdio::piped()).spawn().unwrap());
    until("an agent that refuses", || agent.0.try_wait().unwrap().is_some());
    let mut text = String::new();
    agent.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(agent.0.wait().unwrap().code(), Some(2), "{text}");
    text.lines().last().unwrap_or_default().to_owned()
}

pub(crate) struct Agent(Child);

impl Agent {
    /// Sends a signal; returns the exit code, if it exits by itself.
    pub(crate) fn stop(self, signal: Signal) -> Option<i32> {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
        self.ends()
    }

    /// Waits until it has ended; returns the exit code, if it exited by itself.
    pub(crate) fn ends(mut self) -> Option<i32> {
        until("an agent that stops", || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap().code()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Guest {
    registers: GuestRegisters<MappedReadOnly, MappedReadWrite>,
    bell: UnixStream,
    pub(crate) written: u64,
    /// Bodies read, by writer.
    bodies: Vec<Vec<Vec<u8>>>,
}

impl Guest {
    pub(crate) fn attach(folder: &Folder, id: u16) -> Guest {
        let id = ServerId(id);
        let cluster = Cluster::load(&folder.paths).unwrap();
        let (mut bell, path) = (None, folder.paths.bell(id));
        until("the doorbell", || {
            // The socket is there before the files are; being rung says that all is.
            bell = bell::connect(&path).ok();
            let rung = bell.as_mut().map(|bell| {
                bell.set_nonblocking(false)?;
                bell.set_read_timeout(Some(Duration::from_secs(5)))?;
                let rung = bell.read(&mut [0; 1]);
                bell.set_nonblocking(true).and(rung)
            });
            rung.is_some_and(|rung| rung.is_ok_and(|count| count == 1))
        });
        let read = File::open(folder.paths.read_file(id)).unwrap();
        let mut how = OpenOptions::new();
        let write = how.read(true).write(true).open(folder.paths.write_file(id)).unwrap();
        let (read, write) =
            (MappedReadOnly::map(&read).unwrap(), MappedReadWrite::map(&write).unwrap());
        let registers = GuestRegisters::attach(cluster.geometry(id), read, write).unwrap();
        Guest { registers, bell: bell.unwrap(), written: 0, bodies: vec![vec![]; 3] }
    }

    pub(crate) fn write(&mut self, body: &[u8]) {
        self.written += 1;
        self.registers.write(Seq(self.written), body).unwrap();
        if self.registers.must_ring() {
            self.bell.write_all(&[1]).unwrap();
        }
    }

    fn read(&mut self) {
        for writer in ServerId::all(3) {
            while let Next::Record(record) = self.registers.next(writer) {
                self.bodies[writer.index()].push(record.body.to_vec());
                self.registers.advance(writer);
            }
        }
    }

    /// Sleeps as a guest does, woken by the bell alone, until so many records of `writer` are here.
    pub(crate) fn await_records(&mut self, writer: usize, count: usize) {
        let start = Instant::now();
        loop {
            self.read();
            if self.bodies[writer].len() >= count {
                return;
            }
            self.registers.doze(News::ALL);
            if !self.registers.has_news(News::ALL) {
                let mut fds = [PollFd::new(self.bell.as_fd(), PollFlags::POLLIN)];
                let left = PATIENCE.saturating_sub(start.elapsed());
                poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
            }
            self.registers.wake();
            match self.bell.read(&mut [0; 64]) {
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                Ok(bytes) => assert_ne!(bytes, 0, "the agent closed the doorbell"),
            }
            assert!(start.elapsed() < PATIENCE, "no record {count} of server {writer}");
        }
    }

    fn counter(&self, counter: Counter) -> u64 {
        self.registers.counters()[counter as usize]
    }

    fn link(&self, to: usize) -> LinkState {
        self.registers.hints().nth(to).unwrap().state
    }
}

#[test]
fn what_one_guest_writes_all_guests_read_through_kills_and_restarts() {
    let folder = Folder::new();
    let mut agents: Vec<_> = (0..3).map(|id| Some(folder.start(id))).collect();
    let mut guests: Vec<_> = (0..3).map(|id| Guest::attach(&folder, id)).collect();
    for upto in 1..=50 {
        guests[0].write(&accept(upto));
        for guest in &mut guests {
            guest.await_records(0, upto as usize);
        }
    }
    until("all links", || (1..3).all(|to| guests[0].link(to) == LinkState::Up));

    // R8, and R5 while a host is down.
    agents[0].take().unwrap().stop(Signal::SIGKILL);
    until("word that host 0 is down", || guests[1].link(0) == LinkState::Lost);
    guests[1].write(&accept(1));
    guests[2].await_records(1, 1);
    // Its guest goes on writing; the host takes it when it is back, once (R3, R6).
    guests[0].written += 1;
    let (seq, body) = (Seq(guests[0].written), accept(51));
    guests[0].registers.write(seq, &body).unwrap();
    agents[0] = Some(folder.start(0));
    let fresh = Guest::attach(&folder, 0);
    guests[0] = Guest { written: 51, ..fresh };
    for guest in &mut guests {
        guest.await_records(0, 51);
        guest.await_records(1, 1);
        assert_eq!(guest.bodies[0], (1..=51).map(accept).collect::<Vec<_>>());
    }

    // A clean stop, and a start after it.
    assert_eq!(agents[2].take().unwrap().stop(Signal::SIGTERM), Some(0));
    assert_eq!(folder.word(2, read::CLEAN), SET);
    assert!(!folder.paths.bell(ServerId(2)).exists());
    agents[2] = Some(folder.start(2));
    guests[2] = Guest::attach(&folder, 2);
    assert_eq!(folder.word(2, read::CLEAN), 0);
    guests[0].write(&accept(52));
    guests[2].await_records(0, 52);
    let log = folder.log(2);
    for line in ["host agent 2 started", "link to host 0 up", "host agent 2 stopped"] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[test]
fn noise_on_the_trusted_port_is_counted_and_the_agents_go_on() {
    let folder = Folder::new();
    let agents: Vec<_> = (0..3).map(|id| folder.start(id)).collect();
    let mut guests: Vec<_> = (0..3).map(|id| Guest::attach(&folder, id)).collect();
    let address = Cluster::load(&folder.paths).unwrap().servers[0].trusted;
    // More silent strangers than are kept, then noise.
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    for byte in 0..20u8 {
        let mut noise = TcpStream::connect(address).unwrap();
        let _ = noise.write_all(&[byte.wrapping_mul(37); 500]);
    }
    until("noise that is counted", || guests[0].counter(Counter::LinkRefused) >= 20);
    let open = fs::read_dir(format!("/proc/{}/fd", agents[0].0.id())).unwrap().count();
    assert!(open < MAX_STRANGERS + 20, "{open} files are open");
    guests[0].write(&accept(1));
    for guest in &mut guests {
        guest.await_records(0, 1);
    }
    drop(silent);
    let log = folder.log(0);
    assert!(log.contains("refused 127."), "{log}");
    assert!(log.matches("refused").count() < 10, "not a line for each: {log}");
}

#[test]
fn a_host_that_hangs_is_given_up_and_found_again() {
    let folder = Folder::new();
    let agents: Vec<_> = (0..3).map(|id| folder.start(id)).collect();
    let mut guests: Vec<_> = (0..3).map(|id| Guest::attach(&folder, id)).collect();
    until("the link", || guests[0].link(1) == LinkState::Up);
    let hung = Pid::from_raw(agents[1].0.id() as i32);
    kill(hung, Signal::SIGSTOP).unwrap();
    until("word that host 1 hangs", || guests[0].link(1) == LinkState::Lost);
    guests[0].write(&accept(1));
    guests[2].await_records(0, 1);
    kill(hung, Signal::SIGCONT).unwrap();
    guests[1].await_records(0, 1);
    until("the link again", || guests[0].link(1) == LinkState::Up);
}

#[test]
fn what_a_user_gets_wrong_is_one_sentence() {
    let folder = Folder::new();
    let agent = folder.start(0);
    drop(Guest::attach(&folder, 0));
    let said = folder.refusal(0);
    assert!(said.contains("another host agent of server 0 is running"), "{said}");
    let said = folder.refusal(3);
    assert!(said.contains("unknown server 3"), "{said}");

    let taken = Cluster::load(&folder.paths).unwrap().servers[1].trusted;
    let listener = TcpListener::bind(taken).unwrap();
    let said = folder.refusal(1);
    let expected = format!("host agent 1 cannot listen on {taken} (server 1's trusted address in");
    assert!(said.starts_with(&expected) && said.contains("already in use"), "{said}");
    drop(listener);

    // A file that another configuration made is a mistake, not a loss: it is left as it is.
    agent.stop(Signal::SIGTERM);
    let path = folder.paths.cluster_toml();
    let right = fs::read_to_string(&path).unwrap();
    let wrong = format!("\nring_bytes = {}", 4 << 20);
    fs::write(&path, right.replacen(&wrong, "\nring_bytes = 8388608", 1)).unwrap();
    let said = folder.refusal(0);
    assert!(said.contains("belongs to another server, cluster or configuration"), "{said}");
    fs::write(&path, right).unwrap();
    drop(folder.start(0));

    let keys = folder.paths.host_keys(ServerId(1));
    let text = fs::read_to_string(&keys).unwrap();
    fs::write(&keys, text.replace("server = 2", "server = 0")).unwrap();
    let said = folder.refusal(1);
    assert!(said.contains("no link key with server 2"), "{said}");
}
