//! The floor: how fast a bare token goes around a ring of processes on this machine.
//!
//! An ordered request passes through about as many processes one after the other as the ring has,
//! so its latency over the floor's is what the protocol adds to the machine's own scheduling and
//! loopback TCP. Each node is this program with the hidden subcommand `floor-node`: it prints the
//! port that it listens on, is told on stdin the port of the next, and then passes on every token.
//! One node starts each round and, at the end, prints how long each took.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::table::{Latencies, Row};
use crate::cli::FloorNodeArgs;
use crate::role;

/// Processes in the ring.
pub(crate) const NODES: usize = 8;
/// Bytes of the token.
pub(crate) const TOKEN_BYTES: usize = 64;
/// Rounds that are measured at most.
const MAX_ROUNDS: u64 = 10_000;
/// Rounds before them that are not.
const WARMUP_ROUNDS: u64 = 200;
/// A node gives up when nothing comes for so long, in seconds.
const PATIENCE_S: u64 = 10;

/// What was measured, possibly in several runs.
pub(crate) struct Floor {
    latencies: Latencies,
    elapsed: Duration,
    /// The median of each run in microseconds.
    pub(crate) p50s_us: Vec<f64>,
}

impl Floor {
    /// Nothing yet.
    pub(crate) fn new() -> Floor {
        Floor { latencies: Latencies::new(), elapsed: Duration::ZERO, p50s_us: Vec::new() }
    }

    /// Sets up a ring, and measures as many rounds as `requests` (within bounds).
    pub(crate) fn measure(&mut self, requests: u64) -> Result<()> {
        let rounds = requests.min(MAX_ROUNDS);
        let mut ring = Ring(Vec::new());
        let starter = ring.set_up(rounds).context("cannot set up the ring of the floor")?;
        let mut run = Latencies::new();
        for line in starter.lines() {
            let line = line.context("the ring of the floor broke")?;
            let ns = line.parse().context("the ring of the floor broke")?;
            let latency = Duration::from_nanos(ns);
            run.add(latency);
            self.latencies.add(latency);
            self.elapsed += latency;
        }
        let row = run.row(String::new(), 1, Duration::ZERO);
        let done = row.requests;
        ensure!(done == rounds, "the ring of the floor broke after {done} of {rounds} rounds");
        self.p50s_us.push(row.p50_us);
        Ok(())
    }

    /// All runs as one row.
    pub(crate) fn row(&self) -> Row {
        self.latencies.row("floor".into(), 1, self.elapsed)
    }
}

/// The nodes. Dropped, they end.
struct Ring(Vec<Child>);

impl Ring {
    /// Starts the nodes and joins them. Returns where the first prints its latencies.
    fn set_up(&mut self, rounds: u64) -> Result<BufReader<ChildStdout>> {
        let program = std::env::current_exe().context("cannot find this program itself")?;
        let mut outputs = Vec::new();
        for i in 0..NODES {
            let mut command = Command::new(&program);
            command.args(["floor-node", "--supervised-by", &std::process::id().to_string()]);
            if i == 0 {
                command.args(["--rounds", &rounds.to_string()]);
            }
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut node = command.spawn().context("cannot start a process")?;
            outputs.push(BufReader::new(node.stdout.take().context("a pipe is missing")?));
            self.0.push(node);
        }
        let port = |output: &mut BufReader<ChildStdout>| {
            let mut line = String::new();
            output.read_line(&mut line).context("a node does not answer")?;
            line.trim().parse::<u16>().context("a node does not listen")
        };
        let ports = outputs.iter_mut().map(port).collect::<Result<Vec<_>>>()?;
        for (i, node) in self.0.iter_mut().enumerate() {
            let mut input = node.stdin.take().context("a pipe is missing")?;
            writeln!(input, "{}", ports[(i + 1) % NODES]).context("a node does not listen")?;
        }
        Ok(outputs.remove(0))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for node in &mut self.0 {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Runs `difato floor-node`.
pub(crate) fn run_node(args: FloorNodeArgs) -> Result<()> {
    role::end_with(args.supervised_by)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", listener.local_addr()?.port())?;
    stdout.flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let port: u16 = line.trim().parse().context("no port of the next node on stdin")?;
    let next = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot reach the next")?;
    let (previous, _) = listener.accept()?;
    for stream in [&next, &previous] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(PATIENCE_S)))?;
    }
    match args.rounds {
        Some(rounds) => {
            for latency in go_round(rounds, next, previous)? {
                writeln!(stdout, "{}", latency.as_nanos())?;
            }
            Ok(stdout.flush()?)
        }
        None => pass_on(next, previous),
    }
}

fn go_round(rounds: u64, mut next: TcpStream, mut previous: TcpStream) -> Result<Vec<Duration>> {
    let mut token = [7; TOKEN_BYTES];
    let mut latencies = Vec::new();
    for round in 0..WARMUP_ROUNDS + rounds {
        let start = Instant::now();
        next.write_all(&token)?;
        previous.read_exact(&mut token)?;
        if round >= WARMUP_ROUNDS {
            latencies.push(start.elapsed());
        }
    }
    Ok(latencies)
}

/// Passes on until the one before closes.
fn pass_on(mut next: TcpStream, mut previous: TcpStream) -> Result<()> {
    let mut token = [0; TOKEN_BYTES];
    while previous.read_exact(&mut token).is_ok() && next.write_all(&token).is_ok() {}
    Ok(())
}
