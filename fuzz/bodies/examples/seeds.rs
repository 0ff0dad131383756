//! Writes the seeds that no fuzzer would find by itself: one right encoding of everything that a
//! decoder takes. The rest of the corpus was found from these by the fuzzer, see `fuzz/README.md`.
//!
//! `cargo run -p fuzz-bodies --example seeds` writes them to `fuzz/corpus/<target>/seed-*`.

use std::fs;
use std::io;
use std::path::Path;

use protocol::messages::{
    Body as Bytes, Delivery, OrderMessage, Refusal, Reply, Status, ToClient, ToGuest, ToServer,
    encode,
};
use protocol::reader::{Base, Mark, Start, WriterStart};
use protocol::trace::{Moment, Point, Points};
use serde::Serialize;
use shared_registers::cluster::{
    ClientKeys, Cluster, GuestKeys, HostKeys, OperatorKeys, PeerKey, ServerAddresses,
};
use shared_registers::crypto::{ClusterId, Digest, MacKey, Secret};
use shared_registers::ids::{
    Batch, ClientId, Micros, OrderId, OrderNumber, Position, Seq, ServerId, Term,
};
use shared_registers::record::{
    Accept, Body, Change, Checkpoint, Propose, Reason, Record, Stamp, Vote,
};

const N: usize = 3;
const ID: OrderId = OrderId { client: ClientId(1), session: 2, count: 3 };

fn main() -> io::Result<()> {
    write("to_server", to_server())?;
    write("to_client", to_client())?;
    let (bodies, records) = records();
    // The first byte: leave the CRC alone.
    let record = bodies.iter().chain(&records).map(|bytes| [&[0], &bytes[..]].concat());
    write("record", record.collect())?;
    let mut frames: Vec<_> = records.iter().map(|bytes| [&[0, 2], &bytes[..]].concat()).collect();
    frames.push([&[0, 1, 5, 0, 0, 0, 2, 0, 0, 0], &[0; 8 * N][..]].concat());
    // A JUMP: three words that name a checkpoint and its digest, and per stream a cut and a term.
    let words = [1_u64, 9, 7, 7, 7, 7, 0, 0, 4, 2, 5, 0];
    let words = words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    frames.push([&[0, 3], &words[..]].concat());
    write("peer_frame", frames)?;
    write("snapshot", snapshots())?;
    // Asks; and answers, out of the old snapshot, out of the new one, altered.
    write("fetch", vec![vec![0; 64], [[0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 2, 9]].concat().repeat(9)])?;
    write("cluster_toml", vec![print(&cluster())])?;
    write("key_file", key_files())
}

fn write(target: &str, seeds: Vec<Vec<u8>>) -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(target);
    fs::create_dir_all(&folder)?;
    for (i, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(format!("seed-{i:02}")), seed)?;
    }
    Ok(())
}

fn key(byte: u8) -> Secret {
    Secret::new([byte; 32])
}

fn order() -> OrderMessage {
    let keys: Vec<MacKey> = (0..N as u8).map(|host| key(host).mac_key()).collect();
    OrderMessage::new(&ClusterId([6; 32]), ID, b"hello".to_vec(), &keys)
}

fn to_server() -> Vec<Vec<u8>> {
    let messages = [
        ToServer::Order(order()),
        ToServer::FetchReply { session: 2, count: 3 },
        ToServer::Subscribe { from: OrderNumber(1), messages: 1024, bytes: 1 << 20 },
        ToServer::Credit { messages: u64::MAX, bytes: u64::MAX },
        ToServer::FetchDelivery { order: OrderNumber(4) },
        ToServer::Status,
        ToServer::Trace { from: 7 },
    ];
    let mut seeds: Vec<_> = messages.iter().map(encode).collect();
    let digest = Digest([5; 32]);
    let to_guests = [
        ToGuest::Forward(order()),
        ToGuest::Fetch { digest, from: 8192 },
        ToGuest::Piece { digest, from: 8192, total: 8197, bytes: b"hello"[..].into() },
        ToGuest::Gone { digest },
    ];
    seeds.extend(to_guests.iter().map(encode));
    seeds
}

/// Starts at a base and past it, with a part of each kind that holds nothing.
fn snapshots() -> Vec<Vec<u8>> {
    let mark = Mark { seq: Seq(4), chain: Digest([1; 32]), history: 9 };
    let writer =
        WriterStart { read: Seq(5), change: Some((Seq(3), Term(1))), vote: Some(Batch(5)) };
    let mut start = Start {
        term: Term(2),
        opening: Seq(4),
        base: Base { batch: Batch(5), parent: Some(Term(0)), chain: Digest([2; 32]) },
        batch: (Batch(5), mark),
        floor: (Batch(5), mark),
        kept: Vec::new(),
        next_dead: true,
        writers: vec![writer; N],
    };
    let mut seeds = Vec::new();
    for (batch, kept) in [(5, 0), (7, 1)] {
        (start.batch.0, start.kept) = (Batch(batch), vec![mark; kept]);
        let mut seed = Vec::new();
        start.encode(&mut seed);
        seed.extend([0_u64, 7, 0, 1].iter().flat_map(|word| word.to_le_bytes()));
        seeds.push(seed.clone());
        for kind in 0..3 {
            seed.extend([kind, 4, 0, 0, 0, 0, 0, 0, 0]);
        }
        seeds.push(seed);
    }
    seeds
}

fn to_client() -> Vec<Vec<u8>> {
    let reply = |body| {
        let (digest, order) = (Digest([7; 32]), OrderNumber(5));
        ToClient::Reply(Reply { session: 2, count: 3, order, digest, term: Term(1), body })
    };
    let delivery = Delivery {
        order: OrderNumber(5),
        id: ID,
        digest: Digest([7; 32]),
        time: Micros(9),
        payload: Bytes::Here(b"hello"[..].into()),
    };
    let status = Status { counters: vec![("orders_taken".to_owned(), 7)], ..Status::default() };
    let messages = [
        reply(Bytes::Elsewhere),
        reply(Bytes::Here(b"yes"[..].into())),
        reply(Bytes::Gone),
        ToClient::Delivery(delivery),
        ToClient::TooOld { from: OrderNumber(1), first: OrderNumber(9) },
        ToClient::Stale { session: 4, count: 1 },
        ToClient::Refused { session: 2, count: 3, reason: Refusal::TooLarge },
        ToClient::Status(Box::new(status)),
        ToClient::Trace(trace()),
    ];
    messages.iter().map(encode).collect()
}

/// A point of each kind.
fn trace() -> Points {
    let (writer, seq, time) = (ServerId(1), Seq(2), Micros(9));
    let moments = [
        Moment::Received(ID),
        Moment::Written(seq),
        Moment::Read { writer, seq, time, order: Some(ID) },
        Moment::Read { writer, seq, time, order: None },
        Moment::Delivered(ID),
        Moment::Replied(ID),
    ];
    let point = |moment| Point { woke_ns: 8, at_ns: 9, moment };
    Points { first: 7, end: 13, points: moments.map(point).to_vec() }
}

/// Bodies of every kind, and a record of each.
fn records() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let message = order();
    let view = message.view(ServerId(0));
    let cited = |writer| Position { writer: ServerId(writer), seq: Seq(1) };
    let vote = Some(Vote { upto: Batch(2), chain: Digest([3; 32]) });
    let (digest, cut) = (Digest([4; 32]), vec![1; N]);
    let checkpoint = Some(Checkpoint { term: Term(0), batch: Batch(2), digest, cut });
    let propose = |term, batch, evidence, orders| {
        Body::Propose(Propose { term: Term(term), batch: Batch(batch), evidence, orders })
    };
    let bodies = [
        propose(0, 1, vec![], vec![view, view]),
        propose(1, 0, vec![cited(0), cited(2)], vec![]),
        Body::Accept(Accept { term: Term(0), vote, checkpoint: None }),
        Body::Accept(Accept { term: Term(0), vote, checkpoint }),
        Body::Change(Change { term: Term(0), reason: Reason::Order(Digest([5; 32])) }),
        Body::Change(Change { term: Term(1), reason: Reason::Follow }),
    ];
    let bodies: Vec<_> = bodies
        .iter()
        .map(|body| {
            let mut bytes = Vec::new();
            body.encode(&mut bytes);
            bytes
        })
        .collect();
    let record = |body: &Vec<u8>| {
        let (writer, seen) = (ServerId(1), Box::from([0; N]));
        let stamp = Stamp { writer, seq: Seq(1), time: Micros(7), incarnation: 0, seen };
        let mut bytes = Vec::new();
        Record::encode(&stamp, body, &mut bytes);
        bytes
    };
    let records = bodies.iter().map(record).collect();
    (bodies, records)
}

fn cluster() -> Cluster {
    let address = |network: u8, id: u16| ([127, 0, network, id as u8 + 1], 7000).into();
    let servers = (0..N as u16).map(|id| ServerAddresses {
        id,
        trusted: address(1, id),
        payload: address(2, id),
    });
    Cluster::new(ClusterId([7; 32]), 1, 4, "log", servers.collect())
}

fn print<T: Serialize>(value: &T) -> Vec<u8> {
    toml::to_string(value).expect("these types can be printed").into_bytes()
}

fn key_files() -> Vec<Vec<u8>> {
    let keys = |count: u8| (0..count).map(key).collect::<Vec<_>>();
    let peers = || vec![PeerKey { server: 1, key: key(8) }, PeerKey { server: 2, key: key(9) }];
    vec![
        print(&HostKeys { orders: keys(2), links: peers() }),
        print(&GuestKeys { replies: keys(2), operator: key(7), forwards: peers() }),
        print(&ClientKeys { orders: keys(3), replies: keys(3) }),
        print(&OperatorKeys { replies: keys(3) }),
    ]
}
