use std::collections::VecDeque;

use shared_registers::ids::ClientId;

use super::*;
use crate::messages::{Credit, DELIVERY_COST_BYTES};

const CLUSTER: ClusterId = ClusterId([9; 32]);
const FETCH: Micros = Micros::from_ms(20);
const LARGE: usize = 1 << 18;

/// A listener among servers whose words the test makes up.
struct Story {
    listener: Listener,
    n: u16,
    now: Micros,
    out: Vec<Output>,
}

fn story_from(f: usize, from: u64) -> Story {
    let (n, from) = (2 * f + 1, OrderNumber(from));
    let config = ListenerConfig { n, f, cluster: CLUSTER, from, fetch: FETCH };
    let listener = Listener::new(config);
    let mut story = Story { listener, n: n as u16, now: Micros(5), out: Vec::new() };
    story.room(u64::MAX, u64::MAX);
    for server in 0..n as u16 {
        story.step(Input::Connected(ServerId(server)));
    }
    assert_eq!(story.subscribed(), (0..n as u16).map(|s| (s, from.0)).collect::<Vec<_>>());
    story
}

fn story(f: usize) -> Story {
    story_from(f, 1)
}

/// Few are large.
fn payload(order: u64) -> Vec<u8> {
    let mut payload = order.to_le_bytes().to_vec();
    payload.resize(if order.is_multiple_of(500) { LARGE } else { 8 }, 0);
    payload
}

/// What a correct server says of an order, with the payload or without.
fn truth(order: u64, with: bool) -> Delivery {
    saying(order, payload(order), with)
}

fn saying(order: u64, payload: Vec<u8>, with: bool) -> Delivery {
    let id = OrderId { client: ClientId(1), session: 2, count: order };
    let digest = order::digest(&CLUSTER, id, &payload);
    let body = if with { Body::Here(payload.into()) } else { Body::Elsewhere };
    let (order, time) = (OrderNumber(order), Micros(order * 10));
    Delivery { order, id, digest, time, payload: body }
}

impl Story {
    fn step(&mut self, input: Input) {
        self.listener.step(self.now, input, &mut self.out);
    }

    fn room(&mut self, messages: u64, bytes: u64) {
        self.step(Input::Room { messages, bytes });
    }

    fn say(&mut self, server: u16, delivery: Delivery) {
        self.step(Input::FromServer(ServerId(server), ToClient::Delivery(delivery)));
    }

    fn too_old(&mut self, server: u16, from: u64, first: u64) {
        let too_old = ToClient::TooOld { from: OrderNumber(from), first: OrderNumber(first) };
        self.step(Input::FromServer(ServerId(server), too_old));
    }

    /// Server 0 is the sequencer, which sends the payload.
    fn all_say(&mut self, servers: impl Iterator<Item = u16>, order: u64) {
        for server in servers {
            self.say(server, truth(order, server == 0));
        }
    }

    fn wait(&mut self, time: Micros) {
        self.now = self.now.plus(time);
        self.step(Input::Tick);
    }

    /// Waits until the listener has nothing to wait for, at most a while; collects with `look`.
    fn wait_out<T>(&mut self, times: usize, look: impl Fn(&mut Story) -> Vec<T>) -> Vec<T> {
        let mut seen = Vec::new();
        for _ in 0..times {
            let Some(at) = self.listener.next_deadline() else { break };
            self.wait(at.since(self.now));
            seen.extend(look(self));
        }
        seen
    }

    fn take<T>(&mut self, pick: impl Fn(&Output) -> Option<T>) -> Vec<T> {
        let mut taken = Vec::new();
        self.out.retain(|output| match pick(output) {
            Some(it) => {
                taken.push(it);
                false
            }
            None => true,
        });
        taken
    }

    fn subscribed(&mut self) -> Vec<(u16, u64)> {
        self.take(|output| match output {
            Output::Send(to, ToServer::Subscribe { from, messages, bytes }) => {
                assert_eq!((*messages, *bytes), (WINDOW_MESSAGES, WINDOW_BYTES));
                Some((to.0, from.0))
            }
            _ => None,
        })
    }

    /// To whom how much credit was given.
    fn credited(&mut self) -> Vec<(u16, u64, u64)> {
        self.take(|output| match output {
            Output::Send(to, ToServer::Credit { messages, bytes }) => {
                Some((to.0, *messages, *bytes))
            }
            _ => None,
        })
    }

    fn fetched(&mut self) -> Vec<(u16, u64)> {
        self.take(|output| match output {
            Output::Send(to, ToServer::FetchDelivery { order }) => Some((to.0, order.0)),
            _ => None,
        })
    }

    /// Numbers delivered since the last look; each with the right message.
    fn delivered(&mut self) -> Vec<u64> {
        self.take(|output| match output {
            Output::Deliver(delivered) => {
                let order = delivered.order.0;
                assert_eq!(delivered.payload, payload(order));
                assert_eq!((delivered.id.count, delivered.time), (order, Micros(order * 10)));
                Some(order)
            }
            _ => None,
        })
    }

    fn ended(&mut self) -> Vec<u64> {
        self.take(|output| match output {
            Output::TooOld { first } => Some(first.0),
            _ => None,
        })
    }
}

#[test]
fn words_of_a_server_that_is_not_connected_make_nobody_send_to_it() {
    let mut story = story(1);
    story.step(Input::Disconnected(ServerId(2)));
    story.too_old(2, 0, 1);
    story.say(2, truth(5, true));
    story.now = story.now.plus(Micros::from_ms(5000));
    story.step(Input::Tick);
    let to_it = |out: &Output| matches!(out, Output::Send(server, _) if *server == ServerId(2));
    assert!(!story.out.iter().any(to_it), "{:?}", story.out);
    assert_eq!(story.listener.counters().unknown, 2);
}

#[test]
fn messages_leave_in_order_without_gaps_or_repeats() {
    for f in [1, 2] {
        let mut story = story(f);
        let n = story.n;
        // One server after the other, each with repeats.
        for server in (0..n).rev() {
            for order in [1, 2, 1, 3, 4, 2, 5] {
                story.say(server, truth(order, server == 0));
            }
        }
        assert_eq!(story.delivered(), [1, 2, 3, 4, 5]);
        assert!(story.listener.slots.is_empty());
    }
}

#[test]
fn f_liars_are_never_believed() {
    for f in [1, 2] {
        let mut story = story(f);
        let (f, n) = (f as u16, story.n);
        let lie = saying(1, b"lie".to_vec(), true);
        for _ in 0..3 {
            (0..f).for_each(|liar| story.say(liar, lie.clone()));
        }
        (f..2 * f).for_each(|server| story.say(server, truth(1, true)));
        assert_eq!(story.delivered(), []);
        story.say(n - 1, truth(1, false));
        assert_eq!(story.delivered(), [1]);
    }
}

#[test]
fn order_digest_and_time_must_all_be_equal() {
    let other_id = OrderId { client: ClientId(2), session: 2, count: 1 };
    let digest = order::digest(&CLUSTER, other_id, &payload(1));
    let lies = [
        Delivery { time: Micros(11), ..truth(1, true) },
        Delivery { id: other_id, digest, ..truth(1, true) },
        saying(1, b"lie".to_vec(), true),
        truth(2, true),
    ];
    for lie in lies {
        let mut story = story(1);
        story.say(0, lie);
        story.say(1, truth(1, true));
        assert_eq!(story.delivered(), []);
        story.say(2, truth(1, false));
        assert_eq!(story.delivered(), [1]);
    }
}

#[test]
fn a_server_that_votes_twice_counts_once_and_its_first_word_stands() {
    let mut story = story(1);
    story.say(0, truth(1, true));
    story.say(0, truth(1, true));
    story.say(1, Delivery { time: Micros(1), ..truth(1, false) });
    story.say(1, truth(1, false));
    assert_eq!(story.delivered(), []);
    let counters = story.listener.counters();
    assert_eq!((counters.wrong, counters.duplicate), (1, 1));
}

#[test]
fn a_payload_must_be_of_the_digest() {
    let mut story = story(1);
    let forged = Body::Here(b"forged".to_vec().into());
    story.say(0, Delivery { payload: forged.clone(), ..truth(1, false) });
    story.say(1, truth(1, false));
    story.say(2, truth(1, false));
    story.say(0, Delivery { payload: forged, ..truth(1, false) });
    assert_eq!((story.delivered(), story.listener.counters().wrong), (vec![], 2));
    story.say(1, truth(1, true));
    assert_eq!(story.delivered(), [1]);
}

#[test]
fn a_missing_payload_is_asked_for_from_one_agreeing_server_after_another() {
    let mut story = story(2);
    story.say(0, saying(1, b"lie".to_vec(), true));
    (1..4).for_each(|server| story.say(server, truth(1, false)));
    story.wait(Micros(FETCH.0 - 1));
    assert_eq!(story.fetched(), []);
    let asked = story.wait_out(4, Story::fetched);
    assert_eq!(asked, [(1, 1), (2, 1), (3, 1), (1, 1)]);
    story.say(2, truth(1, true));
    assert_eq!(story.delivered(), [1]);
    story.wait_out(10, Story::fetched);
    assert_eq!(story.listener.next_deadline(), None);
}

#[test]
fn a_server_that_ignores_credit_is_counted_and_neither_fills_it_nor_stalls_it() {
    let mut story = story(1);
    // A liar names everything, with a digest of its own, and the correct ones come later.
    for order in (1..3 * WINDOW_MESSAGES).chain([u64::MAX / 11, u64::MAX / 10]) {
        story.say(2, saying(order, b"lie".to_vec(), true));
    }
    assert_eq!(story.listener.slots.len() as u64, WINDOW_MESSAGES);
    assert_eq!(story.listener.counters().beyond_credit, 2 * WINDOW_MESSAGES + 1);
    assert_eq!((story.credited(), story.listener.next_deadline()), (vec![], None));
    let orders = 2 * WINDOW_MESSAGES;
    for order in 1..=orders {
        story.all_say(0..2, order);
    }
    assert_eq!(story.delivered(), (1..=orders).collect::<Vec<_>>());
}

#[test]
fn a_flood_of_payloads_is_not_kept_and_not_lost() {
    let mut story = story(1);
    let big = vec![1; HELD_BYTES_PER_SERVER / 4];
    story.say(2, saying(1, big.clone(), false));
    for order in 2..12 {
        story.say(2, saying(order, big.clone(), true));
    }
    assert_eq!(story.listener.sources[2].held, 4 * big.len());
    assert_eq!(story.listener.counters().beyond_hold, 6);
    // The next wanted one is always taken, and what was not kept is asked for.
    story.say(0, saying(1, big.clone(), true));
    (2..12).for_each(|order| story.say(0, saying(order, big.clone(), false)));
    assert_eq!(story.listener.next().0, 6);
    for order in 6..12 {
        let asked = story.wait_out(8, Story::fetched);
        let (server, _) = asked.iter().find(|(_, asked)| *asked == order).unwrap();
        story.say(*server, saying(order, big.clone(), true));
    }
    assert_eq!((story.listener.next().0, story.listener.sources[2].held), (12, 0));
    assert_eq!(story.subscribed(), []);
}

#[test]
fn credit_comes_back_by_half_windows_for_what_has_left() {
    let mut story = story(1);
    let half = WINDOW_MESSAGES / 2;
    (1..=WINDOW_MESSAGES).for_each(|order| story.say(1, truth(order, false)));
    (1..half).for_each(|order| story.say(0, truth(order, true)));
    assert_eq!(story.credited(), []);
    story.say(0, truth(half, true));
    let digests = half * DELIVERY_COST_BYTES;
    let payloads = (half - 1) * 8 + LARGE as u64;
    assert_eq!(story.credited(), [(0, half, digests + payloads), (1, half, digests)]);
    // One that is late gets it for what nobody waits for any more.
    (1..half).for_each(|order| story.say(2, truth(order, false)));
    assert_eq!(story.credited(), []);
    story.say(2, truth(half, false));
    assert_eq!(story.credited(), [(2, half, digests)]);
}

#[test]
fn credit_in_bytes_comes_back_when_few_messages_used_it() {
    let mut story = story(1);
    let (large, cost) =
        (vec![7; WINDOW_BYTES as usize / 4], WINDOW_BYTES / 4 + DELIVERY_COST_BYTES);
    story.say(0, saying(1, large.clone(), true));
    story.say(1, saying(1, large.clone(), false));
    assert_eq!(story.credited(), []);
    story.say(0, saying(2, large.clone(), true));
    story.say(1, saying(2, large, false));
    assert_eq!(story.credited(), [(0, 2, 2 * cost)]);
}

/// A correct server at the other end of a slow wire.
#[derive(Clone)]
struct Server {
    next: u64,
    credit: Option<Credit>,
    sent: u64,
    wire: VecDeque<Delivery>,
}

impl Server {
    fn on_message(&mut self, message: ToServer) {
        match message {
            ToServer::Subscribe { from, messages, bytes } => {
                (self.next, self.credit) = (from.0, Some(Credit::new(messages, bytes)));
            }
            ToServer::Credit { messages, bytes } => {
                self.credit.as_mut().unwrap().add(messages, bytes);
            }
            ToServer::FetchDelivery { order } => self.wire.push_back(truth(order.0, true)),
            other => panic!("{other:?}"),
        }
    }

    fn pump(&mut self, last: u64, with: bool) {
        let Some(credit) = &mut self.credit else { return };
        while self.next <= last && credit.allows() {
            let delivery = truth(self.next, with);
            credit.spend(delivery.cost());
            self.wire.push_back(delivery);
            (self.next, self.sent) = (self.next + 1, self.sent + 1);
        }
    }
}

#[test]
fn a_slow_caller_is_sent_each_delivery_once_by_each_server() {
    let config =
        ListenerConfig { n: 3, f: 1, cluster: CLUSTER, from: OrderNumber(1), fetch: FETCH };
    let listener = Listener::new(config);
    let mut story = Story { listener, n: 3, now: Micros(5), out: Vec::new() };
    (0..3).for_each(|s| story.step(Input::Connected(ServerId(s))));
    let mut servers = vec![Server { next: 0, credit: None, sent: 0, wire: VecDeque::new() }; 3];
    let (last, mut delivered, mut random) = (100_000, 0, 1u64);
    for round in 0.. {
        if delivered == last {
            break;
        }
        assert!(round < last, "it has stopped at {delivered}");
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let some = |bits: u32, below: u64| (random >> bits) % below;
        // The servers' paces differ, and the caller is slower than all of them.
        for (id, server) in servers.iter_mut().enumerate() {
            server.pump(last, id == 0);
            let ready = server.wire.len().min(some(10 * id as u32 + 8, 400) as usize);
            for delivery in server.wire.drain(..ready) {
                story.say(id as u16, delivery);
            }
        }
        story.room(some(40, 130), some(48, 2 * LARGE as u64));
        for order in story.delivered() {
            delivered += 1;
            assert_eq!(order, delivered);
        }
        assert!(story.listener.slots.len() as u64 <= WINDOW_MESSAGES);
        let held = story.listener.sources.iter().map(|source| source.held).max();
        assert!(held <= Some(WINDOW_BYTES as usize + LARGE));
        for output in std::mem::take(&mut story.out) {
            let Output::Send(server, message) = output else { panic!("{output:?}") };
            servers[server.index()].on_message(message);
        }
    }
    // What is late for the caller comes in as well.
    for (id, server) in servers.iter_mut().enumerate() {
        while server.next <= last {
            server.pump(last, id == 0);
            server.wire.drain(..).for_each(|delivery| story.say(id as u16, delivery));
            let to_it = |output: &Output| match output {
                Output::Send(to, message) if to.index() == id => Some(message.clone()),
                _ => None,
            };
            story.take(to_it).into_iter().for_each(|message| server.on_message(message));
        }
        server.wire.drain(..).for_each(|delivery| story.say(id as u16, delivery));
        assert_eq!(server.sent, last, "server {id} sent something twice or not at all");
    }
    let Counters { delivered, late, .. } = story.listener.counters();
    let nothing_else = Counters { delivered, late, ..Counters::default() };
    assert_eq!((story.listener.counters(), delivered), (nothing_else, last));
}

#[test]
fn a_server_that_left_one_out_is_asked_again() {
    let mut story = story(1);
    story.all_say(0..2, 1);
    story.say(0, truth(2, true));
    // Server 2 is a liar who says nothing; server 1 lost number 2, which it never may.
    story.say(1, truth(3, false));
    assert_eq!(story.listener.counters().left_out, 1);
    story.wait(Micros(ASK_AGAIN.0 - 1));
    assert_eq!(story.subscribed(), []);
    story.wait(Micros(1));
    assert_eq!(story.subscribed(), [(1, 2)]);
    story.say(1, truth(2, false));
    assert_eq!(story.delivered(), [1, 2]);
}

#[test]
fn what_an_earlier_subscription_brings_late_is_not_taken_for_a_gap() {
    let mut story = story_from(1, 5);
    (700..710).for_each(|order| story.all_say(0..3, order));
    (2..5).for_each(|order| story.all_say(0..3, order));
    assert_eq!(story.listener.counters().left_out, 30);
    (5..8).for_each(|order| story.all_say(0..3, order));
    story.wait(ASK_AGAIN);
    assert_eq!((story.delivered(), story.subscribed()), (vec![5, 6, 7], vec![]));
    assert_eq!(story.listener.next_deadline(), None);
}

#[test]
fn a_reconnect_resumes_without_gap_or_repeat() {
    let mut story = story(1);
    story.all_say(0..3, 1);
    story.say(0, truth(2, true));
    for server in 0..3 {
        story.step(Input::Disconnected(ServerId(server)));
    }
    story.step(Input::Connected(ServerId(1)));
    story.step(Input::Connected(ServerId(0)));
    assert_eq!(story.subscribed(), [(1, 2), (0, 2)]);
    for order in 2..5 {
        story.all_say(0..2, order);
    }
    assert_eq!(story.delivered(), [1, 2, 3, 4]);
    assert_eq!(story.subscribed(), []);
}

#[test]
fn a_caller_without_room_gets_nothing_and_loses_nothing() {
    let config =
        ListenerConfig { n: 3, f: 1, cluster: CLUSTER, from: OrderNumber(1), fetch: FETCH };
    let listener = Listener::new(config);
    let mut story = Story { listener, n: 3, now: Micros(5), out: Vec::new() };
    (0..3).for_each(|s| story.step(Input::Connected(ServerId(s))));
    story.subscribed();
    for order in 1..=WINDOW_MESSAGES {
        story.all_say(0..3, order);
    }
    assert_eq!((story.delivered(), story.credited()), (vec![], vec![]));
    story.room(2, u64::MAX);
    assert_eq!(story.delivered(), [1, 2]);
    story.room(WINDOW_MESSAGES, 0);
    assert_eq!(story.delivered(), (3..=WINDOW_MESSAGES).collect::<Vec<_>>());
}

#[test]
fn room_is_counted_in_bytes_too() {
    let mut story = story(1);
    story.listener.room_bytes = 9;
    for order in 1..=3 {
        story.all_say(0..2, order);
    }
    // Eight bytes each: the second goes over, and the third waits.
    assert_eq!(story.delivered(), [1, 2]);
    story.room(0, 7);
    assert_eq!(story.delivered(), []);
    story.room(0, 1);
    assert_eq!(story.delivered(), [3]);
}

#[test]
fn however_fast_deliveries_leave_nothing_of_them_stays() {
    let mut story = story(1);
    for order in 1..=3 * WINDOW_MESSAGES {
        // Time stands still: nothing is due.
        story.all_say(0..3, order);
        for queue in story.listener.queues() {
            assert!(queue.length <= queue.bound, "{queue:?} at {order}");
        }
    }
    assert_eq!(story.delivered().len() as u64, 3 * WINDOW_MESSAGES);
    // What cannot leave is counted.
    story.all_say(1..3, 3 * WINDOW_MESSAGES + 1);
    story.say(0, truth(3 * WINDOW_MESSAGES + 2, true));
    story.all_say(1..2, 3 * WINDOW_MESSAGES + 2);
    let lengths = story.listener.queues().map(|queue| queue.length);
    assert_eq!(lengths, [2, 0, 1]);
}

#[test]
fn too_old_is_believed_from_f_plus_one_and_no_more_than_a_correct_server_says() {
    for f in [1, 2] {
        let mut story = story(f);
        for liar in 0..f as u16 {
            story.too_old(liar, 1, u64::MAX);
            story.too_old(liar, 1, u64::MAX);
        }
        story.wait_out(5, Story::ended);
        assert_eq!(story.ended(), []);
        story.too_old(f as u16, 1, 40);
        assert_eq!(story.ended(), []);
        story.wait(FETCH);
        assert_eq!(story.ended(), [40]);
        story.all_say(0..story.n, 1);
        assert_eq!((story.delivered(), story.listener.next_deadline()), (vec![], None));
    }
    // When all have spoken there is nothing to wait for, and small lies do not win either.
    let mut story = story(1);
    story.too_old(0, 1, 2);
    story.too_old(1, 1, 40);
    story.too_old(2, 1, 41);
    assert_eq!(story.ended(), [40]);
}

#[test]
fn a_server_that_kept_too_little_joins_when_the_others_have_come_so_far() {
    let mut story = story(1);
    story.too_old(2, 1, 3);
    story.all_say(0..2, 1);
    assert_eq!(story.subscribed(), []);
    story.all_say(0..2, 2);
    assert_eq!(story.subscribed(), [(2, 3)]);
    story.say(0, truth(3, true));
    story.say(2, truth(3, false));
    assert_eq!(story.delivered(), [1, 2, 3]);
    // An answer that is out of date, or of no sense, changes nothing.
    story.too_old(2, 1, 3);
    story.too_old(2, 4, 4);
    assert_eq!(story.subscribed(), []);
    let counters = story.listener.counters();
    assert_eq!((counters.late, counters.wrong), (1, 1));
}

#[test]
fn what_is_here_is_delivered_before_the_rest_is_too_old() {
    let mut story = story(1);
    story.listener.room_messages = 0;
    for order in 1..=3 {
        story.all_say(0..3, order);
    }
    (0..3).for_each(|server| story.too_old(server, 4, 9));
    story.wait_out(5, Story::ended);
    story.room(2, 0);
    assert_eq!((story.delivered(), story.ended()), (vec![1, 2], vec![]));
    story.room(1, 0);
    assert_eq!((story.delivered(), story.ended()), (vec![3], vec![9]));
}

#[test]
fn a_payload_that_nobody_keeps_ends_in_too_old() {
    let mut story = story(1);
    for server in 0..2 {
        story.say(server, truth(1, false));
    }
    for server in 0..2 {
        assert_eq!(story.wait_out(1, Story::fetched), [(server, 1)]);
        story.too_old(server, 1, 7);
    }
    assert_eq!(story.subscribed(), []);
    story.wait_out(1, Story::fetched);
    assert_eq!(story.subscribed(), [(0, 1), (1, 1)]);
    story.too_old(0, 1, 7);
    story.too_old(1, 1, 7);
    story.wait(FETCH);
    assert_eq!(story.ended(), [7]);
}

#[test]
fn it_starts_where_the_caller_wants() {
    let mut story = story_from(1, 5);
    for order in 1..8 {
        story.all_say(0..2, order);
    }
    assert_eq!(story.delivered(), [5, 6, 7]);
    assert_eq!(story.listener.counters().delivered, 3);
}

#[test]
fn a_cleaned_servers_old_lies_do_not_stall_for_ever() {
    let mut story = story(1);
    for order in 1..=WINDOW_MESSAGES {
        story.say(0, saying(order, vec![66; 9], true));
    }
    story.step(Input::Disconnected(ServerId(0)));
    story.step(Input::Connected(ServerId(0)));
    for order in 1..=10 {
        story.say(0, truth(order, true));
        story.say(2, truth(order, true));
    }
    assert_eq!(story.listener.next(), OrderNumber(11));
}
