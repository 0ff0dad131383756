//! Decoders: no bytes make one panic, and what it takes is what its encoder writes. There is one
//! encoding of everything, so a decoder that takes other bytes too would let a MAC or a digest
//! mean two things.

use protocol::limits::{MAX_CREDIT_BYTES, PIECE_BYTES};
use protocol::messages::{
    ToClient, ToGuest, ToServer, decode, decode_to_guest, decode_to_server, encode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared_registers::cluster::{
    ClientKeys, Cluster, GuestKeys, HostKeys, OperatorKeys, parse_keys,
};
use shared_registers::ids::{ClientId, ServerId};
use shared_registers::limits::MAX_RING_BYTES;
use shared_registers::record::{Body, Record, Stamp};

use crate::drafts::N;

/// What a guest takes from clients and from other guests.
pub(crate) fn to_server(bytes: &[u8]) {
    let client = ClientId(1);
    if let Ok(message) = decode_to_server(bytes, client, N) {
        assert_eq!(encode(&message), bytes, "a second encoding");
        match message {
            ToServer::Order(order) => {
                assert!(order.id.client == client && order.macs.len() == N && order.id.count > 0);
            }
            ToServer::Subscribe { messages, bytes, .. } | ToServer::Credit { messages, bytes } => {
                let mut credit = protocol::messages::Credit::new(messages, bytes);
                credit.add(messages, bytes);
                credit.spend_bytes(2 * MAX_CREDIT_BYTES);
                assert!(!credit.allows(), "credit past its bound");
            }
            _ => {}
        }
    }
    if let Ok(message) = decode_to_guest(bytes, N) {
        assert_eq!(encode(&message), bytes, "a second encoding");
        match message {
            ToGuest::Forward(order) => assert_eq!(order.macs.len(), N),
            ToGuest::Piece { bytes, .. } => assert!(bytes.len() <= PIECE_BYTES),
            ToGuest::Fetch { .. } | ToGuest::Gone { .. } => {}
        }
    }
}

/// What a client takes from guests, their status included.
pub(crate) fn to_client(bytes: &[u8]) {
    if let Ok(message) = decode::<ToClient>(bytes) {
        if let ToClient::Delivery(delivery) = &message {
            assert!(delivery.cost() > 0);
        }
        assert_eq!(encode(&message), bytes, "a second encoding");
    }
}

/// Records, as they stand in rings and pass between hosts, and the bodies that guests write. The
/// first byte says whether the record's length and CRC are put right first: a fuzzer finds no CRC.
pub(crate) fn record(bytes: &[u8]) {
    let Some((first, bytes)) = bytes.split_first() else { return };
    body(bytes);
    let mut copy = bytes.to_vec();
    if first & 1 == 1 && copy.len() >= 8 {
        let crc = crc32fast::hash(&copy[8..]);
        let len = copy.len() as u32;
        copy[..4].copy_from_slice(&len.to_le_bytes());
        copy[4..8].copy_from_slice(&crc.to_le_bytes());
    }
    for n in [1, N, 31] {
        let Ok(record) = Record::decode(&copy, n) else { continue };
        let Stamp { writer, seq, seen, .. } = &record.stamp;
        // R2, R4: what is checked of a stamp wherever a record is read.
        assert!(writer.index() < n && seen.len() == n && seen[writer.index()] + 1 == seq.0);
        let mut again = Vec::new();
        Record::encode(&record.stamp, record.body, &mut again);
        assert_eq!(again, copy, "a second encoding");
        body(record.body);
    }
}

fn body(bytes: &[u8]) {
    for n in [1, N, 31] {
        let Ok(body) = Body::decode(bytes, n) else { continue };
        let mut again = Vec::new();
        body.encode(&mut again);
        assert_eq!(again, bytes, "a second encoding");
    }
}

/// `cluster.toml`: what is taken can be worked with and comes back as it went.
pub(crate) fn cluster_toml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Cluster::parse(text) {
        Ok(cluster) => {
            let geometry = cluster.geometry(ServerId(0));
            assert!(cluster.n() == cluster.servers.len() && cluster.clients > 0);
            assert!(geometry.read_file_bytes() <= 64 * MAX_RING_BYTES);
            assert!(geometry.write_file_bytes() <= 2 * MAX_RING_BYTES);
            let printed = toml::to_string(&cluster).expect("what was read can be printed");
            let again = Cluster::parse(&printed).expect("what was printed can be read");
            assert_eq!(toml::to_string(&again).expect("as above"), printed);
        }
        Err(why) => assert!(!why.is_empty(), "an error says what is wrong"),
    }
}

/// Key files of every kind.
pub(crate) fn key_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    keys::<HostKeys>(text);
    keys::<GuestKeys>(text);
    keys::<ClientKeys>(text);
    keys::<OperatorKeys>(text);
}

fn keys<K: Serialize + DeserializeOwned>(text: &str) {
    match parse_keys::<K>(text) {
        Ok(keys) => {
            let printed = toml::to_string(&keys).expect("what was read can be printed");
            assert!(parse_keys::<K>(&printed).is_ok(), "what was printed can be read");
        }
        Err(why) => assert!(!quotes_a_key(text, &why), "an error gives a key away: {why}"),
    }
}

/// Whether an error repeats 16 or more hexadecimal digits of the file.
fn quotes_a_key(text: &str, why: &str) -> bool {
    let digits = |text: &str| -> Vec<String> {
        let runs = text.split(|c: char| !c.is_ascii_hexdigit());
        runs.filter(|run| run.len() >= 16).map(str::to_owned).collect()
    };
    let said = digits(why);
    digits(text).iter().any(|key| said.iter().any(|said| key.contains(said.as_str())))
}
