//! One process of the ring that the floor is measured with: the hidden subcommand `floor-node`.
//!
//! It prints one line with the port that it listens on (0 if the hop to it is shared memory, whose
//! files it makes in the ring's folder), is told on stdin the same of the next, and then passes on
//! every token. Node 0, the client's place, starts each round, and at the end prints how long each
//! took, in nanoseconds, a line each.
//!
//! A token of a hop is as long as what passes there; its first eight bytes are the round's number.
//! Through shared memory it goes as in the product: words of a mapped file, the last store of them
//! a number that says which token is whole, and then one byte on a unix socket. The reader maps the
//! file for reading alone.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shared_registers::bell;
use shared_registers::words::{MappedReadOnly, MappedReadWrite, Words, WordsMut};

use super::hops::{HOPS, Hop, Kind, hops};
use crate::cli::FloorNodeArgs;
use crate::exit::bad_input;
use crate::role;

/// Rounds before those that are measured.
const WARMUP_ROUNDS: u64 = 200;
/// A node gives up when nothing comes for so long, in seconds.
const PATIENCE_S: u64 = 10;
/// The word that says which token is whole.
const NUMBER: usize = 0;
/// The token's first word: on another cache line, as records are.
const TOKEN: usize = 8;
/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Runs `difato floor-node`.
pub(crate) fn run(args: FloorNodeArgs) -> Result<()> {
    role::end_with(args.supervised_by)?;
    let hops = hops(args.shape, args.servers);
    let Some(out) = hops.get(args.node) else {
        return Err(bad_input(format!("--node {} is not below {HOPS}", args.node)));
    };
    let files = |node: usize| Files {
        words: args.folder.join(format!("words-{node}")),
        bell: args.folder.join(format!("bell-{node}")),
    };
    let before = hops[(args.node + HOPS - 1) % HOPS];
    let listener = Listener::open(before, &files(args.node))?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", listener.port()?)?;
    stdout.flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let port: u16 = line.trim().parse().context("no port of the next node on stdin")?;
    let next = Sender::connect(*out, port, &files((args.node + 1) % HOPS))?;
    let previous = listener.accept()?;
    if args.node > 0 {
        return pass_on(next, previous);
    }
    for latency in go_round(args.rounds, next, previous)? {
        writeln!(stdout, "{}", latency.as_nanos())?;
    }
    Ok(stdout.flush()?)
}

fn go_round(rounds: u64, mut next: Sender, mut previous: Receiver) -> Result<Vec<Duration>> {
    let mut latencies = Vec::with_capacity(rounds as usize);
    for round in 0..WARMUP_ROUNDS + rounds {
        let start = Instant::now();
        next.send(round)?;
        let came = previous.receive()?;
        ensure!(came == round, "round {came} came back instead of round {round}");
        if round >= WARMUP_ROUNDS {
            latencies.push(start.elapsed());
        }
    }
    Ok(latencies)
}

/// Passes on until the one before closes.
fn pass_on(mut next: Sender, mut previous: Receiver) -> Result<()> {
    while let Ok(round) = previous.receive() {
        if next.send(round).is_err() {
            break;
        }
    }
    Ok(())
}

/// What a hop of shared memory needs: both ends know the names.
struct Files {
    words: PathBuf,
    bell: PathBuf,
}

/// Where a node waits for the one before.
struct Listener {
    hop: Hop,
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener),
    Shared(UnixListener, File),
}

impl Listener {
    fn open(hop: Hop, files: &Files) -> Result<Listener> {
        let socket = match hop.kind {
            Kind::Tcp => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
                Socket::Tcp(listener.context("cannot listen")?)
            }
            Kind::Shared => {
                let words = make_words(&files.words, hop.bytes).context("cannot make a file")?;
                let listener = bell::listen(&files.bell).context("cannot listen")?;
                listener.set_nonblocking(false)?;
                Socket::Shared(listener, words)
            }
        };
        Ok(Listener { hop, socket })
    }

    fn port(&self) -> Result<u16> {
        match &self.socket {
            Socket::Tcp(listener) => Ok(listener.local_addr()?.port()),
            Socket::Shared(..) => Ok(0),
        }
    }

    fn accept(self) -> Result<Receiver> {
        let patience = Some(Duration::from_secs(PATIENCE_S));
        let channel = match self.socket {
            Socket::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_read_timeout(patience)?;
                In::Tcp(stream)
            }
            Socket::Shared(listener, file) => {
                let (bell, _) = listener.accept()?;
                bell.set_read_timeout(patience)?;
                let words = MappedReadOnly::map(&file).context("cannot map a file")?;
                In::Shared { bell, words, number: 0 }
            }
        };
        // Whole words come out of shared memory.
        let token = vec![0; self.hop.bytes.next_multiple_of(WORD)];
        Ok(Receiver { channel, bytes: self.hop.bytes, token })
    }
}

fn make_words(path: &Path, bytes: usize) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
    file.set_len((TOKEN * WORD + bytes.next_multiple_of(WORD)) as u64)?;
    Ok(file)
}

/// The end of a hop.
struct Receiver {
    channel: In,
    bytes: usize,
    token: Vec<u8>,
}

enum In {
    Tcp(TcpStream),
    Shared { bell: UnixStream, words: MappedReadOnly, number: u64 },
}

impl Receiver {
    /// Waits for a token and reads all of it. Returns its round.
    fn receive(&mut self) -> Result<u64> {
        match &mut self.channel {
            In::Tcp(stream) => stream.read_exact(&mut self.token[..self.bytes])?,
            In::Shared { bell, words, number } => {
                bell.read_exact(&mut [0])?;
                *number += 1;
                let there = words.load(NUMBER, Ordering::Acquire);
                ensure!(there == *number, "token {there} is there instead of token {number}");
                let count = self.token.len() / WORD;
                self.token.clear();
                words.copy_out(TOKEN, count, &mut self.token);
            }
        }
        let round = self.token.first_chunk().context("a token is too short")?;
        Ok(u64::from_le_bytes(*round))
    }
}

/// The beginning of a hop.
struct Sender {
    channel: Out,
    token: Vec<u8>,
}

enum Out {
    Tcp(TcpStream),
    Shared { bell: UnixStream, words: MappedReadWrite, number: u64 },
}

impl Sender {
    fn connect(hop: Hop, port: u16, files: &Files) -> Result<Sender> {
        let channel = match hop.kind {
            Kind::Tcp => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
                let stream = stream.context("cannot reach the next")?;
                stream.set_nodelay(true)?;
                Out::Tcp(stream)
            }
            Kind::Shared => {
                let bell = bell::connect(&files.bell).context("cannot reach the next")?;
                bell.set_nonblocking(false)?;
                let file = OpenOptions::new().read(true).write(true).open(&files.words)?;
                let words = MappedReadWrite::map(&file).context("cannot map a file")?;
                Out::Shared { bell, words, number: 0 }
            }
        };
        Ok(Sender { channel, token: vec![0; hop.bytes] })
    }

    /// Sends the token of this round, all of it.
    fn send(&mut self, round: u64) -> Result<()> {
        let start = self.token.first_chunk_mut().context("a token is too short")?;
        *start = round.to_le_bytes();
        match &mut self.channel {
            Out::Tcp(stream) => stream.write_all(&self.token)?,
            Out::Shared { bell, words, number } => {
                *number += 1;
                words.copy_in(TOKEN, &self.token);
                words.store(NUMBER, *number, Ordering::Release);
                bell.write_all(&[1])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_passes_both_kinds_of_channels_whole() {
        let temp = tempfile::tempdir().unwrap();
        let files = Files { words: temp.path().join("words"), bell: temp.path().join("bell") };
        for kind in [Kind::Tcp, Kind::Shared] {
            let hop = Hop { kind, bytes: 101 };
            let listener = Listener::open(hop, &files).unwrap();
            let mut sender = Sender::connect(hop, listener.port().unwrap(), &files).unwrap();
            let mut receiver = listener.accept().unwrap();
            for round in 7..9 {
                sender.token[100] = round as u8;
                sender.send(round).unwrap();
                assert_eq!(receiver.receive().unwrap(), round, "{kind:?}");
                assert_eq!(receiver.token[..101], sender.token, "{kind:?}");
            }
            drop(sender);
            assert!(receiver.receive().is_err(), "{kind:?}");
        }
    }
}
