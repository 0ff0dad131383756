//! A guest that was broken into, as others see it that ask it for a snapshot.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use protocol::messages::{self, ToGuest, max_frame_bytes};
use shared_registers::channel::{Channel, Event};
use shared_registers::crypto::Secret;
use shared_registers::ids::ServerId;
use shared_registers::link::{Link, Party};

use crate::cluster::{Cluster, N, PATIENCE, forward_key};

/// What it does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// It makes something up.
    Bytes,
    /// It never answers.
    Silence,
    /// It closes the connection.
    Death,
}

/// In the place of a guest that is stopped.
pub(crate) struct Liar {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Liar {
    pub(crate) fn start(cluster: &Cluster, me: u16, lie: Lie) -> Liar {
        let until = Instant::now() + PATIENCE;
        let listener = loop {
            match TcpListener::bind(cluster.payload(me)) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        };
        listener.set_nonblocking(true).unwrap();
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (id, max) = (cluster.description.id(), cluster.description.limits.max_payload_bytes);
        let (stopped, count) = (stop.clone(), asked.clone());
        let thread = thread::spawn(move || {
            let mut links: Vec<Link<TcpStream>> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true).unwrap();
                    let me = Party::Guest(ServerId(me));
                    let channel = Channel::accept(me, id, [9; 16], max_frame_bytes(max));
                    links.push(Link::new(stream, channel, Vec::new()));
                }
                links.retain_mut(|link| answer(link, me, lie, &count));
                thread::sleep(Duration::from_micros(200));
            }
        });
        Liar { stop, asked, thread }
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Returns whether the connection stays.
fn answer(link: &mut Link<TcpStream>, me: u16, lie: Lie, asked: &AtomicU64) -> bool {
    let mut questions = Vec::new();
    let key = |party| match party {
        Party::Guest(peer) => Some(Secret::new(forward_key(me, peer.0)).mac_key()),
        _ => None,
    };
    let read = link.read(&mut [0; 65536], &key, |event| {
        if let Event::Frame(bytes) = event
            && let Ok(ToGuest::Fetch { digest, from }) = messages::decode_to_guest(bytes, N)
        {
            questions.push((digest, from));
        }
    });
    asked.fetch_add(questions.len() as u64, Ordering::Relaxed);
    if lie == Lie::Death && !questions.is_empty() {
        return false;
    }
    for (digest, from) in questions.into_iter().filter(|_| lie == Lie::Bytes) {
        let bytes = vec![7; 100].into();
        let made_up = ToGuest::Piece { digest, from, total: from + 100, bytes };
        assert!(link.send(|out| messages::encode_into(&made_up, out)));
    }
    read.is_ok() && link.flush().is_ok()
}
