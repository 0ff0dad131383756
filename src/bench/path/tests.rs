use super::*;

const S: usize = 0;
/// The request.
const ID: OrderId = OrderId { client: shared_registers::ids::ClientId(1), session: 7, count: 1 };
/// How many microseconds each hop takes: all different.
const TOOK: [u64; 14] = [11, 5, 7, 13, 40, 2, 6, 14, 50, 3, 4, 8, 30, 9];
const PROPOSED: Seq = Seq(4);
const VOTED: Seq = Seq(9);

/// The points of a request that begins at `from` microseconds, in nanoseconds.
fn times(from: u64) -> [u64; POINTS] {
    let mut at = [from * 1000; POINTS];
    for (i, took) in TOOK.iter().enumerate() {
        at[i + 1] = at[i] + took * 1000;
    }
    at
}

fn point(woke_ns: u64, at_ns: u64, moment: Moment) -> Point {
    Point { woke_ns, at_ns, moment }
}

fn read(writer: usize, seq: Seq, stamp_ns: u64, order: Option<OrderId>) -> Moment {
    let (writer, time) = (ServerId(writer as u16), Micros(stamp_ns / 1000));
    Moment::Read { writer, seq, time, order }
}

fn heard(server: usize, at_ns: u64) -> Heard {
    let value = (OrderNumber(3), Digest([1; 32]));
    Heard { server: ServerId(server as u16), at_ns, value, bytes: server == S }
}

/// What three guests note of a request that is committed at `r` by the vote of `v`, and what its
/// client sees.
fn story(from: u64, v: usize, r: usize) -> (Request, [Vec<Point>; 3]) {
    let at = times(from);
    let mut noted = [const { Vec::new() }; 3];
    noted[S].push(point(at[1], at[2], Moment::Received(ID)));
    noted[S].push(point(at[1], at[3], Moment::Written(PROPOSED)));
    let propose = read(S, PROPOSED, at[4], Some(ID));
    noted[v].push(point(at[5], at[6], propose));
    noted[v].push(point(at[5], at[7], Moment::Written(VOTED)));
    if r != v {
        noted[r].push(point(at[5], at[6] + 1, propose));
    }
    noted[r].push(point(at[9], at[10], read(v, VOTED, at[8], None)));
    noted[r].push(point(at[9], at[11], Moment::Delivered(ID)));
    noted[r].push(point(at[9], at[12], Moment::Replied(ID)));
    let other = (1..3).find(|server| *server != r).unwrap();
    let heard = vec![heard(other, at[12] - 1), heard(r, at[13])];
    let request = Request { id: ID, submitted_ns: at[0], heard, answered_ns: at[14] };
    (request, noted)
}

fn take(points: [Vec<Point>; 3]) -> Vec<Noted> {
    let noted = points.into_iter().map(|points| {
        let mut noted = Noted::default();
        points.into_iter().for_each(|point| noted.take(point));
        noted
    });
    noted.collect()
}

/// The table of one request.
fn table(request: &Request, points: [Vec<Point>; 3]) -> Trace {
    let mut paths = Paths::new(1, false);
    paths.add(request, &take(points));
    paths.table("0/0".to_owned())
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

#[test]
fn the_hops_of_every_kind_of_path_are_what_they_took_and_add_up_to_the_whole() {
    let mut paths = Paths::new(1, false);
    let kinds = [(1, 1), (2, 2), (1, 0), (2, 0), (2, 1), (1, 2)];
    for (i, (v, r)) in kinds.into_iter().enumerate() {
        let (request, points) = story(1_000_000 + 1_000 * i as u64, v, r);
        paths.add(&request, &take(points));
    }
    let trace = paths.table("0/0".to_owned());
    assert_eq!((trace.traced, trace.missing, trace.not_rising, trace.own_votes), (6, 0, 0, 2));
    for (i, (hop, took)) in trace.hops.iter().zip(TOOK).enumerate() {
        // A stamp counts as the middle of its microsecond.
        let stamp = match i {
            3 | 7 => 0.5,
            4 | 8 => -0.5,
            _ => 0.0,
        };
        let Times { mean_us, p50_us, p99_us } = hop.times;
        let us = took as f64 + stamp;
        assert!(near(mean_us, us) && near(p50_us, us) && near(p99_us, us), "{hop:?}");
        assert_eq!(hop.hop, HOPS[i]);
    }
    let sum: f64 = trace.hops.iter().map(|hop| hop.times.mean_us).sum();
    let shares: f64 = trace.hops.iter().map(|hop| hop.share).sum();
    assert!(near(sum, trace.whole.mean_us) && near(shares, 1.0), "{trace:?}");
    assert!(near(trace.whole.mean_us, TOOK.iter().sum::<u64>() as f64));
    let parts: Vec<_> =
        trace.servers.iter().map(|p| (p.decisive_replies, p.decisive_votes)).collect();
    assert_eq!(parts, [(2, 0), (2, 3), (2, 3)]);
}

#[test]
fn means_add_up_whatever_the_times_are_and_the_quantiles_are_of_single_requests() {
    let mut paths = Paths::new(1, false);
    for i in 0..100 {
        let (mut request, points) = story(1_000_000 + 1_000 * i, 1, 1);
        // The answer takes 0, 1, 2, ... ms more to reach its caller.
        request.answered_ns += i * 1_000_000;
        paths.add(&request, &take(points));
    }
    let trace = paths.table("0/0".to_owned());
    let sum: f64 = trace.hops.iter().map(|hop| hop.times.mean_us).sum();
    assert!(near(sum, trace.whole.mean_us));
    let last = &trace.hops[13].times;
    assert!(near(last.p99_us, 98_009.0) && near(last.mean_us, 49_509.0), "{last:?}");
    assert!(near(trace.whole.p99_us - last.p99_us, (202 - 9) as f64), "{trace:?}");
}

#[test]
fn a_request_that_lacks_any_point_is_left_out_and_counted() {
    for (v, r) in [(1, 1), (2, 0)] {
        let (request, points) = story(1_000, v, r);
        assert_eq!(table(&request, points.clone()).traced, 1);
        for server in 0..3 {
            for lost in 0..points[server].len() {
                let mut points = points.clone();
                points[server].remove(lost);
                let trace = table(&request, points);
                assert_eq!((trace.traced, trace.missing), (0, 1), "{server} {lost} of {v} {r}");
                assert!(trace.render().contains("left out: 1 of which a point is missing"));
            }
        }
        // Nothing was heard of the reply that made it complete.
        let mut request = request;
        request.heard.pop();
        assert_eq!(table(&request, points).missing, 1);
    }
}

#[test]
fn points_that_only_just_miss_their_order_are_moved_and_others_are_left_out() {
    // Guest and host were awake already, and the guest was interrupted before it noted its frame.
    let (request, mut points) = story(1_000, 1, 1);
    let at = times(1_000);
    points[S][1].at_ns = at[6] + 5_000;
    points[1][0].woke_ns = at[0] - 7;
    points[1][2].woke_ns = at[0] - 7;
    let trace = table(&request, points);
    assert_eq!((trace.traced, trace.not_rising), (1, 0));
    let hop = |i: usize| trace.hops[i].times.mean_us;
    let between: u64 = TOOK[2..6].iter().sum();
    assert!(near(hop(2), between as f64) && near(hop(3) + hop(4) + hop(5), 0.0), "{trace:?}");
    assert!(near(hop(8), 0.0) && near(hop(9), (50 + 3) as f64 - 0.5), "{trace:?}");

    // A clock was set.
    let (request, mut points) = story(1_000, 1, 1);
    points[1].iter_mut().for_each(|point| point.at_ns += 1_000_000_000);
    let trace = table(&request, points);
    assert_eq!((trace.traced, trace.missing, trace.not_rising), (0, 0, 1));
    assert!(trace.render().contains("1 whose points do not rise"), "{}", trace.render());
}

#[test]
fn what_a_broken_in_guest_says_is_left_out() {
    let (request, points) = story(1_000, 1, 1);
    let mut paths = Paths::new(1, false);
    for (woke_ns, at_ns) in [(0, 0), (u64::MAX, u64::MAX), (u64::MAX, 0)] {
        let mut points = points.clone();
        for point in &mut points[1] {
            (point.woke_ns, point.at_ns) = (woke_ns, at_ns);
        }
        paths.add(&request, &take(points));
    }
    let mut lies = points.clone();
    lies[1][2].moment = read(60_000, Seq(u64::MAX), u64::MAX, Some(ID));
    paths.add(&request, &take(lies));
    let trace = paths.table("0/0".to_owned());
    assert_eq!((trace.traced, trace.missing + trace.not_rising), (0, 4));
    assert!(trace.render().lines().count() > HOPS.len(), "an empty table can be printed");
}

#[test]
fn the_decisive_reply_is_the_one_that_completes_what_the_client_needs() {
    let (mut request, _) = story(1_000, 1, 1);
    let decisive =
        |request: &Request, bytes| request.decisive(1, bytes).map(|h| (h.server.0, h.at_ns));
    request.heard = vec![heard(1, 10)];
    assert_eq!(decisive(&request, false), None);
    // One server has one voice, and a liar has none.
    let lie = Heard { value: (OrderNumber(4), Digest([1; 32])), ..heard(2, 12) };
    request.heard.extend([heard(1, 11), lie]);
    assert_eq!(decisive(&request, false), None);
    request.heard.push(heard(2, 13));
    assert_eq!(decisive(&request, false), Some((2, 13)));
    // The sequencer alone sends the bytes.
    assert_eq!(decisive(&request, true), None);
    request.heard.push(heard(0, 14));
    assert_eq!(
        (decisive(&request, false), decisive(&request, true)),
        (Some((2, 13)), Some((0, 14)))
    );
}

#[test]
fn the_table_and_the_json_have_a_row_for_each_hop() {
    let (request, points) = story(1_000, 2, 1);
    let trace = table(&request, points);
    let text = trace.render();
    let lines: Vec<&str> = text.lines().collect();
    assert!(HOPS.iter().all(|hop| lines.iter().any(|line| line.starts_with(hop))), "{text}");
    let whole = lines.iter().find(|line| line.starts_with("the whole")).unwrap();
    assert!(whole.contains(" 202.0 ") && whole.ends_with("100.0%"), "{text}");
    let json = serde_json::to_value(&trace).unwrap();
    let keys = |value: &serde_json::Value| {
        let mut keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys.join(" ")
    };
    let promised = "hops missing not_rising own_votes payload servers traced whole";
    assert_eq!(keys(&json), promised);
    assert_eq!(keys(&json["hops"][0]), "hop mean_us p50_us p99_us share");
    let promised = "decisive_replies decisive_votes replies reply server";
    let mut promised: Vec<_> = promised.split(' ').collect();
    promised.sort_unstable();
    assert_eq!(keys(&json["servers"][0]), promised.join(" "));
}
