//! One server's connection: dialed, authenticated, and dialed again when it is lost.
//!
//! It is polled by the one task that owns all of them, so that what came from several servers is
//! dealt with in one wake-up. Its timers are that task's: see [`Connection::next_deadline`].

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use protocol::messages::{self, ToClient, ToServer};
use shared_registers::channel::{Channel, ChannelError, Event, NONCE_BYTES, Party};
use shared_registers::crypto::{ClusterId, MacKey};
use shared_registers::limits::LINK_SEND_BYTES;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::error::ServerAccount;
use crate::limits::MAX_QUEUED_BYTES;

/// Wait before the second attempt; it doubles from one to the next.
const MIN_BACKOFF: Duration = Duration::from_millis(50);
/// Longest wait, and how long a connection must have been good for the waits to start anew.
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// How long connecting and the handshake may take together.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How to reach a server.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Who dials whom.
    pub(crate) parties: (Party, Party),
    /// The key that they share.
    pub(crate) key: MacKey,
    pub(crate) cluster: ClusterId,
    pub(crate) max_frame_bytes: usize,
}

/// What a connection has to say.
pub(crate) enum Incoming {
    /// The server proved who it is.
    Open,
    /// It sent this.
    Message(ToClient),
    /// The connection was lost or could not be made; [`Connection::problem`] says why.
    Lost,
}

enum Stage {
    Waiting { until: Instant },
    Dialing { stream: Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>, until: Instant },
    Greeting { wire: Wire, until: Instant },
    Open { wire: Wire, since: Instant },
}

struct Wire {
    stream: TcpStream,
    channel: Channel,
    out: Vec<u8>,
    sent: usize,
    /// Writing failed.
    broken: Option<String>,
}

pub(crate) struct Connection {
    peer: Peer,
    stage: Stage,
    backoff: Duration,
    problem: ServerAccount,
    /// It has proved once that it holds the key.
    proven: bool,
}

impl Connection {
    /// A connection that dials when it is first polled.
    pub(crate) fn new(peer: Peer) -> Connection {
        Connection {
            peer,
            stage: Stage::Waiting { until: Instant::now() },
            backoff: MIN_BACKOFF,
            problem: ServerAccount::NotReached,
            proven: false,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.peer.address
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open { .. })
    }

    /// Whether the other end holds another key. One that proved once that it holds this one does
    /// not: a MAC of its that fails later was altered on the way.
    pub(crate) fn has_wrong_key(&self) -> bool {
        !self.proven && !self.is_open() && self.problem == ServerAccount::WrongKey
    }

    /// Why it is not open.
    pub(crate) fn problem(&self) -> &ServerAccount {
        &self.problem
    }

    /// When it must be polled although its socket is quiet.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Waiting { until }
            | Stage::Dialing { until, .. }
            | Stage::Greeting { until, .. } => Some(*until),
            Stage::Open { .. } => None,
        }
    }

    /// Gets on with it; returns what is next to tell. `scratch` is for what is read.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        scratch: &mut [u8],
    ) -> Poll<Incoming> {
        loop {
            match &mut self.stage {
                Stage::Waiting { until } if now < *until => return Poll::Pending,
                Stage::Waiting { .. } => {
                    let stream = Box::pin(TcpStream::connect(self.peer.address));
                    self.stage = Stage::Dialing { stream, until: now + HANDSHAKE };
                }
                Stage::Dialing { stream, until } => {
                    let until = *until;
                    match stream.as_mut().poll(cx) {
                        Poll::Ready(Ok(stream)) => match greet(&self.peer, stream) {
                            Ok(wire) => self.stage = Stage::Greeting { wire, until },
                            Err(error) => return self.lose(now, unreachable(&error)),
                        },
                        Poll::Ready(Err(error)) => return self.lose(now, unreachable(&error)),
                        Poll::Pending if now < until => return Poll::Pending,
                        Poll::Pending => {
                            let why = "no answer".to_owned();
                            return self.lose(now, ServerAccount::Unreachable(why));
                        }
                    }
                }
                Stage::Greeting { until, .. } if now >= *until => {
                    return self.lose(now, ServerAccount::SilentInHandshake);
                }
                Stage::Greeting { wire, .. } => match ready!(wire.poll_event(cx, scratch)) {
                    Ok(_) => return Poll::Ready(self.opened(now)),
                    Err(error) => return self.lose(now, in_handshake(error)),
                },
                Stage::Open { wire, .. } => match ready!(wire.poll_event(cx, scratch)) {
                    Ok(Some(message)) => return Poll::Ready(Incoming::Message(message)),
                    Ok(None) => {}
                    Err(why) => return self.lose(now, ServerAccount::Lost(why.to_string())),
                },
            }
        }
    }

    fn opened(&mut self, now: Instant) -> Incoming {
        let waiting = Stage::Waiting { until: now };
        match std::mem::replace(&mut self.stage, waiting) {
            Stage::Greeting { wire, .. } => self.stage = Stage::Open { wire, since: now },
            other => self.stage = other,
        }
        self.proven = true;
        tracing::debug!(address = %self.peer.address, "connected");
        Incoming::Open
    }

    fn lose(&mut self, now: Instant, problem: ServerAccount) -> Poll<Incoming> {
        tracing::debug!(address = %self.peer.address, ?problem, "not connected");
        if matches!(&self.stage, Stage::Open { since, .. } if now - *since >= MAX_BACKOFF) {
            self.backoff = MIN_BACKOFF;
        }
        self.problem = problem;
        self.stage = Stage::Waiting { until: now + self.backoff };
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
        Poll::Ready(Incoming::Lost)
    }

    /// Queues a message for [`Self::flush`], if the connection is open.
    pub(crate) fn send(&mut self, message: &ToServer) {
        let Stage::Open { wire, .. } = &mut self.stage else { return };
        let sealed = wire.out.len() - wire.sent < MAX_QUEUED_BYTES
            && wire.channel.seal(&mut wire.out, |out| messages::encode_into(message, out));
        if sealed {
            return;
        }
        tracing::debug!(address = %self.peer.address, "a frame was dropped");
        if matches!(message, ToServer::Subscribe { .. } | ToServer::Credit { .. }) {
            wire.broken = Some("it does not read what it is sent".to_owned());
        }
    }

    /// Writes what is queued, as far as the socket takes it.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>) {
        if let Stage::Greeting { wire, .. } | Stage::Open { wire, .. } = &mut self.stage {
            wire.flush(cx);
        }
    }
}

fn greet(peer: &Peer, stream: TcpStream) -> io::Result<Wire> {
    stream.set_nodelay(true)?;
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|error| io::Error::other(error.to_string()))?;
    let mut out = Vec::new();
    let Peer { parties, key, cluster, max_frame_bytes, .. } = peer;
    let channel = Channel::dial(*parties, key, *cluster, nonce, *max_frame_bytes, &mut out);
    Ok(Wire { stream, channel, out, sent: 0, broken: None })
}

/// Why a wire is over.
#[derive(Debug, thiserror::Error)]
enum WireError {
    #[error("closed by the server")]
    Closed,
    #[error("{0}")]
    Io(String),
    #[error("{0}")]
    Channel(#[from] ChannelError),
}

/// What the operating system says, without its number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn unreachable(error: &io::Error) -> ServerAccount {
    ServerAccount::Unreachable(plain(error))
}

fn in_handshake(error: WireError) -> ServerAccount {
    match error {
        // The first MAC of all is the server's: its key is not ours.
        WireError::Channel(ChannelError::BadMac) => ServerAccount::WrongKey,
        WireError::Channel(error) => ServerAccount::BadHandshake(error),
        WireError::Closed => ServerAccount::ClosedInHandshake,
        WireError::Io(why) => ServerAccount::Lost(why),
    }
}

impl Wire {
    /// The next message, or `None` for the end of the handshake or what is no message.
    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<Option<ToClient>, WireError>> {
        if let Some(why) = self.broken.take() {
            return Poll::Ready(Err(WireError::Io(why)));
        }
        loop {
            match self.channel.next(&|_| None, &mut self.out)? {
                Some(Event::Established(_)) => return Poll::Ready(Ok(None)),
                Some(Event::Frame(bytes)) => match messages::decode(bytes) {
                    Ok(message) => return Poll::Ready(Ok(Some(message))),
                    Err(_) => tracing::debug!("a frame that is no message was dropped"),
                },
                None => {
                    let mut buffer = ReadBuf::new(scratch);
                    match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                        Ok(()) if buffer.filled().is_empty() => {
                            return Poll::Ready(Err(WireError::Closed));
                        }
                        Ok(()) => self.channel.receive(buffer.filled()),
                        Err(error) => return Poll::Ready(Err(read_error(&error))),
                    }
                }
            }
        }
    }

    fn flush(&mut self, cx: &mut Context<'_>) {
        if self.broken.is_some() {
            cx.waker().wake_by_ref();
            return;
        }
        while self.sent < self.out.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &self.out[self.sent..]) {
                Poll::Ready(Ok(count)) if count > 0 => self.sent += count,
                Poll::Ready(result) => {
                    let why = result.err().map(|error| plain(&error));
                    self.broken = Some(why.unwrap_or_else(|| "it takes nothing".to_owned()));
                    // Nobody else would look at it again.
                    cx.waker().wake_by_ref();
                    break;
                }
                Poll::Pending => break,
            }
        }
        if self.sent == self.out.len() {
            self.out.clear();
            self.sent = 0;
            // One large frame must not hold its memory for the connection's whole life.
            self.out.shrink_to(LINK_SEND_BYTES);
        } else if self.sent > LINK_SEND_BYTES {
            self.out.drain(..std::mem::take(&mut self.sent));
        }
    }
}

fn read_error(error: &io::Error) -> WireError {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => WireError::Closed,
        _ => WireError::Io(plain(error)),
    }
}
