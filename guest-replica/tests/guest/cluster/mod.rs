//! Three guests in threads, or processes, and one thread that plays all their hosts: it takes
//! frames without looking at MACs, puts each record into every read file at once, and reclaims what
//! a stable checkpoint covers.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest_replica::{GuestError, Options};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::application::{KeyValue, Log};
use protocol::messages::{self, OrderMessage, Status, ToClient, ToServer, max_frame_bytes};
use shared_registers::bell;
use shared_registers::channel::{Channel, Event};
use shared_registers::checkpoint::Claims;
use shared_registers::cluster::{Cluster as Description, Paths};
use shared_registers::crypto::Secret;
use shared_registers::host_side::{HostRegisters, Taken};
use shared_registers::ids::{ClientId, Micros, OrderId, Seq, ServerId};
use shared_registers::layout::LinkState;
use shared_registers::link::{Link, LinkError, Party};
use shared_registers::record::{Body, Record, Stamp};
use shared_registers::words::{MappedReadOnly, MappedReadWrite, News};

pub(crate) const N: usize = 3;
pub(crate) const CLIENTS: u32 = 4;
/// Nothing here takes longer, unless it never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Longer than anybody waits here. Clients send an order to one server alone: should that one
/// suspect the sequencer, or itself, on a machine that is busy, nobody else would know of the order
/// and change with it, as they do when clients turn to everyone (P3).
const CHANGE_MS: u64 = 60_000;

/// The key between a client (or the operator) and guest `server`.
pub(crate) fn reply_key(who: u32, server: u16) -> [u8; 32] {
    let mut key = [3; 32];
    (key[0], key[1]) = (who as u8, server as u8);
    key
}

pub(crate) const OPERATOR: u32 = 200;

pub(crate) fn forward_key(a: u16, b: u16) -> [u8; 32] {
    let mut key = [4; 32];
    (key[0], key[1]) = (a.min(b) as u8, a.max(b) as u8);
    key
}

fn hexadecimal(key: [u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a cluster shall be.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) application: &'static str,
    pub(crate) ring_bytes: u64,
    pub(crate) max_payload_bytes: usize,
}

impl Shape {
    /// Nothing is ever reclaimed.
    pub(crate) const ROOMY: Shape =
        Shape { application: "log", ring_bytes: 64 << 20, max_payload_bytes: 1 << 20 };
    /// Rings as small as can be, so that records are soon reclaimed, and an application with a
    /// state.
    pub(crate) const TIGHT: Shape =
        Shape { application: "kv", ring_bytes: 2 << 20, max_payload_bytes: 8 << 10 };
}

/// What tells the process of a guest where and who it is.
pub(crate) const CHILD_DIR: &str = "DIFATO_TEST_GUEST_DIR";
pub(crate) const CHILD_ID: &str = "DIFATO_TEST_GUEST_ID";

/// What ends a guest when it is dropped, and how it ended.
type Running = (UnixStream, JoinHandle<Result<(), GuestError>>);

/// A loopback address that nobody else uses: on a common one any connection's own end may take the
/// port of a guest that is stopped for a while.
fn own_address() -> Ipv4Addr {
    static CLUSTERS: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 128 | high, low, CLUSTERS.fetch_add(1, Ordering::Relaxed))
}

pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) description: Description,
    shape: Shape,
    children: Vec<Option<Child>>,
    guests: Vec<Option<Running>>,
    hosts: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
}

impl Cluster {
    /// A cluster's folder, and nobody at work in it yet.
    pub(crate) fn idle(shape: Shape) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let address = own_address();
        let ports: Vec<_> = (0..N).map(|_| TcpListener::bind((address, 0)).unwrap()).collect();
        let mut text = format!(
            "cluster_id = \"{}\"\nf = 1\nclients = {CLIENTS}\napplication = \"{}\"\n\
             [timing]\nchange_ms = {CHANGE_MS}\nchange_cap_ms = {CHANGE_MS}\n\
             [limits]\nring_bytes = {}\nwrite_ring_bytes = 8388608\nmax_payload_bytes = {}\n",
            hexadecimal([9; 32]),
            shape.application,
            shape.ring_bytes,
            shape.max_payload_bytes,
        );
        for (id, listener) in ports.iter().enumerate() {
            let payload = listener.local_addr().unwrap();
            text += &format!(
                "[[server]]\nid = {id}\ntrusted = \"127.0.0.1:1\"\npayload = \"{payload}\"\n"
            );
        }
        let paths = Paths::new(dir.path());
        fs::write(paths.cluster_toml(), text).unwrap();
        fs::create_dir_all(paths.keys()).unwrap();
        fs::create_dir_all(paths.run()).unwrap();
        for me in 0..N as u16 {
            write_keys(&paths.guest_keys(ServerId(me)), me);
        }
        let description = Description::load(&paths).unwrap();
        let (guests, children) = ((0..N).map(|_| None).collect(), (0..N).map(|_| None).collect());
        Cluster { dir, description, shape, children, guests, hosts: None }
    }

    pub(crate) fn start() -> Cluster {
        Cluster::start_with(Shape::ROOMY)
    }

    pub(crate) fn start_with(shape: Shape) -> Cluster {
        let mut cluster = Cluster::idle(shape);
        cluster.start_hosts();
        for id in 0..N {
            cluster.start_guest(id);
        }
        cluster
    }

    pub(crate) fn paths(&self) -> Paths {
        Paths::new(self.dir.path())
    }

    pub(crate) fn payload(&self, server: u16) -> SocketAddr {
        self.description.servers[usize::from(server)].payload
    }

    pub(crate) fn start_hosts(&mut self) {
        let stop = Arc::new(AtomicBool::new(false));
        let hosts: Vec<_> =
            ServerId::all(N).map(|id| Host::open(&self.paths(), &self.description, id)).collect();
        let stopped = stop.clone();
        let thread = thread::spawn(move || play_hosts(hosts, &stopped));
        self.hosts = Some((stop, thread));
    }

    pub(crate) fn stop_hosts(&mut self) {
        let Some((stop, thread)) = self.hosts.take() else { return };
        stop.store(true, Ordering::Relaxed);
        thread.join().unwrap();
    }

    pub(crate) fn start_guest(&mut self, id: usize) {
        let (stop, stopped) = UnixStream::pair().unwrap();
        let options = Options { dir: self.dir.path().to_owned(), id: id as u16 };
        let name = self.shape.application;
        let thread = thread::spawn(move || match name {
            "kv" => guest_replica::run_until(options, KeyValue::default, stopped),
            _ => guest_replica::run_until(options, || Log, stopped),
        });
        self.guests[id] = Some((stop, thread));
    }

    /// The folder in which a guest keeps snapshots.
    fn stored(&self, id: usize) -> PathBuf {
        self.dir.path().join("snapshots").join(id.to_string())
    }

    /// A guest begins on a fresh machine, with an empty disk.
    pub(crate) fn wipe_guest(&self, id: usize) {
        let _ = fs::remove_dir_all(self.stored(id));
    }

    /// Starts a guest as a process of its own, which can be made to stand still.
    pub(crate) fn start_child(&mut self, id: usize) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_process", "--test-threads=1"])
            .env(CHILD_DIR, self.dir.path())
            .env(CHILD_ID, id.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.children[id] = Some(child);
    }

    pub(crate) fn signal_child(&mut self, id: usize, signal: Signal) {
        let child = self.children[id].as_mut().unwrap();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    }

    pub(crate) fn await_child(&mut self, id: usize) -> ExitStatus {
        self.children[id].take().unwrap().wait().unwrap()
    }

    pub(crate) fn stop_guest(&mut self, id: usize) -> Result<(), GuestError> {
        let Some((stop, thread)) = self.guests[id].take() else { return Ok(()) };
        drop(stop);
        thread.join().unwrap()
    }

    pub(crate) fn client(&self, client: u32, server: u16) -> Peer {
        Peer::dial(self, Party::Client(ClientId(client)), server, reply_key(client, server))
    }

    pub(crate) fn operator(&self, server: u16) -> Peer {
        Peer::dial(self, Party::Operator, server, reply_key(OPERATOR, server))
    }

    pub(crate) fn status(&self, server: u16) -> Status {
        let mut operator = self.operator(server);
        operator.send(&ToServer::Status);
        match operator.next() {
            Some(ToClient::Status(status)) => *status,
            other => panic!("no status but {other:?}"),
        }
    }

    pub(crate) fn count(&self, server: u16, name: &str) -> u64 {
        let status = self.status(server);
        let found = status.counters.iter().find(|(n, _)| n == name);
        found.unwrap_or_else(|| panic!("no counter {name}")).1
    }

    pub(crate) fn await_count(&self, server: u16, name: &str, at_least: u64) {
        let until = Instant::now() + PATIENCE;
        while self.count(server, name) < at_least {
            assert!(Instant::now() < until, "{name} does not reach {at_least} at {server}");
        }
    }

    /// Waits until a guest has found its host again.
    pub(crate) fn await_host(&self, server: u16) {
        let until = Instant::now() + PATIENCE;
        while !self.status(server).host_up {
            assert!(Instant::now() < until, "guest {server} does not find its host");
        }
    }

    pub(crate) fn order(&self, client: u32, count: u64, payload: &[u8]) -> OrderMessage {
        let keys: Vec<_> = (0..N).map(|i| Secret::new([i as u8; 32]).mac_key()).collect();
        let id = OrderId { client: ClientId(client), session: 1, count };
        OrderMessage::new(&self.description.id(), id, payload.to_vec(), &keys)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if !thread::panicking() {
            for id in 0..N {
                self.stop_guest(id).unwrap();
            }
            self.stop_hosts();
        }
    }
}

fn write_keys(path: &Path, me: u16) {
    let replies: Vec<_> = (0..CLIENTS).map(|c| hexadecimal(reply_key(c, me))).collect();
    let mut text = format!("replies = {replies:?}\n");
    text += &format!("operator = \"{}\"\n", hexadecimal(reply_key(OPERATOR, me)));
    for peer in (0..N as u16).filter(|peer| *peer != me) {
        let key = hexadecimal(forward_key(me, peer));
        text += &format!("[[forwards]]\nserver = {peer}\nkey = \"{key}\"\n");
    }
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

struct Host {
    files: HostRegisters<MappedReadWrite, MappedReadOnly>,
    listener: UnixListener,
    bell: Option<UnixStream>,
}

impl Host {
    fn open(paths: &Paths, cluster: &Description, id: ServerId) -> Host {
        let geometry = cluster.geometry(id);
        fs::create_dir_all(paths.registers(id)).unwrap();
        let fresh = !paths.read_file(id).exists();
        let file = |path: &Path, bytes: u64| -> File {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(path);
            let file = file.unwrap();
            file.set_len(bytes).unwrap();
            file
        };
        let read = file(&paths.read_file(id), geometry.read_file_bytes());
        let write = file(&paths.write_file(id), geometry.write_file_bytes());
        let (read, write) =
            (MappedReadWrite::map(&read).unwrap(), MappedReadOnly::map(&write).unwrap());
        let files = match fresh {
            true => HostRegisters::create(geometry, read, write).unwrap(),
            false => HostRegisters::reopen(geometry, read, write).unwrap(),
        };
        for peer in ServerId::all(N) {
            files.hint(peer, LinkState::Up, Micros(0));
        }
        Host { files, listener: bell::listen(&paths.bell(id)).unwrap(), bell: None }
    }
}

fn play_hosts(mut hosts: Vec<Host>, stop: &AtomicBool) {
    let mut claims = Claims::new(N, None);
    while !stop.load(Ordering::Relaxed) {
        let mut busy = false;
        for i in 0..hosts.len() {
            busy |= admit(&mut hosts, i, &mut claims);
        }
        for host in &mut hosts {
            if let Ok((stream, _)) = host.listener.accept() {
                stream.set_nonblocking(true).unwrap();
                host.bell = Some(stream);
            }
            host.files.expose();
            if host.files.must_ring(News::ALL)
                && let Some(bell) = &mut host.bell
            {
                let _ = bell.write(&[1]);
            }
        }
        if !busy {
            thread::sleep(Duration::from_micros(100));
        }
    }
}

fn admit(hosts: &mut [Host], i: usize, claims: &mut Claims) -> bool {
    let writer = ServerId(i as u16);
    let files = &mut hosts[i].files;
    let (seq, seen) = (Seq(files.copied(writer).0 + 1), files.exposed_all());
    let Taken::Frame(frame) = files.take() else { return false };
    assert!(frame.seq <= seq, "a frame out of its place");
    let (old, body) = (frame.seq < seq, frame.body.to_vec());
    let stamp = Stamp { writer, seq, time: Micros(seq.0), incarnation: 1, seen };
    let mut bytes = Vec::new();
    Record::encode(&stamp, &body, &mut bytes);
    let record = Record::decode(&bytes, N).unwrap();
    // R3: it was admitted before. R7: a guest whose ring is full waits.
    if !old && files.append(&record, &bytes).is_err() {
        return false;
    }
    files.consume();
    if old {
        return true;
    }
    for (_, host) in hosts.iter_mut().enumerate().filter(|(other, _)| *other != i) {
        host.files.append(&record, &bytes).unwrap();
    }
    let Ok(Body::Accept(accept)) = Body::decode(record.body, N) else { return true };
    let claim = accept.checkpoint.as_ref();
    if let Some(stable) = claim.and_then(|claim| claims.count(&record.stamp, claim)) {
        for host in hosts {
            host.files.expose();
            host.files.set_stable(&stable.cut);
        }
    }
    true
}

/// The other end of a guest's connection.
pub(crate) struct Peer {
    link: Link<TcpStream>,
    inbox: Vec<ToClient>,
    closed: bool,
}

impl Peer {
    pub(crate) fn dial(cluster: &Cluster, me: Party, server: u16, key: [u8; 32]) -> Peer {
        let socket = connect(cluster.payload(server));
        let (mut hello, ends) = (Vec::new(), (me, Party::Guest(ServerId(server))));
        let max = max_frame_bytes(cluster.description.limits.max_payload_bytes);
        let key = Secret::new(key).mac_key();
        let id = cluster.description.id();
        let channel = Channel::dial(ends, &key, id, [7; 16], max, &mut hello);
        let mut peer =
            Peer { link: Link::new(socket, channel, hello), inbox: Vec::new(), closed: false };
        peer.turn_until(|peer| peer.link.peer().is_some());
        peer
    }

    /// Whether the guest has accepted who this is.
    pub(crate) fn is_established(&self) -> bool {
        self.link.peer().is_some()
    }

    pub(crate) fn send(&mut self, message: &ToServer) {
        assert!(self.link.send(|out| messages::encode_into(message, out)), "not established");
        self.turn_until(|peer| !peer.link.wants_write());
    }

    /// The next message, or `None` if the guest has closed.
    pub(crate) fn next(&mut self) -> Option<ToClient> {
        self.turn_until(|peer| !peer.inbox.is_empty());
        if self.inbox.is_empty() { None } else { Some(self.inbox.remove(0)) }
    }

    pub(crate) fn await_closed(&mut self) {
        self.turn_until(|_| false);
    }

    /// Whether the guest has closed by now.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.turn(0);
        self.closed
    }

    fn turn_until(&mut self, done: impl Fn(&Peer) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !done(self) && !self.closed {
            assert!(Instant::now() < until, "waited in vain for guest");
            self.turn(10);
        }
    }

    fn turn(&mut self, ms: u8) {
        let mut flags = PollFlags::POLLIN;
        flags.set(PollFlags::POLLOUT, self.link.wants_write());
        poll(&mut [PollFd::new(self.link.socket().as_fd(), flags)], PollTimeout::from(ms)).unwrap();
        let inbox = &mut self.inbox;
        let read = self.link.read(&mut [0; 65536], &|_| None, |event| {
            if let Event::Frame(bytes) = event {
                inbox.push(messages::decode(bytes).unwrap());
            }
        });
        let flushed = self.link.flush();
        if let Err(LinkError::Channel(_)) = read {
            // A stranger makes a confirmation up.
            let _ = self.link.socket().write(&[0; 32]);
        }
        self.closed |=
            matches!(read, Err(LinkError::Closed | LinkError::Io(_))) || flushed.is_err();
    }
}

/// Connects as soon as the guest listens.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let until = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => {
                stream.set_nonblocking(true).unwrap();
                return stream;
            }
            Err(error) => assert!(Instant::now() < until, "{address}: {error}"),
        }
    }
}

/// Waits until the other end of a raw connection is closed.
pub(crate) fn await_raw_closed(stream: &mut TcpStream) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}
