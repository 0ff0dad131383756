//! Guests at work, and under attack from the payload network.

mod catch_up;
mod cluster;
#[cfg(feature = "faulty-sequencer")]
mod faulty;
mod liar;
mod trace;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use cluster::{CHILD_DIR, CHILD_ID, Cluster, Peer, Shape, await_raw_closed, connect, reply_key};
use guest_replica::{CONNECTIONS_PER_CLIENT, MAX_UNPROVEN, Options};
use nix::sys::signal::{SigSet, Signal};
use protocol::messages::{Body, Delivery, Reply, ToClient, ToServer};
use shared_registers::ids::{ClientId, OrderNumber, ServerId};
use shared_registers::link::Party;

fn broadcast(
    cluster: &Cluster,
    client: u32,
    counts: std::ops::RangeInclusive<u64>,
    payload: &[u8],
) {
    let mut peer = cluster.client(client, 0);
    for count in counts.clone() {
        peer.send(&ToServer::Order(cluster.order(client, count, payload)));
    }
    for expected in counts {
        let Reply { count, .. } = reply(&mut peer);
        assert_eq!(count, expected);
    }
}

fn reply(peer: &mut Peer) -> Reply {
    match peer.next() {
        Some(ToClient::Reply(reply)) => reply,
        other => panic!("no reply but {other:?}"),
    }
}

/// Has everything from `from` on sent.
fn subscribe(peer: &mut Peer, from: u64) {
    let (from, messages, bytes) = (OrderNumber(from), u64::MAX, u64::MAX);
    peer.send(&ToServer::Subscribe { from, messages, bytes });
}

/// Nothing more is on its way to it.
fn hears_nothing(peer: &mut Peer) {
    // The guest sends deliveries after the turn's answers, so the second one tells.
    for _ in 0..2 {
        peer.send(&ToServer::Status);
        match peer.next() {
            Some(ToClient::Status(_)) => {}
            other => panic!("heard {other:?}"),
        }
    }
}

fn delivery(peer: &mut Peer) -> Delivery {
    match peer.next() {
        Some(ToClient::Delivery(delivery)) => delivery,
        other => panic!("no delivery but {other:?}"),
    }
}

#[test]
fn orders_are_delivered_answered_and_followed_by_subscribers() {
    let cluster = Cluster::start();
    let mut listeners: Vec<_> = (0..3).map(|server| cluster.client(1, server)).collect();
    for listener in &mut listeners {
        subscribe(listener, 0);
    }
    let mut clients: Vec<_> = (0..3).map(|server| cluster.client(0, server)).collect();
    for count in 1..=5 {
        for client in &mut clients {
            client.send(&ToServer::Order(cluster.order(0, count, b"hello")));
        }
        for client in &mut clients {
            // An order that comes after its delivery is answered once more.
            let mut answers = std::iter::repeat_with(|| reply(client));
            let answer = answers.find(|answer| answer.count >= count).unwrap();
            assert_eq!((answer.count, answer.order), (count, OrderNumber(count)));
        }
        for (server, listener) in listeners.iter_mut().enumerate() {
            let next = delivery(listener);
            assert_eq!(next.order, OrderNumber(count));
            let bytes = matches!(next.payload, Body::Here(ref bytes) if bytes[..] == *b"hello");
            assert_eq!(bytes, server == 0, "the sequencer alone sends the bytes");
        }
    }
    // Who missed the bytes asks for them.
    listeners[2].send(&ToServer::FetchDelivery { order: OrderNumber(3) });
    assert_eq!(delivery(&mut listeners[2]).payload, Body::Here(b"hello".to_vec().into()));
    clients[2].send(&ToServer::FetchReply { session: 1, count: 5 });
    let mut answers = std::iter::repeat_with(|| reply(&mut clients[2]).body);
    let body = answers.find(|body| *body != Body::Elsewhere);
    assert_eq!(body, Some(Body::Here(5u64.to_le_bytes().to_vec().into())));

    let status = cluster.status(1);
    assert_eq!((status.id, status.delivered), (ServerId(1), OrderNumber(5)));
    let names: BTreeSet<_> = status.counters.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), status.counters.len(), "a counter's name stands for one thing");
}

#[test]
fn an_order_for_the_wrong_server_is_forwarded_to_the_sequencer() {
    let cluster = Cluster::start();
    let mut client = cluster.client(0, 1);
    client.send(&ToServer::Order(cluster.order(0, 1, b"x")));
    assert_eq!(reply(&mut client).order, OrderNumber(1));
    cluster.await_count(1, "forwards_sent", 1);
    cluster.await_count(0, "forwards_received", 1);
}

#[test]
fn noise_is_counted_and_hurts_nobody() {
    let cluster = Cluster::start();
    broadcast(&cluster, 0, 1..=1, b"before");
    let mut byte = 1u8;
    for round in 1..=50 {
        let mut stream = connect(cluster.payload(0));
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            byte = byte.wrapping_mul(109).wrapping_add(89);
            byte
        })
        .take(round * 7)
        .collect();
        let _ = stream.write_all(&noise);
        await_raw_closed(&mut stream);
    }
    assert_eq!(cluster.count(0, "refused_connections"), 50);
    broadcast(&cluster, 0, 2..=2, b"after");
}

#[test]
fn a_forged_party_is_refused() {
    let cluster = Cluster::start();
    let key = reply_key(1, 0);
    let parties = [
        Party::Client(ClientId(0)),
        Party::Client(ClientId(4000)),
        Party::Guest(ServerId(1)),
        Party::Guest(ServerId(0)),
        Party::Guest(ServerId(77)),
        Party::Host(ServerId(1)),
        Party::Operator,
    ];
    for party in parties {
        assert!(!Peer::dial(&cluster, party, 0, key).is_established(), "{party:?}");
    }
    assert!(Peer::dial(&cluster, Party::Client(ClientId(1)), 0, key).is_established());
    cluster.await_count(0, "refused_connections", parties.len() as u64);
}

#[test]
fn nobody_may_say_what_is_not_its_to_say() {
    let cluster = Cluster::start();
    // Another client's order, though its MACs are right.
    let mut client = cluster.client(1, 0);
    client.send(&ToServer::Order(cluster.order(0, 1, b"not mine")));
    client.await_closed();
    // The operator may only ask how it is, and what happened when.
    let mut operator = cluster.operator(0);
    subscribe(&mut operator, 1);
    operator.await_closed();
    assert_eq!(cluster.count(0, "bad_frames"), 2);
    assert_eq!(cluster.count(0, "orders_received"), 0);
    broadcast(&cluster, 0, 1..=1, b"mine");
}

#[test]
fn the_number_of_connections_is_bounded() {
    let cluster = Cluster::start();
    // Strangers: the oldest goes first, and clients still get in.
    let mut strangers: Vec<_> =
        (0..MAX_UNPROVEN + 5).map(|_| connect(cluster.payload(0))).collect();
    for stranger in &mut strangers[..5] {
        await_raw_closed(stranger);
    }
    assert!(cluster.count(0, "connections") <= MAX_UNPROVEN as u64 + 1);
    // One client: the oldest goes first, and other clients keep theirs.
    let mut other = cluster.client(1, 0);
    let mut greedy: Vec<_> =
        (0..CONNECTIONS_PER_CLIENT + 3).map(|_| cluster.client(0, 0)).collect();
    for peer in &mut greedy[..3] {
        peer.await_closed();
    }
    assert!(greedy[3..].iter_mut().all(|peer| !peer.is_closed()));
    other.send(&ToServer::Status);
    assert!(matches!(other.next(), Some(ToClient::Status(_))));
}

#[test]
fn a_slow_subscriber_stops_nobody() {
    let cluster = Cluster::start();
    let mut slow = cluster.client(1, 0);
    subscribe(&mut slow, 1);
    // Far more than sockets and the link's buffer hold.
    let payload = vec![b'p'; 1 << 20];
    let mut quick = cluster.client(2, 0);
    subscribe(&mut quick, 1);
    let last = 24;
    for count in 1..=last {
        broadcast(&cluster, 0, count..=count, &payload);
        assert_eq!(delivery(&mut quick).order, OrderNumber(count));
    }
    assert!(cluster.count(0, "deliveries_sent") < 2 * last, "the slow one held all this");
    // When it reads again it gets everything, in order.
    for count in 1..=last {
        assert_eq!(delivery(&mut slow).order, OrderNumber(count));
    }
}

#[test]
fn a_subscriber_is_sent_what_it_has_credit_for() {
    let cluster = Cluster::start();
    broadcast(&cluster, 0, 1..=10, b"hello");
    let mut listener = cluster.client(1, 0);
    let (from, bytes) = (OrderNumber(1), 1 << 20);
    listener.send(&ToServer::Subscribe { from, messages: 3, bytes });
    (1..=3).for_each(|order| assert_eq!(delivery(&mut listener).order.0, order));
    hears_nothing(&mut listener);
    assert_eq!(cluster.count(0, "deliveries_sent"), 3);
    listener.send(&ToServer::Credit { messages: 2, bytes: 0 });
    (4..=5).for_each(|order| assert_eq!(delivery(&mut listener).order.0, order));
    hears_nothing(&mut listener);
    // Bytes are counted as well; the last delivery may go over.
    listener.send(&ToServer::Subscribe { from, messages: 100, bytes: 1 });
    let cost = delivery(&mut listener).cost();
    hears_nothing(&mut listener);
    listener.send(&ToServer::Credit { messages: 0, bytes: 2 * cost });
    (2..=3).for_each(|order| assert_eq!(delivery(&mut listener).order.0, order));
    hears_nothing(&mut listener);
    // Who unsubscribes is sent nothing, and credit does not change that.
    listener.send(&ToServer::UNSUBSCRIBE);
    listener.send(&ToServer::Credit { messages: u64::MAX, bytes: u64::MAX });
    broadcast(&cluster, 0, 11..=12, b"hello");
    hears_nothing(&mut listener);
    assert_eq!(cluster.count(0, "deliveries_sent"), 8);
}

#[test]
fn a_restarted_guest_remembers_through_the_registers() {
    let mut cluster = Cluster::start();
    broadcast(&cluster, 0, 1..=20, b"x");
    let before = cluster.status(0);
    cluster.stop_guest(0).unwrap();
    cluster.start_guest(0);
    let after = cluster.status(0);
    assert_eq!((before.delivered, before.chain), (after.delivered, after.chain));
    // It goes on as sequencer where it was.
    broadcast(&cluster, 0, 21..=30, b"y");
}

#[test]
fn a_guest_outlives_its_host_agent() {
    let mut cluster = Cluster::start();
    broadcast(&cluster, 0, 1..=3, b"x");
    cluster.stop_hosts();
    // What is known is still served.
    cluster.await_count(0, "bells_lost", 1);
    let mut listener = cluster.client(1, 0);
    subscribe(&mut listener, 2);
    assert_eq!(delivery(&mut listener).order, OrderNumber(2));
    cluster.start_hosts();
    broadcast(&cluster, 0, 4..=6, b"y");
}

#[test]
fn a_guest_that_loses_its_host_hangs_up_on_those_who_ordered_and_on_nobody_else() {
    let mut cluster = Cluster::start();
    let (mut client, mut listener) = (cluster.client(0, 0), cluster.client(1, 0));
    client.send(&ToServer::Order(cluster.order(0, 1, b"x")));
    assert_eq!(reply(&mut client).order, OrderNumber(1));
    subscribe(&mut listener, 1);
    assert_eq!(delivery(&mut listener).order, OrderNumber(1));
    cluster.stop_hosts();
    client.await_closed();
    hears_nothing(&mut listener);
    // Whoever comes back meanwhile is not kept waiting for ever either.
    let mut client = cluster.client(0, 0);
    client.send(&ToServer::Order(cluster.order(0, 2, b"y")));
    client.await_closed();
    cluster.start_hosts();
    (0..3).for_each(|server| cluster.await_host(server));
    broadcast(&cluster, 0, 2..=3, b"y");
    assert_eq!(delivery(&mut listener).order, OrderNumber(2));
}

#[test]
fn a_guest_whose_register_files_were_replaced_starts_over() {
    let mut cluster = Cluster::start();
    broadcast(&cluster, 0, 1..=1, b"x");
    cluster.stop_hosts();
    let path = cluster.paths().read_file(ServerId(0));
    fs::copy(&path, path.with_extension("new")).unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    let mut before = cluster.operator(0);
    cluster.start_hosts();
    before.await_closed();
    // R6: it reads everything again, and goes on as sequencer.
    broadcast(&cluster, 0, 2..=4, b"y");
    assert_eq!(cluster.status(0).delivered, OrderNumber(4));
}

#[test]
fn a_guest_may_come_before_its_host_agent() {
    let mut cluster = Cluster::idle(Shape::ROOMY);
    for id in 0..3 {
        cluster.start_guest(id);
    }
    // Bound already, and waiting.
    drop(connect(cluster.payload(2)));
    cluster.start_hosts();
    broadcast(&cluster, 0, 1..=1, b"x");
}

#[test]
fn what_is_wrong_is_said_in_one_sentence() {
    let cluster = Cluster::idle(Shape::ROOMY);
    let options = Options { dir: cluster.dir.path().to_owned(), id: 1 };
    let error = |options: &Options| guest_replica::run(options.clone()).unwrap_err().to_string();

    let taken = std::net::TcpListener::bind(cluster.payload(1)).unwrap();
    let text = error(&options);
    assert!(
        text.contains(&format!("{}, server 1's payload address", cluster.payload(1))),
        "{text}"
    );
    drop(taken);

    let toml = cluster.paths().cluster_toml();
    let good = fs::read_to_string(&toml).unwrap();
    fs::write(&toml, good.replace("\"log\"", "\"lag\"")).unwrap();
    let text = error(&options);
    assert!(text.contains("application = \"lag\""), "{text}");
    fs::write(&toml, good.replace("clients = 4", "clients = 5")).unwrap();
    let text = error(&options);
    assert!(text.contains("guest-1.key") && text.contains("4 reply keys"), "{text}");
    let text = error(&Options { id: 9, ..options });
    assert!(text.contains("unknown server 9"), "{text}");
}

/// Not a test of its own: the process that other tests start.
#[test]
fn child_process() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let id = std::env::var(CHILD_ID).unwrap().parse().unwrap();
    guest_replica::run(Options { dir: dir.into(), id }).unwrap();
}

#[test]
fn a_signal_ends_the_process_cleanly() {
    let mut cluster = Cluster::idle(Shape::ROOMY);
    cluster.start_hosts();
    // The child inherits this, so that the test runner's own thread there does not take the signal.
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.thread_block().unwrap();
    cluster.start_child(0);
    assert_eq!(cluster.status(0).id, ServerId(0));
    cluster.signal_child(0, Signal::SIGTERM);
    assert!(cluster.await_child(0).success());
}
