//! The command's arguments. The comments on the items below are what `--help` says.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use shared_registers::cluster::{Durability, MAX_SPIN_US};
use shared_registers::limits::{MAX_CLIENTS, MAX_SERVERS};

use crate::bench::payload::Shape;

/// Puts clients' messages in one order on 2f+1 servers, although f of them may be compromised.
#[derive(Parser)]
#[command(name = "difato", version = VERSION)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

macro_rules! faulty_version {
    () => {
        "faulty sequencer: for tests"
    };
}

/// What a build says with `--version` whose sequencer is faulty.
pub(crate) const FAULTY_VERSION: &str = faulty_version!();

/// What `--version` says. A build for figures and tests must never pass for another.
const VERSION: &str = if guest_replica::FAULTY_SEQUENCER {
    concat!(env!("CARGO_PKG_VERSION"), " (", faulty_version!(), ")")
} else {
    env!("CARGO_PKG_VERSION")
};

/// The subcommands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a cluster, or run one on this machine.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Run the trusted process of one server.
    HostAgent(RoleArgs),
    /// Run the guest process of one server.
    GuestReplica(GuestArgs),
    /// Have messages ordered, and print the order number of each.
    Send(SendArgs),
    /// Print all messages in their order.
    Listen(ListenArgs),
    /// Measure latency and throughput.
    Bench(BenchArgs),
    /// Ask every server how it is.
    Status(StatusArgs),
    /// Run the guest of one server on its host, and replace it by a clean one from time to time.
    Guard(GuardArgs),
    /// The guest's command, as the guard runs it.
    #[command(hide = true)]
    Guarded(GuardedArgs),
    /// Say that a server is gone for good, so that no other waits for it.
    Retire(RetireArgs),
    /// See it all: run a cluster, measure it, kill its sequencer, go on.
    Demo(DemoArgs),
    /// One process of the ring that `bench --floor` measures.
    #[command(hide = true)]
    FloorNode(FloorNodeArgs),
}

/// The subcommands of `difato cluster`.
#[derive(Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make the folder of a new cluster: cluster.toml and everybody's keys.
    Init(InitArgs),
    /// Run every process of a cluster until Ctrl-C; logs go to DIR/logs.
    Up(UpArgs),
}

/// `difato cluster init`.
#[derive(Args)]
pub(crate) struct InitArgs {
    /// The folder to make; it must not exist yet (or be empty).
    pub(crate) dir: PathBuf,
    /// How many faulty servers to tolerate; there will be 2F+1.
    #[arg(long, value_name = "F", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=MAX_F))]
    pub(crate) f: u16,
    /// How many clients get keys; their ids are 0 to N-1.
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..=MAX_CLIENTS as i64))]
    pub(crate) clients: u32,
    /// What the guests replicate.
    #[arg(long, value_enum, default_value_t = ApplicationName::EchoSized)]
    pub(crate) application: ApplicationName,
    /// Where the host agents listen, by server [default: free ports on 127.0.1.1, 127.0.1.2, ...].
    #[arg(long, value_name = "A:P,...", value_delimiter = ',')]
    pub(crate) trusted: Option<Vec<SocketAddr>>,
    /// Where the guests listen, by server [default: free ports on 127.0.2.1, 127.0.2.2, ...].
    #[arg(long, value_name = "A:P,...", value_delimiter = ',')]
    pub(crate) payload: Option<Vec<SocketAddr>>,
    /// What a record outlives before others see it.
    #[arg(long, value_enum, default_value_t = DurabilityName::Process)]
    pub(crate) durability: DurabilityName,
    /// How long host agents and guests look for work before they sleep, in microseconds: for
    /// machines with a core for each process.
    #[arg(long, value_name = "US", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(0..=MAX_SPIN_US))]
    pub(crate) spin_us: u64,
}

/// `--durability`.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum DurabilityName {
    /// The host agent's process; after a power failure it asks all other hosts.
    Process,
    /// The machine: it is synced to disk first.
    Disk,
}

impl From<DurabilityName> for Durability {
    fn from(name: DurabilityName) -> Durability {
        match name {
            DurabilityName::Process => Durability::Process,
            DurabilityName::Disk => Durability::Disk,
        }
    }
}

/// The largest `--f`.
pub(crate) const MAX_F: i64 = (MAX_SERVERS as i64 - 1) / 2;

/// The applications that come with DifATo.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ApplicationName {
    /// Replies of the size that the request asks for, for benchmarks.
    EchoSized,
    /// A table of keys and values.
    Kv,
    /// The reply is the message's order number.
    Log,
}

impl ApplicationName {
    /// Its name in `cluster.toml`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ApplicationName::EchoSized => "echo-sized",
            ApplicationName::Kv => "kv",
            ApplicationName::Log => "log",
        }
    }
}

/// `difato cluster up`.
#[derive(Args)]
pub(crate) struct UpArgs {
    /// The cluster's folder.
    pub(crate) dir: PathBuf,
}

/// `difato host-agent`.
#[derive(Args)]
pub(crate) struct RoleArgs {
    /// The cluster's folder.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Which server.
    #[arg(long)]
    pub(crate) id: u16,
    /// The process that started this one; if it ends, so does this one.
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) supervised_by: Option<i32>,
}

/// `difato guard`.
#[derive(Args)]
#[command(after_help = TURNS)]
pub(crate) struct GuardArgs {
    /// The cluster's folder.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// Which server.
    #[arg(long)]
    pub(crate) id: u16,
    /// Replace the guest once in each PERIOD (as in 90s, 30m, 12h, 1d), in this server's turn
    /// [default: only when it is convicted].
    #[arg(long, value_name = "PERIOD", value_parser = humantime::parse_duration)]
    pub(crate) rejuvenate: Option<Duration>,
    /// The process that started this one; if it ends, so does this one.
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) supervised_by: Option<i32>,
    /// The command that runs the guest from a clean image, such as vm/run-guest and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

const TURNS: &str = "\
The servers take turns by the time of day, each a part of PERIOD: so their clocks must not differ by
half of that, and PERIOD must be the same for all. A guest is replaced in the first half of its turn,
once all others but f-1 (and those that are retired) are seen at work: each has written since the turn
before was half over, was not silent for 10 s while f+1 others wrote, and its host is connected. In a
cluster that orders nothing nobody writes, so nobody is replaced, whatever PERIOD says. One request
each half turn (PERIOD / 4f+2), of any client, is enough; that a guest alone is gone, and not its host,
shows only at the next request: see docs/operations.md. A guest that was the sequencer and proposed
what it must not is replaced at once, when f+1 servers say so; one that ends by itself is started
again.";

/// `difato guarded`.
#[derive(Args)]
pub(crate) struct GuardedArgs {
    /// The guard's process; if it ends, so does this one.
    #[arg(long, value_name = "PID")]
    pub(crate) guard: i32,
    /// The command.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<OsString>,
}

/// `difato guest-replica`.
#[derive(Args)]
pub(crate) struct GuestArgs {
    /// The cluster's folder.
    #[arg(long, required_unless_present = "vm")]
    pub(crate) dir: Option<PathBuf>,
    /// Which server.
    #[arg(long, required_unless_present = "vm")]
    pub(crate) id: Option<u16>,
    /// As the init of a virtual machine, which the host tells everything else (see `vm/`).
    #[arg(long, conflicts_with_all = ["dir", "id", "supervised_by"])]
    pub(crate) vm: bool,
    /// The process that started this one; if it ends, so does this one.
    #[arg(long, value_name = "PID", hide = true)]
    pub(crate) supervised_by: Option<i32>,
}

/// `difato send`.
#[derive(Args)]
pub(crate) struct SendArgs {
    /// The cluster's folder.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// As which client.
    #[arg(long, value_name = "C")]
    pub(crate) client: u32,
    /// The messages, in the order in which to send them.
    #[arg(value_name = "MESSAGE", conflicts_with = "lines")]
    pub(crate) messages: Vec<OsString>,
    /// Send every line of standard input as a message, without its line break.
    #[arg(long)]
    pub(crate) lines: bool,
}

/// `difato listen`.
#[derive(Args)]
#[command(after_help = ESCAPES)]
pub(crate) struct ListenArgs {
    /// The cluster's folder.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// As which client.
    #[arg(long, value_name = "C")]
    pub(crate) client: u32,
    /// The order number to begin with.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) from: u64,
    /// End after so many messages [default: go on until Ctrl-C].
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// One JSON object a line; `payload` is base64.
    #[arg(long)]
    pub(crate) json: bool,
}

const ESCAPES: &str = "\
A line is ORDER_NUMBER CLIENT PAYLOAD. The payload stands as it is where it is UTF-8 text; each
byte of a control character, and each that is not UTF-8, is written as \\xNN (two hexadecimal
digits), and a backslash as \\\\, so that no two payloads look the same.";

/// `difato bench`.
#[derive(Args)]
#[command(after_help = PAYLOADS)]
pub(crate) struct BenchArgs {
    /// The folder of a running cluster; its application must be echo-sized [default: start a
    /// cluster on this machine, in a temporary folder, and remove it afterwards].
    #[arg(long, conflicts_with_all = ["f", "durability", "spin_us"])]
    pub(crate) dir: Option<PathBuf>,
    /// As which client of that cluster; with --clients, the first of them.
    #[arg(long, value_name = "C", requires = "dir")]
    pub(crate) client: Option<u32>,
    /// What is measured.
    #[command(flatten)]
    pub(crate) measure: Measure,
    /// Requests of each payload that come first and are not measured.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) warmup: u64,
    /// Requests of each client that are under way at a time.
    #[arg(long, value_name = "K", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=MAX_OUTSTANDING as i64))]
    pub(crate) outstanding: u16,
    /// Also write the table to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Also measure the floor, before and after the payloads: a bare token that passes around 8
    /// processes, over the same kinds of channels and in the same sizes as a request of each payload.
    #[arg(long)]
    pub(crate) floor: bool,
    /// How many clients send at a time.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=MAX_CLIENTS as i64))]
    pub(crate) clients: u16,
    /// How many faulty servers the cluster that is started tolerates [default: 1].
    #[arg(long, value_name = "F", value_parser = clap::value_parser!(u16).range(1..=MAX_F))]
    pub(crate) f: Option<u16>,
    /// What a record outlives there before others see it [default: process].
    #[arg(long, value_enum)]
    pub(crate) durability: Option<DurabilityName>,
    /// Also trace up to 2000 requests of each payload, one at a time, and print where their time
    /// goes, hop by hop. Needs the operator's key, and all servers on this machine.
    #[arg(long)]
    pub(crate) trace: bool,
    /// Measure what there are targets for, on clusters of its own, and say which are reached;
    /// --requests scales all of it.
    #[arg(long, conflicts_with_all = ["dir", "client", "payloads", "warmup", "outstanding", "floor",
          "clients", "durability", "spin_us", "trace"])]
    pub(crate) targets: bool,
    /// How long host agents and guests of the cluster that is started look for work before they
    /// sleep, in microseconds [default: 0].
    #[arg(long, value_name = "US", value_parser = clap::value_parser!(u64).range(0..=MAX_SPIN_US))]
    pub(crate) spin_us: Option<u64>,
    /// What else is measured, on clusters of its own.
    #[command(flatten)]
    pub(crate) figures: Figures,
}

/// What `bench` measures on clusters of its own, and draws.
#[derive(Args)]
pub(crate) struct Figures {
    /// Kill the sequencer's guest N times under load, then the sequencer's host N times, and show
    /// for how long service paused.
    #[arg(long, value_name = "N", conflicts_with_all = [&OTHERS[..], &DRAWN].concat(),
          value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) failover: Option<u16>,
    /// Put full load on a cluster for so long, and count the sequencer changes: there must be none.
    #[arg(long, value_name = "SECONDS", conflicts_with_all = [&OTHERS[..], &DRAWN].concat(),
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) steady: Option<u64>,
    /// Measure each payload with a sequencer that sends one wrong proposal in ten, too: PROGRAM is
    /// difato, built with `--features faulty-sequencer`. With it 5 requests come first, whatever
    /// --warmup says: more would end its turn before anything is measured.
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = OTHERS)]
    pub(crate) faulty: Option<PathBuf>,
    /// Which guests are PROGRAM.
    #[arg(long, value_enum, requires = "faulty", default_value_t = FaultyServers::One)]
    pub(crate) faulty_servers: FaultyServers,
    /// Measure how cost grows with servers (f = 1, 2, 3), clients (1 to 256), payloads (0 to 1 MiB)
    /// and batches. Its payloads are its own; of each load --requests are measured, or more if many
    /// are under way.
    #[arg(long, conflicts_with_all = [&OTHERS[..], &["payloads"]].concat())]
    pub(crate) scale: bool,
    /// Draw what is measured: latency by payload, throughput against latency (with more than
    /// --requests where many are under way), and what --faulty and --scale measure.
    #[arg(long, value_name = "FILE.svg", conflicts_with_all = OTHERS)]
    pub(crate) plot: Option<PathBuf>,
}

/// Arguments of `bench` that say on what to measure, or how; [`Figures`] are measured as they are.
const OTHERS: [&str; 10] = [
    "dir",
    "client",
    "clients",
    "outstanding",
    "floor",
    "f",
    "durability",
    "spin_us",
    "trace",
    "targets",
];

/// Arguments that mean nothing where neither payloads nor figures are measured.
const DRAWN: [&str; 7] =
    ["payloads", "requests", "warmup", "faulty", "faulty_servers", "scale", "plot"];

/// `--faulty-servers`.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum FaultyServers {
    /// Server 0, the first sequencer.
    One,
    /// Every server.
    All,
}

/// What `bench` and `demo` measure.
#[derive(Args)]
pub(crate) struct Measure {
    /// Requests measured for each payload.
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) requests: u64,
    /// Request and reply sizes in bytes.
    #[arg(long, value_name = "REQUEST/REPLY,...", value_delimiter = ',',
          default_value = DEFAULT_PAYLOADS)]
    pub(crate) payloads: Vec<Shape>,
}

/// The largest `--outstanding`: what a client may have under way.
pub(crate) const MAX_OUTSTANDING: usize = 256;

const DEFAULT_PAYLOADS: &str = "0/0,0/4096,4096/4096";

const PAYLOADS: &str = "\
A request carries 8 bytes more than its size says: `ECHO` and the size of the reply that it asks
for. The JSON file holds an array of objects with the keys scenario (`cluster`, or what is special:
`floor`; with --targets also `f dead`, `f dead, the sequencer among them`, `disk`, and `process` in
turns with that; `5 servers` with --scale; `faulty sequencer, 1 of 3 servers`; `steady`; with
--failover `gap after the death of the sequencer's host agent`, where requests are deaths and times
those between two answers), payload, requests,
clients, outstanding (of each), mean_us, p50_us, p99_us, max_us, requests_per_s, payload_mb_per_s
(request bytes, in 10^6), and cpu_s_per_million (CPU seconds per million requests: guests and
host_agents, null for a cluster that was running, and load, which is this process; null as a whole
for the floor). With --trace an object for each payload follows: payload; traced (requests);
missing and not_rising (those left out); own_votes (V is R, see the table); hops, an array of hop
(its name), mean_us, p50_us, p99_us, share (of the whole; the means add up to it); whole (mean_us,
p50_us, p99_us); servers, an array of server, decisive_replies, decisive_votes, replies, and reply
(mean_us, p50_us, p99_us, from a request's submission to this server's reply).";

/// `difato status`.
#[derive(Args)]
#[command(after_help = STATUS_KEYS)]
pub(crate) struct StatusArgs {
    /// The cluster's folder.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// A JSON array instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
}

const STATUS_KEYS: &str = "\
Keys of the JSON objects, one for each server: id; up; why, if it is not up; term; sequencer (of that
term); committed (batch); delivered (order number); behind (orders, the furthest server's less this
one's); chain (after the last delivered batch); stable (null, or the last stable checkpoint: term,
batch, and order, the last that its snapshot covers, null if this server does not hold it); window (used
and limit: what the orders proposed since then weigh); rings (by server: used and bytes of its stream's
ring here); held (bytes of history, snapshot, orders); catching_up (null if it is at work, or stage:
reading, looking or fetching; parts and all_parts, bytes and all_bytes of the snapshot; from, the server
that sent something last); counters.";

/// `difato retire`.
#[derive(Args)]
#[command(after_help = COMING_BACK)]
pub(crate) struct RetireArgs {
    /// The cluster's folder. Where servers are on several machines: this machine's, and then each
    /// other's.
    #[arg(long)]
    pub(crate) dir: PathBuf,
    /// The server.
    #[arg(long)]
    pub(crate) id: u16,
}

const COMING_BACK: &str = "\
Nobody listens to a retired server any more, nor waits for it when recovering. It comes back if it
is started with its folder DIR/registers/ID removed: then it is not retired any more.";

/// `difato demo`.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// How many faulty servers to tolerate; there will be 2F+1.
    #[arg(long, value_name = "F", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=MAX_F))]
    pub(crate) f: u16,
    /// What is measured.
    #[command(flatten)]
    pub(crate) measure: Measure,
}

/// `difato floor-node`.
#[derive(Args)]
pub(crate) struct FloorNodeArgs {
    /// Its place in the ring; 0 starts the rounds.
    #[arg(long)]
    pub(crate) node: usize,
    /// What the tokens are as long as.
    #[arg(long)]
    pub(crate) shape: Shape,
    /// In a cluster of so many servers.
    #[arg(long)]
    pub(crate) servers: usize,
    /// Rounds that are timed.
    #[arg(long)]
    pub(crate) rounds: u64,
    /// Where the shared memory is.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// The process that started this one; if it ends, so does this one.
    #[arg(long, value_name = "PID")]
    pub(crate) supervised_by: i32,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
