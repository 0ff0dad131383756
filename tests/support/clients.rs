//! Clients of a cluster through the library, for tests that are not asynchronous themselves.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use client::{Client, ClientConfig, ClientError, Message, Reply};
use shared_registers::ids::OrderNumber;
use tokio::runtime::{Builder, Runtime};

use super::{Cluster, Folder, PATIENCE, until};

/// Between two submissions of a [`Traffic`], so that it leaves the processors to others.
const PAUSE: Duration = Duration::from_millis(1);
/// Requests of a [`Caller::invoke_many`] in flight.
const AT_ONCE: usize = 32;
/// The clients that listen; the others are for sending.
pub(crate) const LISTENERS: [u32; 2] = [2, 3];

pub(crate) fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A client that does one thing at a time.
pub(crate) struct Caller {
    runtime: Runtime,
    client: Client,
}

impl Caller {
    pub(crate) fn new(folder: &Folder, id: u32) -> Caller {
        let runtime = runtime();
        let config = ClientConfig::load(&folder.dir, id).unwrap();
        let client = runtime.block_on(async { Client::connect(config) });
        Caller { runtime, client }
    }

    pub(crate) fn invoke(&self, payload: impl Into<Vec<u8>>) -> Reply {
        let reply = self.runtime.block_on(self.client.invoke(payload.into()));
        reply.unwrap_or_else(|error| panic!("a request failed: {error}"))
    }

    /// Sends all, so many at a time; returns the order numbers.
    pub(crate) fn invoke_many(&self, payloads: impl Iterator<Item = Vec<u8>>) -> Vec<u64> {
        let all = async {
            let (mut under_way, mut orders) = (VecDeque::new(), Vec::new());
            for payload in payloads {
                under_way.push_back(self.client.submit(payload).await?);
                while under_way.len() >= AT_ONCE {
                    let Some(oldest) = under_way.pop_front() else { break };
                    orders.push(oldest.await?.order.0);
                }
            }
            for pending in under_way {
                orders.push(pending.await?.order.0);
            }
            Ok::<_, ClientError>(orders)
        };
        self.runtime.block_on(all).unwrap_or_else(|error| panic!("a request failed: {error}"))
    }

    /// Sends each, one after the other; returns the order numbers.
    pub(crate) fn invoke_all(&self, name: &str, count: usize) -> Vec<u64> {
        (0..count).map(|i| self.invoke(format!("{name} {i}")).order.0).collect()
    }
}

/// What the client `id` hears: orders 1 to `last`.
pub(crate) fn heard(folder: &Folder, id: u32, last: u64) -> Vec<Message> {
    let config = ClientConfig::load(&folder.dir, id).unwrap();
    runtime().block_on(async {
        let client = Client::connect(config);
        let mut messages = client.subscribe(OrderNumber(1));
        let mut heard = Vec::new();
        while (heard.len() as u64) < last {
            let count = heard.len();
            let next = tokio::time::timeout(PATIENCE, messages.next()).await;
            let next = next.unwrap_or_else(|_| panic!("client {id} heard {count} of {last}"));
            heard.push(next.unwrap_or_else(|error| panic!("client {id}: {error}")));
        }
        heard
    })
}

/// The one order, as two listeners hear it alike, without gaps.
pub(crate) fn one_order(folder: &Folder, last: u64) -> Vec<Message> {
    let [one, other] = LISTENERS.map(|id| heard(folder, id, last));
    assert!(one.iter().map(|message| message.order.0).eq(1..=last), "a gap or a repeat");
    let differs = one.iter().zip(&other).find(|(a, b)| a != b);
    assert!(differs.is_none(), "two listeners hear different messages: {differs:?}");
    one
}

/// An answered request.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    payload: Vec<u8>,
    pub(crate) order: u64,
    at: Instant,
}

/// A client that sends all the time, with several requests in flight.
pub(crate) struct Traffic {
    client: u32,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Result<Vec<Answer>, ClientError>>>,
}

impl Traffic {
    pub(crate) fn start(cluster: &Cluster, client: u32, in_flight: usize) -> Traffic {
        Traffic::start_large(&cluster.folder, client, in_flight, 0)
    }

    /// As [`Self::start`], with requests of at least so many bytes.
    pub(crate) fn start_large(
        folder: &Folder,
        client: u32,
        in_flight: usize,
        bytes: usize,
    ) -> Traffic {
        let config = ClientConfig::load(&folder.dir, client).unwrap();
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, count) = (stop.clone(), answered.clone());
        let thread = thread::spawn(move || {
            runtime().block_on(send(config, (in_flight, bytes), &stopped, &count))
        });
        Traffic { client, stop, answered, thread: Some(thread) }
    }

    /// Waits for so many answers more than there are.
    pub(crate) fn await_more(&mut self, count: usize) {
        let wanted = self.answered.load(Ordering::Relaxed) + count;
        let ended =
            |thread: &Option<JoinHandle<_>>| thread.as_ref().is_none_or(|t| t.is_finished());
        until(&format!("{count} more answers for client {}", self.client), || {
            self.answered.load(Ordering::Relaxed) >= wanted || ended(&self.thread)
        });
        if self.answered.load(Ordering::Relaxed) < wanted {
            // It has failed; say how.
            self.join();
        }
    }

    /// Sends no more, and waits for all answers.
    pub(crate) fn finish(mut self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        Answers { client: self.client, answers: self.join() }
    }

    fn join(&mut self) -> Vec<Answer> {
        let ended = self.thread.take().expect("joined once").join().expect("no panic");
        ended.unwrap_or_else(|error| panic!("client {}: a request failed: {error}", self.client))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

async fn send(
    config: ClientConfig,
    (in_flight, bytes): (usize, usize),
    stop: &AtomicBool,
    answered: &AtomicUsize,
) -> Result<Vec<Answer>, ClientError> {
    let client = Client::connect(config);
    let (mut under_way, mut answers) = (VecDeque::new(), Vec::new());
    let mut sent = 0;
    loop {
        let stopped = stop.load(Ordering::Relaxed);
        if !stopped && under_way.len() < in_flight {
            let mut payload = format!("message {sent}").into_bytes();
            payload.resize(payload.len().max(bytes), b'.');
            sent += 1;
            under_way.push_back((payload.clone(), client.submit(payload).await?));
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let Some((payload, pending)) = under_way.pop_front() else { return Ok(answers) };
        let order = pending.await?.order.0;
        answers.push(Answer { payload, order, at: Instant::now() });
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// What a [`Traffic`] was answered.
pub(crate) struct Answers {
    client: u32,
    answers: Vec<Answer>,
}

impl Answers {
    pub(crate) fn last(&self) -> u64 {
        self.answers.last().expect("an answer").order
    }

    /// The longest time without an answer.
    pub(crate) fn longest_gap(&self) -> Duration {
        let pairs = self.answers.windows(2).map(|pair| pair[1].at - pair[0].at);
        pairs.max().unwrap_or_default()
    }

    /// Every answered request stands in the one order once, at its number, in the client's order;
    /// and the client is said to have sent nothing else.
    pub(crate) fn assert_stand_in(&self, order: &[Message]) {
        let own = order.iter().filter(|message| message.client.0 == self.client);
        let own: Vec<_> = own.map(|message| (message.order.0, &message.payload)).collect();
        let wanted: Vec<_> = self.answers.iter().map(|a| (a.order, &a.payload)).collect();
        let differs = own.iter().zip(&wanted).position(|(a, b)| a != b);
        let differs = differs.map(|at| (&own[at], &wanted[at]));
        assert!(
            own.len() == wanted.len() && differs.is_none(),
            "client {} was answered {} requests and {} stand in the order; {differs:?}",
            self.client,
            wanted.len(),
            own.len()
        );
        assert!(wanted.is_sorted_by_key(|(order, _)| order), "not in the client's order");
    }
}
