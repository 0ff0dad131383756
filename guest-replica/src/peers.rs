//! Links to other guests: orders go to the sequencer on them (P3), and a guest that catches up asks
//! for a snapshot on them (section 6).
//!
//! This guest dials another one when it has something for it, and not before, and what it asks is
//! answered on the same connection; what others ask comes on connections that they dial. All of it
//! is best effort: a client resends an order that stays unanswered, and a question is asked again,
//! so whatever does not fit is dropped, the oldest first, and counted.

use std::collections::VecDeque;
use std::io;
use std::mem::take;
use std::net::SocketAddr;

use nix::sys::epoll::EpollFlags;
use protocol::messages::{self, OrderMessage, ToGuest};
use shared_registers::channel::{Channel, Event};
use shared_registers::crypto::{ClusterId, MacKey};
use shared_registers::ids::{Micros, ServerId};
use shared_registers::link::{Link, Party};

use crate::counters::Counters;
use crate::limits::{
    FORWARD_BYTES_QUEUED, FORWARDS_QUEUED, HANDSHAKE, QUESTIONS_QUEUED, READ_BYTES_PER_TURN,
    REDIAL_MAX, REDIAL_MIN,
};
use crate::net::{Poll, Socket, dial, nonce, peer_token};

struct Peer {
    id: ServerId,
    address: SocketAddr,
    key: MacKey,
    link: Option<Link<Socket>>,
    watched: EpollFlags,
    /// Orders, encoded.
    orders: VecDeque<Vec<u8>>,
    order_bytes: usize,
    /// Questions, encoded. They go first.
    questions: VecDeque<Vec<u8>>,
    /// Answers that may come on this connection: one for each question that went out on it.
    due_answers: usize,
    backoff: Micros,
    /// Not dialed before this; while a link is not established, its deadline.
    due: Micros,
}

/// What came of questions.
#[derive(Debug)]
pub(crate) enum News {
    /// An answer, of somebody who was asked something.
    Answer(ServerId, ToGuest),
    /// The link is gone, and with it all answers that were still to come.
    Lost(ServerId),
}

/// The links to other guests.
pub(crate) struct Peers {
    me: ServerId,
    cluster: ClusterId,
    n: usize,
    max_frame: usize,
    /// By server; none for this one.
    peers: Vec<Option<Peer>>,
    /// Since it was taken last: what one turn reads, at most [`READ_BYTES_PER_TURN`] of each peer.
    news: Vec<News>,
    scratch: Vec<u8>,
}

impl Peers {
    /// `peers`: by server, its payload address and the key shared with it.
    pub(crate) fn new(
        (me, cluster, max_frame): (ServerId, ClusterId, usize),
        peers: Vec<Option<(SocketAddr, MacKey)>>,
    ) -> Peers {
        let peer = |(id, peer): (ServerId, Option<(SocketAddr, MacKey)>)| {
            let (address, key) = peer?;
            Some(Peer {
                id,
                address,
                key,
                link: None,
                watched: EpollFlags::empty(),
                orders: VecDeque::new(),
                order_bytes: 0,
                questions: VecDeque::new(),
                due_answers: 0,
                backoff: REDIAL_MIN,
                due: Micros(0),
            })
        };
        Peers {
            me,
            cluster,
            n: peers.len(),
            max_frame,
            peers: ServerId::all(peers.len()).zip(peers).map(peer).collect(),
            news: Vec::new(),
            scratch: vec![0; READ_BYTES_PER_TURN],
        }
    }

    fn peer(&mut self, id: ServerId) -> Option<&mut Peer> {
        self.peers.get_mut(id.index()).and_then(Option::as_mut)
    }

    /// Queues an order for another guest.
    pub(crate) fn forward(&mut self, to: ServerId, order: OrderMessage, counters: &mut Counters) {
        let Some(peer) = self.peer(to) else { return };
        let message = messages::encode(&ToGuest::Forward(order));
        while peer.orders.len() >= FORWARDS_QUEUED
            || peer.order_bytes + message.len() > FORWARD_BYTES_QUEUED
        {
            let Some(oldest) = peer.orders.pop_front() else { break };
            peer.order_bytes -= oldest.len();
            counters.forwards_dropped += 1;
        }
        peer.order_bytes += message.len();
        peer.orders.push_back(message);
    }

    /// Queues a question for another guest.
    pub(crate) fn ask(&mut self, of: ServerId, question: &ToGuest) {
        let Some(peer) = self.peer(of) else { return };
        if peer.questions.len() >= QUESTIONS_QUEUED {
            peer.questions.pop_front();
        }
        peer.questions.push_back(messages::encode(question));
    }

    /// What came of questions since the last time.
    pub(crate) fn take_news(&mut self) -> Vec<News> {
        take(&mut self.news)
    }

    /// What epoll says of the link to `peer`.
    pub(crate) fn on_event(&mut self, peer: ServerId, now: Micros) {
        let Peers { peers, news, scratch, n, .. } = self;
        let Some(peer) = peers.get_mut(peer.index()).and_then(Option::as_mut) else { return };
        let Some(link) = &mut peer.link else { return };
        link.socket().allow();
        let (mut established, mut bad, mut left) = (false, false, peer.due_answers);
        let result = link.read(scratch, &|_| None, |event| match event {
            Event::Established(_) => established = true,
            Event::Frame(bytes) => match messages::decode_to_guest(bytes, *n) {
                Ok(answer @ (ToGuest::Piece { .. } | ToGuest::Gone { .. })) if left > 0 => {
                    left -= 1;
                    news.push(News::Answer(peer.id, answer));
                }
                // Who says what it was not asked means no good.
                _ => bad = true,
            },
        });
        peer.due_answers = left;
        if established {
            peer.backoff = REDIAL_MIN;
        }
        if bad || result.is_err() {
            peer.fail(now, news);
        }
    }

    /// Dials, sends and gives up, as far as it is time to.
    pub(crate) fn tend(&mut self, now: Micros, poll: &Poll, counters: &mut Counters) {
        let (me, cluster, max_frame) = (self.me, self.cluster, self.max_frame);
        for peer in self.peers.iter_mut().flatten() {
            if peer.link.is_none() && peer.has_something() && now >= peer.due {
                match peer.dial((me, cluster, max_frame), poll) {
                    Ok(link) => {
                        peer.link = Some(link);
                        peer.due = now.plus(HANDSHAKE);
                    }
                    Err(_) => peer.fail(now, &mut self.news),
                }
            }
            let Some(link) = &peer.link else { continue };
            let late = link.peer().is_none() && now >= peer.due;
            if late || peer.send(poll, counters).is_err() {
                peer.fail(now, &mut self.news);
            }
        }
    }

    /// When [`Self::tend`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        let due = |peer: &Peer| match &peer.link {
            Some(link) => link.peer().is_none().then_some(peer.due),
            None => peer.has_something().then_some(peer.due),
        };
        self.peers.iter().flatten().filter_map(due).min()
    }
}

impl Peer {
    fn has_something(&self) -> bool {
        !self.orders.is_empty() || !self.questions.is_empty()
    }

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

    fn fail(&mut self, now: Micros, news: &mut Vec<News>) {
        self.link = None;
        self.due = now.plus(self.backoff);
        self.backoff = self.backoff.plus(self.backoff).min(REDIAL_MAX);
        // Whoever asked asks again, here or elsewhere.
        if self.due_answers > 0 || !self.questions.is_empty() {
            news.push(News::Lost(self.id));
        }
        self.due_answers = 0;
        self.questions.clear();
    }

    fn send(&mut self, poll: &Poll, counters: &mut Counters) -> io::Result<()> {
        let Some(link) = &mut self.link else { return Ok(()) };
        while link.peer().is_some() && link.has_room() {
            if let Some(question) = self.questions.pop_front() {
                if link.send(|out| out.extend_from_slice(&question)) {
                    self.due_answers += 1;
                }
                continue;
            }
            let Some(order) = self.orders.pop_front() else { break };
            self.order_bytes -= order.len();
            match link.send(|out| out.extend_from_slice(&order)) {
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
