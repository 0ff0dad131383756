//! A make-believe cluster on loopback: servers that speak the channel and share one list of orders,
//! so that a client hears what it would hear from a real one. What a server does wrong is set per
//! server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::{Client, ClientConfig};
use protocol::messages::{
    Body, Credit, Delivery, Refusal, Reply, Status, ToClient, ToServer, decode, encode,
    encode_into, max_frame_bytes,
};
use shared_registers::channel::{Channel, Event, Party};
use shared_registers::cluster::{ClientKeys, Cluster, OperatorKeys, ServerAddresses};
use shared_registers::crypto::{ClusterId, Digest, Secret};
use shared_registers::ids::{ClientId, Micros, OrderId, OrderNumber, ServerId, Term};
use shared_registers::order;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

pub(crate) const CLUSTER: ClusterId = ClusterId([3; 32]);
/// Nothing here takes so long: a test that waits longer has failed.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// What a server does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Honest,
    /// Makes up replies and deliveries.
    Lying,
    /// Holds other reply keys than the client.
    WrongKey,
    /// Is connected and says nothing.
    Silent,
    /// Nobody listens at its address.
    Down,
    /// Its host refuses every order.
    Refusing,
    /// Ends every connection after the first few frames of the client.
    Flaky,
    /// Never stops talking, as fast as it can.
    Flooding,
}

#[derive(Default)]
struct Shared {
    manners: Vec<Manner>,
    delivered: Vec<(OrderId, Vec<u8>)>,
    /// To each server: it is to tell the client this.
    outboxes: Vec<mpsc::UnboundedSender<ToClient>>,
    /// By server: which delivery is next, and the credit for it.
    subscribed: Vec<Option<(usize, Credit)>>,
    /// By server: deliveries sent by subscription.
    sent: Vec<u64>,
}

/// The cluster.
pub(crate) struct Fake {
    pub(crate) cluster: Cluster,
    manners: Vec<Manner>,
    shared: Arc<Mutex<Shared>>,
}

fn secret(kind: u8, server: usize) -> Secret {
    Secret::new([kind + server as u8; 32])
}

/// What the application replies to a message.
pub(crate) fn echo(payload: &[u8]) -> Vec<u8> {
    payload.iter().rev().copied().collect()
}

impl Fake {
    pub(crate) async fn start(manners: &[Manner]) -> Fake {
        let shared = Shared { manners: manners.to_vec(), ..Shared::default() };
        let shared = Arc::new(Mutex::new(shared));
        let mut servers = Vec::new();
        for (id, manner) in manners.iter().copied().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let payload = listener.local_addr().unwrap();
            servers.push(ServerAddresses { id: id as u16, trusted: payload, payload });
            let (outbox, told) = mpsc::unbounded_channel();
            let mut locked = shared.lock().unwrap();
            locked.outboxes.push(outbox);
            locked.subscribed.push(None);
            locked.sent.push(0);
            if manner != Manner::Down {
                let server = Server { id, manner, shared: shared.clone() };
                tokio::spawn(server.run(listener, told));
            }
        }
        let f = (manners.len() - 1) / 2;
        let cluster = Cluster::new(CLUSTER, f, 4, "echo", servers);
        Fake { cluster, manners: manners.to_vec(), shared }
    }

    pub(crate) fn keys(&self) -> ClientKeys {
        let n = self.manners.len();
        let orders = (0..n).map(|i| secret(100, i)).collect();
        ClientKeys { orders, replies: (0..n).map(|i| secret(10, i)).collect() }
    }

    pub(crate) fn operator_keys(&self) -> OperatorKeys {
        OperatorKeys { replies: self.keys().replies }
    }

    pub(crate) fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new(&self.cluster, ClientId(0), &self.keys()).unwrap();
        config.deadline = BOUND;
        config
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.config())
    }

    /// By server: how many deliveries it has sent a subscriber.
    pub(crate) fn sent(&self) -> Vec<u64> {
        self.shared.lock().unwrap().sent.clone()
    }

    /// How many servers have a subscriber.
    pub(crate) fn subscribed(&self) -> usize {
        self.shared.lock().unwrap().subscribed.iter().flatten().count()
    }

    /// Payloads in the order of their delivery.
    pub(crate) fn delivered(&self) -> Vec<Vec<u8>> {
        self.shared.lock().unwrap().delivered.iter().map(|(_, p)| p.clone()).collect()
    }
}

struct Server {
    id: usize,
    manner: Manner,
    shared: Arc<Mutex<Shared>>,
}

impl Server {
    async fn run(self, listener: TcpListener, mut told: mpsc::UnboundedReceiver<ToClient>) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // One connection at a time is all that these tests need.
            self.serve(stream, &mut told).await;
            self.shared.lock().unwrap().subscribed[self.id] = None;
        }
    }

    async fn serve(
        &self,
        mut stream: TcpStream,
        told: &mut mpsc::UnboundedReceiver<ToClient>,
    ) -> Option<()> {
        let kind = if self.manner == Manner::WrongKey { 50 } else { 10 };
        let key = secret(kind, self.id).mac_key();
        let me = Party::Guest(ServerId(self.id as u16));
        let mut channel =
            Channel::accept(me, CLUSTER, [self.id as u8; 16], max_frame_bytes(1 << 20));
        let (mut bytes, mut out, mut frames) = (vec![0; 1 << 16], Vec::new(), 0);
        loop {
            let mut answers = Vec::new();
            tokio::select! {
                read = stream.read(&mut bytes) => match read {
                    Ok(count) if count > 0 => channel.receive(&bytes[..count]),
                    _ => return None,
                },
                message = told.recv(), if channel.is_open() => answers.push(message?),
            }
            while let Some(event) = channel.next(&|_| Some(key.clone()), &mut out).ok()? {
                if let Event::Frame(frame) = event {
                    frames += 1;
                    answers.extend(self.on_message(decode(frame).unwrap()));
                }
            }
            for answer in answers {
                assert!(channel.seal(&mut out, |out| encode_into(&answer, out)));
            }
            stream.write_all(&std::mem::take(&mut out)).await.ok()?;
            if self.manner == Manner::Flooding && channel.is_open() {
                flood(stream.into_std().unwrap(), channel);
                return std::future::pending().await;
            }
            if self.manner == Manner::Flaky && frames >= 3 {
                return None;
            }
        }
    }

    fn on_message(&self, message: ToServer) -> Vec<ToClient> {
        let mut shared = self.shared.lock().unwrap();
        if self.manner == Manner::Silent {
            return Vec::new();
        }
        match message {
            ToServer::Order(order) if self.manner == Manner::Refusing => {
                let OrderId { session, count, .. } = order.id;
                vec![ToClient::Refused { session, count, reason: Refusal::BadMac }]
            }
            ToServer::Order(sent) => {
                let digest = order::digest(&CLUSTER, sent.id, &sent.payload);
                let key = secret(100, self.id).mac_key();
                assert!(order::verify(&key, &digest, &sent.macs[self.id]));
                if let Some(at) = shared.delivered.iter().position(|(id, _)| *id == sent.id) {
                    return vec![self.reply(&shared, at, true)];
                }
                let last = shared.delivered.iter().filter(|(id, _)| id.session == sent.id.session);
                if last.count() as u64 + 1 == sent.id.count {
                    deliver(&mut shared, sent.id, sent.payload);
                }
                Vec::new()
            }
            ToServer::Subscribe { from, messages, bytes } => {
                let wanted = (from.0 as usize - 1, Credit::new(messages, bytes));
                shared.subscribed[self.id] = (messages > 0).then_some(wanted);
                pump(&mut shared, self.id);
                Vec::new()
            }
            ToServer::Credit { messages, bytes } => {
                if let Some((_, credit)) = &mut shared.subscribed[self.id] {
                    credit.add(messages, bytes);
                }
                pump(&mut shared, self.id);
                Vec::new()
            }
            ToServer::FetchReply { session, count } => {
                let find =
                    |(id, _): &(OrderId, Vec<u8>)| (id.session, id.count) == (session, count);
                let at = shared.delivered.iter().position(find);
                at.map(|at| self.reply(&shared, at, true)).into_iter().collect()
            }
            ToServer::FetchDelivery { order } => {
                let lie = self.manner == Manner::Lying;
                vec![ToClient::Delivery(delivery(&shared, order.0 as usize - 1, true, lie))]
            }
            ToServer::Status => {
                let delivered = OrderNumber(shared.delivered.len() as u64);
                let id = ServerId(self.id as u16);
                vec![ToClient::Status(Box::new(Status { id, delivered, ..Status::default() }))]
            }
            ToServer::Trace { .. } => Vec::new(),
        }
    }

    fn reply(&self, shared: &Shared, at: usize, with: bool) -> ToClient {
        reply(shared, at, with, self.manner == Manner::Lying)
    }
}

/// Floods from threads of its own until the client is gone: one seals frames, one writes them.
fn flood(mut stream: std::net::TcpStream, mut channel: Channel) {
    stream.set_nonblocking(false).unwrap();
    let (full, chunks) = std::sync::mpsc::sync_channel::<Vec<u8>>(8);
    std::thread::spawn(move || {
        let say = encode(&ToClient::Stale { session: 0, count: 0 });
        let mut written = Ok(());
        while written.is_ok() {
            let mut chunk = Vec::new();
            for _ in 0..10_000 {
                assert!(channel.seal(&mut chunk, |out| out.extend_from_slice(&say)));
            }
            written = full.send(chunk);
        }
    });
    std::thread::spawn(move || {
        for chunk in chunks {
            if std::io::Write::write_all(&mut stream, &chunk).is_err() {
                return;
            }
        }
    });
}

/// Puts an order in the list; every server tells the client, server 0 with the bytes.
fn deliver(shared: &mut Shared, id: OrderId, payload: Vec<u8>) {
    shared.delivered.push((id, payload));
    let at = shared.delivered.len() - 1;
    for server in 0..shared.outboxes.len() {
        let manner = shared.manners[server];
        if matches!(manner, Manner::Silent | Manner::Down) {
            continue;
        }
        let reply = reply(shared, at, server == 0, manner == Manner::Lying);
        shared.outboxes[server].send(reply).unwrap();
        pump(shared, server);
    }
}

/// Has a server send its subscriber what there is credit for.
fn pump(shared: &mut Shared, server: usize) {
    let lie = shared.manners[server] == Manner::Lying;
    while let Some((next, mut credit)) = shared.subscribed[server]
        && next < shared.delivered.len()
        && credit.allows()
    {
        let delivery = delivery(shared, next, server == 0, lie);
        credit.spend(delivery.cost());
        shared.outboxes[server].send(ToClient::Delivery(delivery)).unwrap();
        shared.subscribed[server] = Some((next + 1, credit));
        shared.sent[server] += 1;
    }
}

fn reply(shared: &Shared, at: usize, with: bool, lie: bool) -> ToClient {
    let (OrderId { session, count, .. }, payload) = &shared.delivered[at];
    let bytes = if lie { b"a lie".to_vec() } else { echo(payload) };
    let (order, digest) = (OrderNumber(at as u64 + 1 + 7 * u64::from(lie)), Digest::of(&[&bytes]));
    let body = if with || lie { Body::Here(bytes.into()) } else { Body::Elsewhere };
    let term = Term(if lie { 1 << 40 } else { 0 });
    ToClient::Reply(Reply { session: *session, count: *count, order, digest, term, body })
}

fn delivery(shared: &Shared, at: usize, with: bool, lie: bool) -> Delivery {
    let (id, payload) = &shared.delivered[at];
    let payload = if lie { b"a lie".to_vec() } else { payload.clone() };
    let (order, digest) = (OrderNumber(at as u64 + 1), order::digest(&CLUSTER, *id, &payload));
    let payload = if with || lie { Body::Here(payload.into()) } else { Body::Elsewhere };
    Delivery { order, id: *id, digest, time: Micros(5), payload }
}
