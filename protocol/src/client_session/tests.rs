use shared_registers::crypto::Secret;
use shared_registers::order;

use super::*;

const CLUSTER: ClusterId = ClusterId([9; 32]);
const RESEND: Micros = Micros::from_ms(300);
const FETCH: Micros = Micros::from_ms(20);
const SESSION: u64 = 1000;
const LEAP: u32 = 6;

/// A session among servers whose words the test makes up.
struct Story {
    session: ClientSession,
    now: Micros,
    out: Vec<Output>,
}

fn key(server: usize) -> MacKey {
    Secret::new([server as u8; 32]).mac_key()
}

fn unconnected(f: usize, max_in_flight: usize) -> Story {
    let n = 2 * f + 1;
    let session = ClientSession::new(SessionConfig {
        client: ClientId(7),
        n,
        f,
        cluster: CLUSTER,
        order_keys: (0..n).map(key).collect(),
        session: SESSION,
        leap: LEAP,
        resend: RESEND,
        fetch: FETCH,
        max_in_flight,
        max_payload_bytes: 100,
    });
    Story { session, now: Micros(5), out: Vec::new() }
}

fn story(f: usize) -> Story {
    let mut story = unconnected(f, 8);
    for server in 0..2 * f + 1 {
        story.step(Input::Connected(ServerId(server as u16)));
    }
    story
}

fn reply(count: u64, order: u64, bytes: &[u8], body: Body) -> Reply {
    let (digest, term) = (Digest::of(&[bytes]), Term(0));
    Reply { session: SESSION, count, order: OrderNumber(order), digest, term, body }
}

fn here(bytes: &[u8]) -> Body {
    Body::Here(bytes.to_vec().into())
}

impl Story {
    fn step(&mut self, input: Input) {
        self.session.step(self.now, input, &mut self.out);
    }

    fn broadcast(&mut self, ticket: u64) {
        let payload = vec![ticket as u8; 3];
        self.step(Input::Broadcast { ticket: Ticket(ticket), payload });
    }

    fn say(&mut self, server: u16, message: ToClient) {
        self.step(Input::FromServer(ServerId(server), message));
    }

    fn reply(&mut self, server: u16, reply: Reply) {
        self.say(server, ToClient::Reply(reply));
    }

    fn wait(&mut self, time: Micros) {
        self.now = self.now.plus(time);
        self.step(Input::Tick);
    }

    /// Orders sent since the last look: to whom, and by which id; requests left out.
    fn sent(&mut self) -> Vec<(u16, u64, u64)> {
        let mut sent = Vec::new();
        self.out.retain(|output| match output {
            Output::Send(to, ToServer::Order(order)) => {
                sent.push((to.0, order.id.session, order.id.count));
                false
            }
            _ => true,
        });
        sent
    }

    /// Servers asked for bytes since the last look.
    fn fetched(&mut self) -> Vec<u16> {
        let mut fetched = Vec::new();
        self.out.retain(|output| match output {
            Output::Send(to, ToServer::FetchReply { .. }) => {
                fetched.push(to.0);
                false
            }
            _ => true,
        });
        fetched
    }

    /// Answers since the last look: ticket, order number, reply.
    fn done(&mut self) -> Vec<(u64, u64, Option<Vec<u8>>)> {
        let mut done = Vec::new();
        self.out.retain(|output| match output {
            Output::Done { ticket, order, reply, .. } => {
                done.push((ticket.0, order.0, reply.clone()));
                false
            }
            _ => true,
        });
        done
    }

    fn failed(&mut self) -> Vec<(u64, Failure)> {
        let mut failed = Vec::new();
        self.out.retain(|output| match output {
            Output::Failed { ticket, why } => {
                failed.push((ticket.0, *why));
                false
            }
            _ => true,
        });
        failed
    }
}

#[test]
fn an_order_goes_to_the_sequencer_alone_with_a_mac_for_every_host() {
    let mut story = story(1);
    story.broadcast(1);
    let Some(Output::Send(ServerId(0), ToServer::Order(sent))) = story.out.first().cloned() else {
        panic!("no order: {:?}", story.out);
    };
    assert_eq!(story.sent(), [(0, SESSION, 1)]);
    let digest = order::digest(&CLUSTER, sent.id, &sent.payload);
    assert_eq!((sent.id.client, sent.payload), (ClientId(7), vec![1; 3]));
    for server in 0..3 {
        assert!(order::verify(&key(server), &digest, &sent.macs[server]));
    }
}

#[test]
fn f_plus_one_equal_replies_are_believed_and_f_never() {
    for f in [1, 2] {
        let mut story = story(f);
        story.broadcast(1);
        // P5: the liars agree among each other, and repeat themselves.
        for _ in 0..3 {
            for liar in 0..f as u16 {
                story.reply(liar, reply(1, 66, b"lie", here(b"lie")));
            }
        }
        assert_eq!(story.done(), []);
        for honest in f as u16..2 * f as u16 {
            story.reply(honest, reply(1, 4, b"yes", Body::Elsewhere));
            assert_eq!(story.done(), []);
        }
        story.reply(2 * f as u16, reply(1, 4, b"yes", here(b"yes")));
        assert_eq!(story.done(), [(1, 4, Some(b"yes".to_vec()))]);
        assert_eq!(story.session.counters().duplicate, 2 * f as u64);
    }
}

#[test]
fn order_and_digest_must_both_be_equal() {
    for (order, bytes) in [(5, b"yes"), (4, b"no!")] {
        let mut story = story(1);
        story.broadcast(1);
        story.reply(0, reply(1, 4, b"yes", here(b"yes")));
        story.reply(1, reply(1, order, bytes, here(bytes)));
        assert_eq!(story.done(), []);
    }
}

#[test]
fn a_server_that_votes_twice_counts_once_and_its_first_word_stands() {
    let mut story = story(1);
    story.broadcast(1);
    story.reply(1, reply(1, 9, b"lie", Body::Elsewhere));
    story.reply(0, reply(1, 4, b"yes", here(b"yes")));
    story.reply(1, reply(1, 4, b"yes", Body::Elsewhere));
    assert_eq!(story.done(), []);
    assert_eq!(story.session.counters().wrong, 1);
    story.reply(2, reply(1, 4, b"yes", Body::Elsewhere));
    assert_eq!(story.done(), [(1, 4, Some(b"yes".to_vec()))]);
}

#[test]
fn replies_count_for_exactly_the_order_that_they_name() {
    let mut story = story(1);
    story.broadcast(1);
    for server in 0..3 {
        let other_session = Reply { session: SESSION + 1, ..reply(1, 4, b"yes", here(b"yes")) };
        story.reply(server, other_session);
        story.reply(server, reply(2, 4, b"yes", here(b"yes")));
        story.say(server, ToClient::TooOld { from: OrderNumber(1), first: OrderNumber(2) });
    }
    assert_eq!(story.done(), []);
    assert_eq!(story.session.counters().unknown, 9);
}

#[test]
fn bytes_must_be_of_the_digest() {
    let mut story = story(1);
    story.broadcast(1);
    story.reply(0, reply(1, 4, b"yes", here(b"no!")));
    story.reply(1, reply(1, 4, b"yes", Body::Elsewhere));
    assert_eq!(story.done(), []);
    assert_eq!(story.session.counters().wrong, 1);
    story.reply(2, reply(1, 4, b"yes", Body::Elsewhere));
    story.reply(0, reply(1, 4, b"yes", here(b"no!")));
    assert_eq!(story.done(), []);
    story.reply(1, reply(1, 4, b"yes", here(b"yes")));
    assert_eq!(story.done(), [(1, 4, Some(b"yes".to_vec()))]);
}

#[test]
fn an_empty_reply_needs_no_bytes() {
    let mut story = story(1);
    story.broadcast(1);
    story.reply(1, reply(1, 4, b"", Body::Elsewhere));
    story.reply(2, reply(1, 4, b"", Body::Elsewhere));
    assert_eq!(story.done(), [(1, 4, Some(Vec::new()))]);
}

#[test]
fn missing_bytes_are_asked_for_from_one_agreeing_server_after_another() {
    let mut story = story(2);
    story.broadcast(1);
    story.reply(0, reply(1, 9, b"lie", here(b"lie")));
    for server in 1..4 {
        story.reply(server, reply(1, 4, b"yes", Body::Elsewhere));
    }
    story.wait(Micros(FETCH.0 - 1));
    assert_eq!(story.fetched(), []);
    let mut asked = Vec::new();
    for _ in 0..4 {
        let due = story.session.next_deadline().unwrap();
        story.wait(due.since(story.now));
        asked.extend(story.fetched());
    }
    assert_eq!(asked, [1, 2, 3, 1]);
    story.reply(3, reply(1, 4, b"yes", here(b"yes")));
    assert_eq!(story.done(), [(1, 4, Some(b"yes".to_vec()))]);
    assert_eq!(story.session.next_deadline(), None);
}

#[test]
fn a_reply_is_gone_when_f_plus_one_of_those_that_agree_say_so() {
    let mut story = story(1);
    story.broadcast(1);
    story.reply(0, reply(1, 4, b"yes", Body::Gone));
    story.reply(1, reply(1, 4, b"yes", Body::Elsewhere));
    // A liar may well say it, of this reply or of another.
    story.reply(0, reply(1, 4, b"yes", Body::Gone));
    story.reply(2, reply(1, 5, b"yes", Body::Gone));
    assert_eq!(story.done(), []);
    story.wait(FETCH);
    assert_eq!(story.fetched(), [1]);
    story.reply(1, reply(1, 4, b"yes", Body::Gone));
    assert_eq!(story.done(), [(1, 4, None)]);
}

#[test]
fn an_unanswered_order_goes_to_everyone_after_t_resend_and_ever_more_rarely() {
    let mut story = story(1);
    story.broadcast(1);
    story.broadcast(2);
    story.sent();
    story.wait(Micros(RESEND.0 - 1));
    assert_eq!(story.sent(), []);
    story.wait(Micros(1));
    let once = [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)].map(|(s, c)| (s, SESSION, c));
    assert_eq!(story.sent(), once);
    story.wait(RESEND);
    assert_eq!(story.sent(), []);
    story.wait(RESEND);
    assert_eq!(story.sent(), once);
    // The interval stops growing.
    for _ in 0..20 {
        story.wait(doubled(RESEND, MAX_DOUBLINGS));
    }
    story.sent();
    story.wait(doubled(RESEND, MAX_DOUBLINGS));
    assert_eq!(story.sent(), once);
    // Who replied has delivered it.
    story.reply(1, reply(1, 4, b"yes", Body::Elsewhere));
    story.wait(doubled(RESEND, MAX_DOUBLINGS));
    assert!(!story.sent().contains(&(1, SESSION, 1)));
}

#[test]
fn losing_the_sequencer_sends_everything_to_everyone_at_once() {
    let mut story = story(1);
    story.broadcast(1);
    story.broadcast(2);
    story.sent();
    story.step(Input::Disconnected(ServerId(2)));
    assert_eq!(story.sent(), []);
    story.step(Input::Disconnected(ServerId(0)));
    assert_eq!(story.sent(), [(1, SESSION, 1), (1, SESSION, 2)]);
    story.broadcast(3);
    assert_eq!(story.sent(), [(1, SESSION, 3)]);
    // It flaps: nothing goes out again that everyone has, but it gets all when it is back.
    story.step(Input::Disconnected(ServerId(0)));
    assert_eq!(story.sent(), []);
    story.step(Input::Connected(ServerId(2)));
    assert_eq!(story.sent(), [(2, SESSION, 1), (2, SESSION, 2), (2, SESSION, 3)]);
}

#[test]
fn orders_given_before_the_first_connection_wait_for_it() {
    let mut story = unconnected(1, 8);
    story.broadcast(1);
    story.step(Input::Connected(ServerId(1)));
    assert_eq!(story.sent(), []);
    story.step(Input::Connected(ServerId(0)));
    assert_eq!(story.sent(), [(0, SESSION, 1)]);
}

#[test]
fn f_liars_cannot_steer_the_presumed_sequencer() {
    for f in [1, 2] {
        let mut story = story(f);
        let n = 2 * f + 1;
        story.broadcast(1);
        story.sent();
        let claim = |term| Reply { term: Term(term), ..reply(1, 66, b"lie", Body::Elsewhere) };
        for liar in 0..f {
            story.reply(liar as u16, claim(u64::MAX - 5 - liar as u64));
        }
        assert_eq!(story.session.sequencer, ServerId(0));
        assert_eq!(story.sent(), []);
        story.reply(f as u16, Reply { term: Term(n as u64 + 2), ..reply(1, 4, b"y", here(b"y")) });
        assert_eq!(story.session.sequencer, ServerId(2));
        // The new one hears at once of what only the old one knows, unless it has answered.
        let expected: &[_] = if f == 1 { &[(2, SESSION, 1)] } else { &[] };
        assert_eq!(story.sent(), expected);
        story.broadcast(2);
        assert_eq!(story.sent(), [(2, SESSION, 2)]);
    }
}

#[test]
fn a_client_whose_clock_went_back_takes_the_next_session() {
    let mut story = story(1);
    for ticket in 1..=4 {
        story.broadcast(ticket);
    }
    // The first is answered; the second is agreed on, and its bytes are missing.
    for server in 0..2 {
        story.reply(server, reply(1, 4, b"", Body::Elsewhere));
        story.reply(server, reply(2, 5, b"yes", Body::Elsewhere));
    }
    assert_eq!(story.done(), [(1, 4, Some(Vec::new()))]);
    story.sent();
    let stale = |session, count| ToClient::Stale { session, count };
    story.say(0, stale(SESSION + 50, 3));
    story.say(0, stale(SESSION + 50, 3));
    story.say(1, stale(SESSION + 50, 4));
    assert_eq!(story.sent(), []);
    story.say(2, stale(SESSION + 50, 3));
    let next = SESSION + 50 + 1 + u64::from(LEAP);
    assert_eq!(story.session.session(), next);
    assert_eq!(story.sent(), [(0, next, 1), (0, next, 2)]);
    // What was delivered stays delivered, under its name.
    story.reply(2, reply(2, 5, b"yes", here(b"yes")));
    assert_eq!(story.done(), [(2, 5, Some(b"yes".to_vec()))]);
    for server in 0..2 {
        story.reply(server, Reply { session: next, ..reply(1, 6, b"", Body::Elsewhere) });
        story.reply(server, reply(3, 7, b"", Body::Elsewhere));
    }
    assert_eq!(story.done(), [(3, 6, Some(Vec::new()))]);
}

#[test]
fn the_session_of_stale_copies_is_not_left() {
    // Late copies of an older session's orders make correct servers name the present one.
    for session in [0, SESSION - 1, SESSION] {
        let mut story = story(1);
        story.broadcast(1);
        story.sent();
        for server in 0..3 {
            story.say(server, ToClient::Stale { session, count: 1 });
        }
        assert_eq!((story.session.session(), story.sent()), (SESSION, vec![]));
    }
    let mut story = story(1);
    story.broadcast(1);
    story.sent();
    for server in 0..3 {
        story.say(server, ToClient::Stale { session: u64::MAX, count: 1 });
    }
    assert_eq!((story.session.session(), story.sent()), (SESSION, vec![]));
}

#[test]
fn an_order_fails_when_f_plus_one_hosts_refused_it() {
    let refused = |count| ToClient::Refused { session: SESSION, count, reason: Refusal::BadMac };
    let mut story = story(1);
    for ticket in 1..=3 {
        story.broadcast(ticket);
    }
    story.sent();
    story.say(0, refused(2));
    story.say(0, refused(2));
    story.say(1, refused(9));
    assert_eq!(story.failed(), []);
    let said = story.session.unanswered().nth(1).unwrap().said;
    assert_eq!(said, [Said::Refused(Refusal::BadMac), Said::Nothing, Said::Nothing]);
    story.say(2, refused(2));
    let why = Failure::Refused { servers: 2, reason: Refusal::BadMac };
    assert_eq!(story.failed(), [(2, why)]);
    // The first may still be delivered in this session; then the third gets a new one.
    assert_eq!((story.sent(), story.session.session()), (vec![], SESSION));
    for server in 0..2 {
        story.reply(server, reply(1, 4, b"", Body::Elsewhere));
    }
    assert_eq!(story.done(), [(1, 4, Some(Vec::new()))]);
    assert_eq!(story.sent(), [(0, SESSION + 1, 1)]);
    let left: Vec<_> = story.session.unanswered().map(|u| u.ticket.0).collect();
    assert_eq!(left, [3]);
}

#[test]
fn what_is_agreed_on_cannot_be_refused() {
    let mut story = story(1);
    story.broadcast(1);
    story.reply(0, reply(1, 4, b"yes", Body::Elsewhere));
    story.reply(1, reply(1, 4, b"yes", Body::Elsewhere));
    for server in 0..3 {
        let reason = Refusal::BadMac;
        story.say(server, ToClient::Refused { session: SESSION, count: 1, reason });
    }
    assert_eq!(story.failed(), []);
}

#[test]
fn too_large_and_too_many_are_told_at_once() {
    let mut story = unconnected(1, 2);
    let payload = vec![0; 101];
    story.step(Input::Broadcast { ticket: Ticket(1), payload });
    assert_eq!(story.failed(), [(1, Failure::TooLarge { limit: 100 })]);
    story.broadcast(2);
    story.broadcast(3);
    assert!(!story.session.has_room());
    story.broadcast(4);
    assert_eq!(story.failed(), [(4, Failure::TooMany)]);
}

#[test]
fn a_flood_of_unproved_bytes_is_not_kept() {
    let mut story = unconnected(1, 100);
    story.step(Input::Connected(ServerId(0)));
    story.step(Input::Connected(ServerId(1)));
    let big = vec![1; HELD_BYTES_PER_SERVER / 3];
    for ticket in 1..=5 {
        story.broadcast(ticket);
        story.reply(0, reply(ticket, ticket, &big, here(&big)));
    }
    assert!(story.session.held[0] <= HELD_BYTES_PER_SERVER);
    // The votes count all the same, and the bytes are asked for.
    story.reply(1, reply(5, 5, &big, Body::Elsewhere));
    assert_eq!(story.done(), []);
    story.wait(FETCH);
    assert_eq!(story.fetched(), [0]);
    story.reply(0, reply(5, 5, &big, here(&big)));
    assert_eq!(story.done().len(), 1);
    for ticket in 1..=4 {
        story.reply(1, reply(ticket, ticket, &big, here(&big)));
    }
    assert_eq!((story.done().len(), story.session.held[0], story.session.held[1]), (4, 0, 0));
}

#[test]
fn the_summary_says_who_said_what() {
    let mut story = story(2);
    story.broadcast(1);
    story.reply(1, reply(1, 4, b"yes", Body::Elsewhere));
    story.reply(2, reply(1, 4, b"yes", Body::Elsewhere));
    story.say(3, ToClient::Stale { session: SESSION + 2, count: 1 });
    story.reply(4, reply(1, 6, b"lie", Body::Elsewhere));
    let summary = story.session.unanswered().next().unwrap();
    let replied = |order| Said::Replied(OrderNumber(order));
    let said = [Said::Nothing, replied(4), replied(4), Said::Stale(SESSION + 2), replied(6)];
    assert_eq!((summary.alike, &summary.said[..]), (2, &said[..]));
}

#[test]
fn a_cleaned_servers_old_lies_do_not_hold_an_order_for_ever() {
    let mut story = story(1);
    story.broadcast(1);
    let lie = reply(1, 99, b"lie", here(b"lie"));
    story.reply(0, Reply { term: Term(u64::MAX), ..lie });
    // It is cleaned, and comes back; from now on server 1 is the one that says nothing.
    story.step(Input::Disconnected(ServerId(0)));
    story.step(Input::Connected(ServerId(0)));
    story.reply(0, reply(1, 7, b"true", here(b"true")));
    story.reply(2, reply(1, 7, b"true", Body::Elsewhere));
    assert!(story.session.unanswered().next().is_none());
    assert_eq!(story.session.sequencer, ServerId(0), "nor does the term it made up");
}
