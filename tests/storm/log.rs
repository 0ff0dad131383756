//! What a client or listener notes, as lines of a file: it may be killed at any moment, and what it
//! had noted until then must be there.
//!
//! A line begins with the time, in microseconds of the machine's monotonic clock, which is one for
//! all processes. Payloads are not written out: they follow from who wanted them ([`Wanted`]).

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use nix::time::{ClockId, clock_gettime};
use protocol::messages::ToClient;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shared_registers::crypto::Digest;
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber, ServerId};
use simulator::history::Event;

/// Now, by the clock that all processes share.
pub(crate) fn now() -> Micros {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every system has this clock");
    Micros(time.tv_sec() as u64 * 1_000_000 + time.tv_nsec() as u64 / 1000)
}

/// A message that a client wants ordered: no two are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) client: u32,
    pub(crate) ticket: u64,
    pub(crate) bytes: usize,
}

/// Bytes of the shortest payload: who wants it, which one, and its length.
pub(crate) const LEAST_BYTES: usize = 20;

impl Wanted {
    pub(crate) fn payload(self) -> Vec<u8> {
        let mut payload = Vec::with_capacity(self.bytes);
        payload.extend_from_slice(&self.client.to_le_bytes());
        payload.extend_from_slice(&self.ticket.to_le_bytes());
        payload.extend_from_slice(&(self.bytes as u64).to_le_bytes());
        let mut filling = vec![0; self.bytes - LEAST_BYTES];
        ChaCha8Rng::seed_from_u64(self.ticket).fill_bytes(&mut filling);
        payload.extend_from_slice(&filling);
        payload
    }

    /// Which message a payload is, if it is one to its last byte.
    fn of(payload: &[u8]) -> Option<Wanted> {
        let number = |range: std::ops::Range<usize>| {
            payload.get(range)?.try_into().ok().map(u64::from_le_bytes)
        };
        let client = u32::from_le_bytes(payload.get(..4)?.try_into().ok()?);
        let wanted = Wanted { client, ticket: number(4..12)?, bytes: number(12..20)? as usize };
        (wanted.bytes == payload.len() && wanted.payload() == payload).then_some(wanted)
    }
}

/// Where a client notes what happens to it.
pub(crate) struct Log {
    file: File,
    text: String,
}

impl Log {
    pub(crate) fn create(path: &Path) -> Log {
        Log { file: File::create(path).unwrap(), text: String::new() }
    }

    /// Notes a line; it is in the file after the next [`Self::flush`].
    fn note(&mut self, line: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.text, "{} {line}", now().0);
    }

    pub(crate) fn flush(&mut self) {
        self.file.write_all(self.text.as_bytes()).expect("room for what clients note");
        self.text.clear();
    }

    pub(crate) fn started(&mut self) {
        self.note(format_args!("S"));
        self.flush();
    }

    pub(crate) fn listens(&mut self, from: u64) {
        self.note(format_args!("L {from}"));
        self.flush();
    }

    /// It is in the file before anything is sent.
    pub(crate) fn wants(&mut self, wanted: Wanted) {
        self.note(format_args!("B {} {}", wanted.ticket, wanted.bytes));
        self.flush();
    }

    pub(crate) fn told(&mut self, server: ServerId, me: ClientId, message: &ToClient) {
        let (id, order, digest, time) = match message {
            ToClient::Reply(reply) => {
                let id = OrderId { client: me, session: reply.session, count: reply.count };
                (id, reply.order, reply.digest, None)
            }
            ToClient::Delivery(d) => (d.id, d.order, d.digest, Some(d.time.0)),
            _ => return,
        };
        let (OrderId { client, session, count }, order) = (id, order.0);
        let time = time.map_or("-".to_owned(), |time| time.to_string());
        let digest = hex(&digest.0);
        self.note(format_args!("T {server} {client} {session} {count} {order} {digest} {time}"));
    }

    pub(crate) fn answered(&mut self, ticket: u64, id: OrderId, order: u64, reply: Option<&[u8]>) {
        let reply = reply.map_or("-".to_owned(), |reply| format!("x{}", hex(reply)));
        self.note(format_args!("A {ticket} {} {} {order} {reply}", id.session, id.count));
        self.flush();
    }

    pub(crate) fn heard(&mut self, message: &client::Message) {
        let client::Message { order, client, session, count, time, payload } = message;
        let payload = match Wanted::of(payload) {
            Some(Wanted { client, ticket, bytes }) => format!("{client}:{ticket}:{bytes}"),
            None => format!("x{}", hex(payload)),
        };
        let time = time.0;
        self.note(format_args!("H {order} {client} {session} {count} {time} {payload}"));
    }

    pub(crate) fn failed(&mut self, what: &str) {
        self.note(format_args!("F {what}"));
        self.flush();
    }

    /// It has nothing more to do.
    pub(crate) fn ended(&mut self) {
        self.note(format_args!("E"));
        self.flush();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("two digits")).collect()
}

/// A line, read back.
pub(crate) enum Line {
    Happened(Micros, Event),
    /// Something that the client library says has failed.
    Failed(String),
    Ended,
}

/// Reads back a line of the client `me`.
pub(crate) fn parse(me: ClientId, line: &str) -> Line {
    let mut words = line.split(' ');
    let mut word = || words.next().unwrap_or_else(|| panic!("a line that ends early: {line}"));
    let at = Micros(number(word()));
    let event = match word() {
        "S" => Event::ClientStarted { client: me, session: 0 },
        "L" => Event::ListenerStarted { client: me, from: OrderNumber(number(word())) },
        "B" => {
            let (ticket, bytes) = (number(word()), number(word()) as usize);
            let payload = Wanted { client: me.0, ticket, bytes }.payload();
            Event::Broadcast { client: me, ticket, payload }
        }
        "T" => {
            let server = ServerId(number(word()) as u16);
            let client = ClientId(number(word()) as u32);
            let id = OrderId { client, session: number(word()), count: number(word()) };
            let order = OrderNumber(number(word()));
            let digest = Digest(unhex(word()).try_into().expect("32 bytes"));
            let time = Some(word()).filter(|time| *time != "-").map(|time| Micros(number(time)));
            Event::Told { client: me, server, id, order, digest, time }
        }
        "A" => {
            let ticket = number(word());
            let id = OrderId { client: me, session: number(word()), count: number(word()) };
            let order = OrderNumber(number(word()));
            let reply = word().strip_prefix('x').map(unhex);
            Event::Answered { client: me, ticket, id, order, reply }
        }
        "H" => {
            let order = OrderNumber(number(word()));
            let client = ClientId(number(word()) as u32);
            let id = OrderId { client, session: number(word()), count: number(word()) };
            let time = Micros(number(word()));
            Event::Heard { client: me, order, id, time, payload: payload(word()) }
        }
        "F" => return Line::Failed(line.to_owned()),
        "E" => return Line::Ended,
        _ => panic!("client {me} noted something else: {line}"),
    };
    Line::Happened(at, event)
}

fn payload(word: &str) -> Vec<u8> {
    if let Some(bytes) = word.strip_prefix('x') {
        return unhex(bytes);
    }
    let numbers: Vec<u64> = word.split(':').map(number).collect();
    let [client, ticket, bytes] = numbers[..] else { panic!("no payload: {word}") };
    Wanted { client: client as u32, ticket, bytes: bytes as usize }.payload()
}

fn number(word: &str) -> u64 {
    word.parse().unwrap_or_else(|_| panic!("not a number: {word}"))
}

/// A log that is read while it grows.
pub(crate) struct Tail {
    file: File,
    client: ClientId,
    rest: Vec<u8>,
}

impl Tail {
    pub(crate) fn open(path: &Path, client: u32) -> Tail {
        Tail { file: File::open(path).unwrap(), client: ClientId(client), rest: Vec::new() }
    }

    /// What was noted since the last call. A line that its writer was killed in is left out.
    pub(crate) fn read(&mut self) -> Vec<Line> {
        self.file.read_to_end(&mut self.rest).unwrap();
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        let whole = String::from_utf8(whole).expect("clients note text");
        whole.lines().map(|line| parse(self.client, line)).collect()
    }
}

#[test]
fn what_is_noted_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let (mut log, mut tail) = (Log::create(&path), Tail::open(&path, 3));
    let wanted = Wanted { client: 3, ticket: 9, bytes: 1000 };
    let (client, order) = (ClientId(3), OrderNumber(7));
    let id = OrderId { client, session: 5, count: 2 };
    log.wants(wanted);
    log.answered(9, id, 7, Some(&[1, 255]));
    log.answered(9, id, 7, None);
    let message = |payload| {
        let (session, count, time) = (5, 2, Micros(8));
        client::Message { order, client, session, count, time, payload }
    };
    let mut forged = wanted.payload();
    forged[999] ^= 1;
    log.heard(&message(wanted.payload()));
    log.heard(&message(forged.clone()));
    log.ended();
    let events: Vec<Event> = tail.read().into_iter().filter_map(happened).collect();
    let heard = |payload| Event::Heard { client, order, id, time: Micros(8), payload };
    let answered = |reply| Event::Answered { client, ticket: 9, id, order, reply };
    let payload = wanted.payload();
    let broadcast = Event::Broadcast { client, ticket: 9, payload: payload.clone() };
    let all =
        [broadcast, answered(Some(vec![1, 255])), answered(None), heard(payload), heard(forged)];
    assert_eq!(events, all);
}

#[cfg(test)]
fn happened(line: Line) -> Option<Event> {
    match line {
        Line::Happened(_, event) => Some(event),
        Line::Failed(_) | Line::Ended => None,
    }
}
