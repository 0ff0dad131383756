//! Random bytes on every port, in every bell and in a guest's write file: counted, dropped, and
//! the cluster goes on.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use shared_registers::bell;
use shared_registers::ids::ServerId;
use shared_registers::layout::{HEADER_BYTES, write};
use shared_registers::words::{MappedReadWrite, Words, WordsMut};

use crate::support::clients::{Caller, Traffic, one_order};
use crate::support::{Builder, Cluster, Role, counter, until};

/// Bytes without meaning (xorshift64*), the same in every run.
struct Noise(u64);

impl Noise {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.word() as u8).collect()
    }
}

/// Sends noise and waits until the other end has had enough of it.
fn shout(address: SocketAddr, noise: &mut Noise) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // It may be closed while we write.
    let _ = stream.write_all(&noise.bytes(2000));
    let closed = stream.read(&mut [0; 64]);
    let timed_out = |error: &std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    assert!(!closed.as_ref().is_err_and(timed_out), "{address} keeps a connection of noise");
}

fn assert_orders(cluster: &mut Cluster) {
    let caller = Caller::new(&cluster.folder, 1);
    let numbers = caller.invoke_all("after the noise", 20);
    let order = one_order(&cluster.folder, numbers[19]);
    let own: Vec<u64> = order.iter().filter(|m| m.client.0 == 1).map(|m| m.order.0).collect();
    assert_eq!(own, numbers);
    for id in cluster.ids() {
        cluster.await_delivered(id, numbers[19]);
    }
    cluster.assert_all_run();
}

#[test]
fn noise_on_every_port_is_counted_and_dropped() {
    let mut cluster = Builder::new().start();
    let mut noise = Noise(7);
    let mut traffic = Traffic::start(&cluster, 0, 4);
    for server in cluster.description.servers.clone() {
        let count = |name| cluster.counter(server.id, name);
        let (links, payload) = (count("host_links_refused"), count("refused_connections"));
        for _ in 0..20 {
            shout(server.trusted, &mut noise);
            shout(server.payload, &mut noise);
        }
        until(&format!("server {} counts the noise", server.id), || {
            count("host_links_refused") >= links + 20
                && count("refused_connections") >= payload + 20
        });
    }
    traffic.await_more(50);
    let answers = traffic.finish();
    answers.assert_stand_in(&one_order(&cluster.folder, answers.last()));
    assert_orders(&mut cluster);
}

#[test]
fn noise_in_every_bell_means_nothing() {
    let mut cluster = Builder::new().start();
    let mut noise = Noise(8);
    for id in cluster.ids() {
        let path = cluster.folder.paths().bell(ServerId(id));
        for _ in 0..10 {
            let mut bell = bell::connect(&path).unwrap();
            // It takes as much as it takes.
            let _ = bell.write(&noise.bytes(100_000));
        }
        // There is one bell, the newest: the guest finds its own gone, counts that, and comes back.
        until("the guest has lost its bell", || cluster.counter(id, "bells_lost") > 0);
    }
    assert_orders(&mut cluster);
}

#[test]
fn noise_in_a_live_guests_write_file_is_counted_and_dropped() {
    let mut cluster = Builder::new().start();
    let caller = Caller::new(&cluster.folder, 0);
    caller.invoke_all("before the noise", 5);
    let victim = cluster.after_sequencer(1);
    let path = cluster.folder.paths().write_file(ServerId(victim));
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let words = MappedReadWrite::map(&file).unwrap();
    let mut noise = Noise(9);
    let count = |name| cluster.counter(victim, name);
    let heads = count("host_bad_heads");
    for _ in 0..50 {
        for _ in 0..1000 {
            let word = noise.word() as usize % words.len();
            words.store(word, noise.word(), Ordering::Relaxed);
        }
        for word in 0..HEADER_BYTES as usize / 8 {
            words.store(word, noise.word(), Ordering::Relaxed);
        }
        caller.invoke("during the noise");
    }
    until("impossible heads are counted", || count("host_bad_heads") > heads);
    words.store(write::GUEST_NAP, 0, Ordering::Relaxed);
    assert_orders(&mut cluster);
}

#[test]
fn a_possible_head_over_noise_is_counted_and_a_restarted_guest_goes_on() {
    let mut cluster = Builder::new().start();
    let caller = Caller::new(&cluster.folder, 0);
    caller.invoke_all("before the noise", 5);
    let victim = cluster.after_sequencer(1);
    // It has voted for all of it, and writes nothing while we do.
    cluster.await_delivered(victim, 5);
    let path = cluster.folder.paths().write_file(ServerId(victim));
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let words = MappedReadWrite::map(&file).unwrap();
    let mut noise = Noise(10);
    let dropped = cluster.counter(victim, "host_dropped_framing");
    let head = words.load(write::HEAD, Ordering::Acquire);
    let ring = cluster.description.geometry(ServerId(victim)).frame_ring();
    ring.put(&words, head, &noise.bytes(4096));
    words.store(write::HEAD, head + 4096, Ordering::Release);
    // The guest writes next, or its host is rung: both find what is no frame.
    let mut bell = bell::connect(&cluster.folder.paths().bell(ServerId(victim))).unwrap();
    bell.write_all(&[1]).unwrap();
    until("noise is counted", || cluster.counter(victim, "host_dropped_framing") > dropped);
    drop(bell);
    // Whatever the guest makes of a file that another wrote to, it neither dies nor falls silent.
    let accepts = cluster.counter(victim, "host_records_accept");
    for round in ["once", "and again"] {
        let numbers = caller.invoke_all(round, 20);
        until("the guest reads on and votes", || {
            cluster.assert_all_run();
            let said = cluster.ask().swap_remove(usize::from(victim));
            said.is_ok_and(|status| {
                let votes = counter(&status, "host_records_accept") > accepts;
                status.delivered.0 >= numbers[19] && votes
            })
        });
    }
    cluster.kill(Role::Guest, victim);
    cluster.restart(Role::Guest, victim);
    assert_orders(&mut cluster);
}
