//! Handing orders on to other guests (P3): an order that came from its client goes to the
//! sequencer.
//!
//! This guest dials another one when it has something for it, and not before. All of it is best
//! effort: a client resends what stays unanswered, so whatever does not fit is dropped, the oldest
//! first, and counted.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use nix::sys::epoll::EpollFlags;
use protocol::messages::{self, OrderMessage, ToGuest};
use shared_registers::channel::{Channel, Event};
use shared_registers::crypto::{ClusterId, MacKey};
use shared_registers::ids::{Micros, ServerId};
use shared_registers::link::{Link, Party};

use crate::counters::Counters;
use crate::limits::{
    FORWARD_BYTES_QUEUED, FORWARDS_QUEUED, HANDSHAKE, READ_BYTES_PER_TURN, REDIAL_MAX, REDIAL_MIN,
};
use crate::net::{Poll, Socket, dial, nonce, peer_token};

struct Peer {
    id: ServerId,
    address: SocketAddr,
    key: MacKey,
    link: Option<Link<Socket>>,
    watched: EpollFlags,
    /// Messages, encoded.
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    backoff: Micros,
    /// Not dialed before this; while a link is not established, its deadline.
    due: Micros,
}

/// The links to other guests.
pub(crate) struct Forwarding {
    me: ServerId,
    cluster: ClusterId,
    max_frame: usize,
    /// By server; none for this one.
    peers: Vec<Option<Peer>>,
    scratch: Vec<u8>,
}

impl Forwarding {
    /// `peers`: by server, its payload address and the key shared with it.
    pub(crate) fn new(
        (me, cluster, max_frame): (ServerId, ClusterId, usize),
        peers: Vec<Option<(SocketAddr, MacKey)>>,
    ) -> Forwarding {
        let peer = |(id, peer): (ServerId, Option<(SocketAddr, MacKey)>)| {
            let (address, key) = peer?;
            Some(Peer {
                id,
                address,
                key,
                link: None,
                watched: EpollFlags::empty(),
                queue: VecDeque::new(),
                queued_bytes: 0,
                backoff: REDIAL_MIN,
                due: Micros(0),
            })
        };
        Forwarding {
            me,
            cluster,
            max_frame,
            peers: ServerId::all(peers.len()).zip(peers).map(peer).collect(),
            scratch: vec![0; READ_BYTES_PER_TURN],
        }
    }

    /// Queues an order for another guest.
    pub(crate) fn enqueue(&mut self, to: ServerId, order: OrderMessage, counters: &mut Counters) {
        let Some(peer) = self.peers.get_mut(to.index()).and_then(Option::as_mut) else { return };
        let message = messages::encode(&ToGuest::Forward(order));
        while peer.queue.len() >= FORWARDS_QUEUED
            || peer.queued_bytes + message.len() > FORWARD_BYTES_QUEUED
        {
            let Some(oldest) = peer.queue.pop_front() else { break };
            peer.queued_bytes -= oldest.len();
            counters.forwards_dropped += 1;
        }
        peer.queued_bytes += message.len();
        peer.queue.push_back(message);
    }

    /// What epoll says of the link to `peer`.
    pub(crate) fn on_event(&mut self, peer: ServerId, now: Micros) {
        let Some(peer) = self.peers.get_mut(peer.index()).and_then(Option::as_mut) else { return };
        let Some(link) = &mut peer.link else { return };
        link.socket().allow();
        let (mut established, mut spoke) = (false, false);
        let result = link.read(&mut self.scratch, &|_| None, |event| match event {
            Event::Established(_) => established = true,
            Event::Frame(_) => spoke = true,
        });
        if established {
            peer.backoff = REDIAL_MIN;
        }
        // Nothing is ever answered on this link: who says something there means no good.
        if spoke || result.is_err() {
            peer.fail(now);
        }
    }

    /// Dials, sends and gives up, as far as it is time to.
    pub(crate) fn tend(&mut self, now: Micros, poll: &Poll, counters: &mut Counters) {
        let (me, cluster, max_frame) = (self.me, self.cluster, self.max_frame);
        for peer in self.peers.iter_mut().flatten() {
            if peer.link.is_none() && !peer.queue.is_empty() && now >= peer.due {
                match peer.dial((me, cluster, max_frame), poll) {
                    Ok(link) => {
                        peer.link = Some(link);
                        peer.due = now.plus(HANDSHAKE);
                    }
                    Err(_) => peer.fail(now),
                }
            }
            let Some(link) = &peer.link else { continue };
            let late = link.peer().is_none() && now >= peer.due;
            if late || peer.send(poll, counters).is_err() {
                peer.fail(now);
            }
        }
    }

    /// When [`Self::tend`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        let due = |peer: &Peer| match &peer.link {
            Some(link) => link.peer().is_none().then_some(peer.due),
            None => (!peer.queue.is_empty()).then_some(peer.due),
        };
        self.peers.iter().flatten().filter_map(due).min()
    }
}

impl Peer {
    fn dial(
        &mut self,
        (me, cluster, max_frame): (ServerId, ClusterId, usize),
        poll: &Poll,
    ) -> io::Result<Link<Socket>> {
        let socket = dial(self.address)?;
        let (mut hello, ends) = (Vec::new(), (Party::Guest(me), Party::Guest(self.id)));
        let nonce = nonce()?;
        let channel = Channel::dial(ends, &self.key, cluster, nonce, max_frame, &mut hello);
        self.watched = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
        poll.watch(&socket, peer_token(self.id), self.watched)?;
        Ok(Link::new(socket, channel, hello))
    }

    fn fail(&mut self, now: Micros) {
        self.link = None;
        self.due = now.plus(self.backoff);
        self.backoff = self.backoff.plus(self.backoff).min(REDIAL_MAX);
    }

    fn send(&mut self, poll: &Poll, counters: &mut Counters) -> io::Result<()> {
        let Some(link) = &mut self.link else { return Ok(()) };
        while link.peer().is_some() && link.has_room() {
            let Some(message) = self.queue.pop_front() else { break };
            self.queued_bytes -= message.len();
            match link.send(|out| out.extend_from_slice(&message)) {
                true => counters.forwards_sent += 1,
                false => counters.forwards_dropped += 1,
            }
        }
        link.flush().map_err(io::Error::other)?;
        let mut wanted = EpollFlags::EPOLLIN;
        wanted.set(EpollFlags::EPOLLOUT, link.wants_write());
        if wanted != self.watched {
            poll.change(link.socket(), peer_token(self.id), wanted)?;
            self.watched = wanted;
        }
        Ok(())
    }
}
