//! The floor: how fast a bare token goes the way of a request on this machine.
//!
//! The ring has the eight hops of an ordered request ([`hops`](super::hops)), each between two
//! processes, over the same kind of channel and with as many bytes, and nothing else: no MAC, no
//! check, no bookkeeping, nobody but the next to send to, and every process blocks in the one read
//! that wakes it (which takes a system call less than the production processes' wait for any of
//! many). So what a request's latency is over the floor's is what the protocol and its processes
//! add to the machine's own scheduling, loopback TCP, sockets and copies. Each process is
//! [`floor_node`](super::floor_node).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::hops::HOPS;
use super::payload::Shape;
use super::table::{Latencies, Row};
use super::tally::Tally;

/// The scenario of its rows.
pub(crate) const FLOOR: &str = "floor";
/// Rounds that are measured at a time, at most.
const MAX_ROUNDS: u64 = 10_000;

/// What was measured of one shape's ring, possibly in several runs.
pub(crate) struct Floor {
    shape: Shape,
    servers: usize,
    tally: Tally,
}

impl Floor {
    /// Nothing yet, for requests of this shape in a cluster of so many servers.
    pub(crate) fn new(shape: Shape, servers: usize) -> Floor {
        Floor { shape, servers, tally: Tally::new(shape, 1, 1) }
    }

    /// Sets up a ring, and measures as many rounds as `requests` (within bounds). To be called on
    /// the main thread: a process of the ring ends with the thread that started it.
    pub(crate) async fn measure(&mut self, requests: u64) -> Result<()> {
        let rounds = requests.min(MAX_ROUNDS);
        let mut ring = Ring::new()?;
        let set_up = ring.set_up(self.shape, self.servers, rounds);
        let starter = set_up.context("cannot set up the ring of the floor")?;
        // Another thread waits, so that Ctrl-C is heard here; it ends as the ring does.
        let run = tokio::task::spawn_blocking(move || read_rounds(starter));
        let (latencies, elapsed) = run.await.context("the ring of the floor broke")??;
        let done = latencies.count();
        ensure!(done == rounds, "the ring of the floor broke after {done} of {rounds} rounds");
        self.tally.add(&latencies, elapsed, None);
        Ok(())
    }

    /// All runs as one row.
    pub(crate) fn row(&self) -> Row {
        self.tally.row(FLOOR)
    }

    /// The medians of the runs, and of all, in words.
    pub(crate) fn summary(&self) -> String {
        let each: Vec<String> = self.tally.p50s_us.iter().map(|us| format!("{us:.1}")).collect();
        let p50 = self.row().p50_us;
        format!("{}: {} us, {p50:.1} us in all", self.shape, each.join(" and "))
    }
}

fn read_rounds(starter: BufReader<ChildStdout>) -> Result<(Latencies, Duration)> {
    let (mut latencies, mut elapsed) = (Latencies::new(), Duration::ZERO);
    for line in starter.lines() {
        let line = line.context("the ring of the floor broke")?;
        let latency = Duration::from_nanos(line.parse().context("the ring of the floor broke")?);
        latencies.add(latency);
        elapsed += latency;
    }
    Ok((latencies, elapsed))
}

/// The nodes and the folder of their shared memory. Dropped, they end and it goes.
struct Ring {
    nodes: Vec<Child>,
    folder: tempfile::TempDir,
}

impl Ring {
    fn new() -> Result<Ring> {
        let folder = tempfile::Builder::new().prefix("difato-floor-").tempdir();
        Ok(Ring { nodes: Vec::new(), folder: folder.context("cannot make a temporary folder")? })
    }

    /// Starts the nodes and joins them. Returns where the first prints its latencies.
    fn set_up(
        &mut self,
        shape: Shape,
        servers: usize,
        rounds: u64,
    ) -> Result<BufReader<ChildStdout>> {
        let program = std::env::current_exe().context("cannot find this program itself")?;
        let mut outputs = Vec::new();
        for node in 0..HOPS {
            let mut child = command(&program, self.folder.path(), shape, servers, node, rounds)
                .spawn()
                .context("cannot start a process")?;
            outputs.push(BufReader::new(child.stdout.take().context("a pipe is missing")?));
            self.nodes.push(child);
        }
        let address = |output: &mut BufReader<ChildStdout>| {
            let mut line = String::new();
            output.read_line(&mut line).context("a node does not answer")?;
            ensure!(line.ends_with('\n'), "a node does not listen");
            Ok(line)
        };
        let addresses = outputs.iter_mut().map(address).collect::<Result<Vec<_>>>()?;
        for (i, node) in self.nodes.iter_mut().enumerate() {
            let mut input = node.stdin.take().context("a pipe is missing")?;
            let next = addresses[(i + 1) % HOPS].as_bytes();
            input.write_all(next).context("a node does not listen")?;
        }
        Ok(outputs.remove(0))
    }
}

fn command(
    program: &Path,
    folder: &Path,
    shape: Shape,
    servers: usize,
    node: usize,
    rounds: u64,
) -> Command {
    let mut command = Command::new(program);
    command.args(["floor-node", "--supervised-by", &std::process::id().to_string()]);
    command.args(["--node", &node.to_string(), "--shape", &shape.to_string()]);
    command.args(["--servers", &servers.to_string(), "--rounds", &rounds.to_string()]);
    command.arg("--folder").arg(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

impl Drop for Ring {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}
