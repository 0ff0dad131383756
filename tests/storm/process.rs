//! The processes that are made of this target itself: guests with the simulator's application,
//! clients that send, and clients that listen. They are the test [`as_a_process`], run by its name
//! with the rest in the environment.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use client::{Client, ClientConfig, ClientError};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shared_registers::ids::{ClientId, OrderNumber};
use simulator::application::Tally;

use crate::log::{LEAST_BYTES, Log, Wanted};
use crate::support::clients::runtime;

/// A request waits for ever: how long it may is for the storm to say.
const DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// Listeners write out what they noted so often.
const FLUSH: Duration = Duration::from_millis(20);
/// Tickets of one life of a client.
pub(crate) const TICKETS: u64 = 1 << 32;

/// A command that runs this target as a process of the given kind, tied to this process.
fn command(kind: &str, dir: &Path, id: u32) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "process::as_a_process", "--ignored", "--nocapture"])
        .env("STORM_PROCESS", kind)
        .env("STORM_DIR", dir)
        .env("STORM_ID", id.to_string())
        .env("STORM_PARENT", std::process::id().to_string())
        .env_remove("RUST_BACKTRACE")
        .process_group(0)
        .stdin(Stdio::null());
    command
}

/// A guest.
pub(crate) fn guest(dir: &Path, id: u16) -> Command {
    command("guest", dir, u32::from(id))
}

/// What a client does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    /// Sends for as long as its standard input is open; then waits for all answers and ends.
    Send {
        /// What its messages and pauses are drawn from.
        seed: u64,
        /// Which of its lives this is.
        life: u64,
        /// Most requests in flight.
        in_flight: usize,
        /// Between two requests, at most.
        pause_ms: u64,
    },
    /// Hears everything from a place on, until its standard input is closed.
    Listen {
        /// The first place.
        from: u64,
    },
}

/// A client that notes everything in the file `log`.
pub(crate) fn client(dir: &Path, id: u32, task: Task, log: &Path) -> Command {
    let (kind, numbers) = match task {
        Task::Send { seed, life, in_flight, pause_ms } => {
            ("send", format!("{seed} {life} {in_flight} {pause_ms}"))
        }
        Task::Listen { from } => ("listen", from.to_string()),
    };
    let mut command = command(kind, dir, id);
    command.env("STORM_TASK", numbers).env("STORM_LOG", log).stdin(Stdio::piped());
    command
}

#[test]
#[ignore = "not a test, but what this target is run as to be a process of a cluster"]
fn as_a_process() {
    let Ok(kind) = std::env::var("STORM_PROCESS") else { return };
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let parent = variable("STORM_PARENT").parse().unwrap();
    prctl::set_pdeathsig(Signal::SIGKILL).unwrap();
    if getppid() != Pid::from_raw(parent) {
        return; // It has ended before that took hold.
    }
    let dir = PathBuf::from(variable("STORM_DIR"));
    let id: u32 = variable("STORM_ID").parse().unwrap();
    if kind == "guest" {
        let options = guest_replica::Options { dir, id: id as u16 };
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        guest_replica::run_with(options, Tally::default).unwrap();
        return;
    }
    let log = Arc::new(Mutex::new(Log::create(Path::new(&variable("STORM_LOG")))));
    let task = variable("STORM_TASK");
    let numbers: Vec<u64> = task.split(' ').map(|number| number.parse().unwrap()).collect();
    let config = ClientConfig::load(&dir, id).unwrap();
    let done = runtime().block_on(async {
        match (kind.as_str(), &numbers[..]) {
            ("send", &[seed, life, in_flight, pause_ms]) => {
                let rng = ChaCha8Rng::seed_from_u64(seed ^ (u64::from(id) << 48) ^ (life << 32));
                let sender = Sender { id, life, pause_ms, rng, log: log.clone() };
                sender.run(config, in_flight as usize).await
            }
            ("listen", &[from]) => listen(config, id, from, &log).await,
            _ => panic!("no such process: {kind} {task}"),
        }
    });
    let mut log = log.lock().unwrap();
    match done {
        Ok(()) => log.ended(),
        Err(error) => log.failed(&error.to_string().replace('\n', " ")),
    }
}

/// What is set once the standard input is closed.
fn end_of_input() -> Arc<AtomicBool> {
    let ended = Arc::<AtomicBool>::default();
    let told = ended.clone();
    thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        told.store(true, Ordering::Relaxed);
    });
    ended
}

/// Has everything noted that any server tells this client.
fn witnessed(mut config: ClientConfig, id: u32, log: &Arc<Mutex<Log>>) -> ClientConfig {
    let log = log.clone();
    config.witness = Some(Arc::new(move |server, message| {
        log.lock().unwrap().told(server, ClientId(id), message);
    }));
    config
}

struct Sender {
    id: u32,
    life: u64,
    pause_ms: u64,
    rng: ChaCha8Rng,
    log: Arc<Mutex<Log>>,
}

impl Sender {
    async fn run(mut self, config: ClientConfig, in_flight: usize) -> Result<(), ClientError> {
        let mut config = witnessed(config, self.id, &self.log);
        (config.deadline, config.max_in_flight) = (DEADLINE, in_flight);
        let ended = end_of_input();
        self.log.lock().unwrap().started();
        let client = Client::connect(config);
        let mut waiting = tokio::task::JoinSet::new();
        let mut ticket = self.life * TICKETS;
        while !ended.load(Ordering::Relaxed) {
            ticket += 1;
            let wanted = Wanted { client: self.id, ticket, bytes: self.bytes() };
            self.log.lock().unwrap().wants(wanted);
            let pending = client.submit(wanted.payload()).await?;
            let log = self.log.clone();
            waiting.spawn(async move {
                match pending.await {
                    Ok(reply) => {
                        let order = reply.order.0;
                        log.lock().unwrap().answered(ticket, reply.id, order, Some(&reply.bytes));
                        Ok(())
                    }
                    Err(ClientError::Gone(gone)) => {
                        log.lock().unwrap().answered(ticket, gone.id, gone.order.0, None);
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            });
            while let Some(answered) = waiting.try_join_next() {
                answered.expect("noting does not panic")?;
            }
            let pause = self.rng.random_range(0..=self.pause_ms);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        while let Some(answered) = waiting.join_next().await {
            answered.expect("noting does not panic")?;
        }
        Ok(())
    }

    /// Most messages are small, and a few very large.
    fn bytes(&mut self) -> usize {
        match self.rng.random_range(0..1000) {
            0..800 => self.rng.random_range(LEAST_BYTES..256),
            800..980 => self.rng.random_range(256..4096),
            _ => self.rng.random_range(4096..65_536),
        }
    }
}

async fn listen(
    config: ClientConfig,
    id: u32,
    from: u64,
    log: &Arc<Mutex<Log>>,
) -> Result<(), ClientError> {
    let ended = end_of_input();
    log.lock().unwrap().started();
    log.lock().unwrap().listens(from);
    let client = Client::connect(witnessed(config, id, log));
    let mut messages = client.subscribe(OrderNumber(from));
    let mut flushed = Instant::now();
    while !ended.load(Ordering::Relaxed) {
        let heard = tokio::time::timeout(FLUSH, messages.next()).await;
        let mut log = log.lock().unwrap();
        if let Ok(message) = heard {
            log.heard(&message?);
        }
        if flushed.elapsed() >= FLUSH {
            log.flush();
            flushed = Instant::now();
        }
    }
    Ok(())
}
