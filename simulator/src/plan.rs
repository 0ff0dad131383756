//! What a seed draws before its run begins: the cluster, who is faulty, and which faults come how
//! often. Everything here is data; `faults` makes it happen.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shared_registers::ids::Micros;

use crate::guest::script::Script;
use crate::guest::strategies::{self, Strategy};

/// Most virtual time that the faults last.
pub const MAX_FAULTS: Micros = Micros::from_ms(12_000);

/// Most frames that a link of the trusted network holds in any plan.
pub const MAX_LINK_FRAMES: usize = 32;

/// What may be asked for instead of drawn.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    /// How many servers may be faulty.
    pub f: Option<usize>,
    /// No faults at all.
    pub calm: bool,
    /// Rings that hold a whole run: nothing is ever reclaimed.
    pub large_rings: bool,
}

/// Everything that is drawn before a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How many servers may be faulty.
    pub f: usize,
    /// How many there are.
    pub n: usize,
    /// Timing of the cluster.
    pub timing: Timing,
    /// The rings, and what fills them.
    pub rings: RingPlan,
    /// Per server, what its guest does if it was broken into.
    pub guests: Vec<Option<Vec<Strategy>>>,
    /// What these guests share.
    pub script: Script,
    /// The clients.
    pub clients: Vec<ClientPlan>,
    /// The payload network's faults.
    pub payload: PayloadPlan,
    /// The trusted network's.
    pub trusted: TrustedPlan,
    /// What becomes of processes.
    pub processes: ProcessPlan,
    /// What becomes of servers' files.
    pub hosts: HostPlan,
    /// How long the faults last.
    pub duration: Micros,
}

/// What becomes of hosts' files (R6), and of guests' (section 6).
#[derive(Clone, Copy, Debug, Default)]
pub struct HostPlan {
    /// Durability `disk`.
    pub durable: bool,
    /// Mean time between hosts that lose records, or may have, and how long one is down at most.
    pub loss_every: Option<(Micros, Micros)>,
    /// Thousandths of hosts that are down whose server is retired meanwhile.
    pub retired: u32,
    /// Guests have stores of snapshots on their disks, and so long does it take to write one.
    pub store: Option<Micros>,
    /// Mean time between stores that are deleted, and how long such a guest is down at most.
    pub wipe_every: Option<(Micros, Micros)>,
    /// Mean time between deaths of everything at once, and how long something is down at most.
    pub all_every: Option<(Micros, Micros)>,
}

/// The rings, and what fills them. `K` of section 6 is a quarter of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlan {
    /// Bytes of the ring of one stream.
    pub ring_bytes: u64,
    /// Largest payload.
    pub max_payload_bytes: usize,
    /// Clients' payloads are filled up with fewer bytes than these.
    pub filling: usize,
    /// Orders of one client in the whole run.
    pub orders: u64,
    /// Mean time between a client's orders, at most.
    pub every: Micros,
}

/// The cluster's settings.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// `T_change`.
    pub change: Micros,
    /// What it doubles up to.
    pub change_cap: Micros,
    /// How long a link must be broken for its host to count as down.
    pub host_down: Micros,
    /// Period of the hosts' exchange of lengths.
    pub exchange: Micros,
    /// `T_resend` of clients.
    pub resend: Micros,
    /// `W` (V2).
    pub window: u64,
}

/// What a client is like.
#[derive(Clone, Copy, Debug)]
pub struct ClientPlan {
    /// It lies instead of doing what a client does.
    pub lying: bool,
    /// It listens to the one order.
    pub listens: bool,
    /// Orders that it has in flight at most.
    pub in_flight: usize,
    /// Mean time between its orders.
    pub every: Micros,
    /// Mean time between its crashes, if it crashes.
    pub crash_every: Option<Micros>,
    /// When it crashes it stays down, or its clock may have gone back when it starts again.
    pub stays_down: bool,
    /// Its clock may have gone back when it starts again.
    pub clock_back: bool,
    /// It crashes once more as soon as it was told so, and its clock goes back once more.
    pub relapses: bool,
}

/// Faults of the payload network. Probabilities are per message, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct PayloadPlan {
    /// Shortest and longest delay when nothing is wrong.
    pub delay: (Micros, Micros),
    /// A message is lost.
    pub loss: u32,
    /// A message comes twice.
    pub duplicate: u32,
    /// A message is held up for up to [`Self::held_up`], so that others overtake it.
    pub reorder: u32,
    /// See there.
    pub held_up: Micros,
    /// A bit of it flips: its connection ends.
    pub flip: u32,
    /// Its bytes, altered, are given to a decoder.
    pub hostile: u32,
    /// Mean time between broken connections.
    pub reset_every: Option<Micros>,
    /// Mean time between partitions, and how long one lasts at most.
    pub partition_every: Option<(Micros, Micros)>,
}

/// Faults of the trusted network.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrustedPlan {
    /// Shortest and longest delay of a frame.
    pub delay: (Micros, Micros),
    /// Frames that one link holds.
    pub window: usize,
    /// Mean time between broken links, and how long one stays down at most.
    pub down_every: Option<(Micros, Micros)>,
}

/// What becomes of processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessPlan {
    /// Mean time between crashes of hosts, and how long one is down at most.
    pub host_crash_every: Option<(Micros, Micros)>,
    /// Thousandths of those crashes that hit in the middle of a step.
    pub mid_step: u32,
    /// Thousandths of those that take the guest with them.
    pub with_guest: u32,
    /// Hosts that are down when the faults end stay so.
    pub stay_down: bool,
    /// Mean time between crashes of guests, and how long one is down at most.
    pub guest_crash_every: Option<(Micros, Micros)>,
    /// Mean time between pauses of processes, and how long one lasts at most.
    pub pause_every: Option<(Micros, Micros)>,
    /// Mean time between pauses that are so long that a guest's window passes over it, and how long
    /// one lasts at most.
    pub lag_every: Option<(Micros, Micros)>,
    /// Mean time between jumps of hosts' wall clocks.
    pub clock_jump_every: Option<Micros>,
    /// Thousandths of timers that go off early.
    pub early_timers: u32,
    /// Thousandths of timers that go off late, and by how much at most.
    pub late_timers: (u32, Micros),
    /// Largest drift of a clock.
    pub drift_ppm: i32,
}

fn ms(rng: &mut ChaCha8Rng, from: u64, to: u64) -> Micros {
    Micros(rng.random_range(from * 1000..=to * 1000))
}

/// A probability in thousandths, up to `most`; half of the time there is none.
fn rate(rng: &mut ChaCha8Rng, most: u32) -> u32 {
    if rng.random_bool(0.5) { rng.random_range(1..=most) } else { 0 }
}

/// A mean interval; half of the time there is none.
fn every(rng: &mut ChaCha8Rng, from: u64, to: u64) -> Option<Micros> {
    rng.random_bool(0.5).then(|| ms(rng, from, to))
}

/// ... and how long what comes so often lasts at most.
fn spells(rng: &mut ChaCha8Rng, every_ms: (u64, u64), most: u64) -> Option<(Micros, Micros)> {
    Some((every(rng, every_ms.0, every_ms.1)?, ms(rng, 1, most)))
}

impl Plan {
    /// Draws everything.
    pub fn draw(rng: &mut ChaCha8Rng, wishes: &Wishes) -> Plan {
        // What was thought of later is drawn from a stream of its own, so that seeds which are kept
        // for what they once found go on finding it.
        let mut later = rng.clone();
        later.set_stream(1);
        let mut laps = rng.clone();
        laps.set_stream(2);
        let drawn = [1, 1, 1, 1, 1, 1, 2, 2, 2, 3][rng.random_range(0..10)];
        let f = wishes.f.unwrap_or(drawn);
        let n = 2 * f + 1;
        let mut plan = Plan {
            f,
            n,
            timing: Timing::draw(rng),
            rings: RingPlan::draw(&mut laps, wishes),
            guests: vec![None; n],
            script: Script::default(),
            clients: Vec::new(),
            payload: PayloadPlan::calm(),
            trusted: TrustedPlan::calm(),
            processes: ProcessPlan::default(),
            hosts: HostPlan::default(),
            duration: ms(rng, 1_000, MAX_FAULTS.0 / 1000),
        };
        // Each part has a generator of its own: drawing one more thing for one changes no other.
        let mut part = || ChaCha8Rng::from_rng(rng);
        let (clients, guests) = (&mut part(), &mut part());
        let count = clients.random_range(1..=5);
        plan.clients = (0..count).map(|i| ClientPlan::draw(clients, i, wishes.calm)).collect();
        for client in &mut plan.clients {
            client.every = client.every.min(plan.rings.every);
        }
        if wishes.calm {
            return plan;
        }
        for client in &mut plan.clients {
            client.relapses = later.random_bool(0.5) && client.clock_back;
        }
        plan.guests = strategies::break_in(guests, f);
        plan.payload = PayloadPlan::draw(&mut part());
        plan.trusted = TrustedPlan::draw(&mut part());
        plan.processes = ProcessPlan::draw(&mut part());
        if plan.rings != RingPlan::LARGE {
            strategies::deceive(&mut laps, &mut plan.guests);
            let lags = laps.random_bool(0.7);
            let every = (ms(&mut laps, 300, 2_500), ms(&mut laps, 500, 4_000));
            plan.processes.lag_every = lags.then_some(every);
            plan.hosts = HostPlan::draw(&mut laps);
        }
        plan
    }
}

impl RingPlan {
    /// Rings that hold a whole run.
    pub const LARGE: RingPlan = RingPlan {
        ring_bytes: 1 << 19,
        max_payload_bytes: 512,
        filling: 64,
        orders: 60,
        every: Micros::from_ms(1_000),
    };

    /// Small ones as a rule, which a run laps several times.
    fn draw(rng: &mut ChaCha8Rng, wishes: &Wishes) -> RingPlan {
        if wishes.large_rings || rng.random_bool(0.25) {
            return RingPlan::LARGE;
        }
        let max_payload_bytes = [512, 1024, 2048][rng.random_range(0..3)];
        RingPlan {
            ring_bytes: 1 << [15, 15, 15, 16, 17][rng.random_range(0..5)],
            max_payload_bytes,
            filling: max_payload_bytes - rng.random_range(64..500),
            orders: rng.random_range(60..=250),
            every: ms(rng, 5, 40),
        }
    }
}

impl Timing {
    fn draw(rng: &mut ChaCha8Rng) -> Timing {
        let change = ms(rng, 60, 400);
        Timing {
            change,
            change_cap: Micros(change.0 * 8),
            host_down: ms(rng, 30, 200),
            exchange: ms(rng, 15, 60),
            resend: ms(rng, 50, 500),
            window: rng.random_range(4..=32),
        }
    }
}

impl ClientPlan {
    fn draw(rng: &mut ChaCha8Rng, index: usize, calm: bool) -> ClientPlan {
        // The first one is always correct and stays, so that there is something to be alive for.
        let may = !calm && index > 0;
        ClientPlan {
            lying: rng.random_bool(0.3) && may,
            listens: rng.random_bool(0.5) || index == 0,
            in_flight: rng.random_range(1..=8),
            every: ms(rng, 5, 200),
            crash_every: every(rng, 500, 5_000).filter(|_| may),
            stays_down: rng.random_bool(0.3),
            clock_back: rng.random_bool(0.2),
            relapses: false,
        }
    }
}

impl PayloadPlan {
    /// A network in which nothing is wrong.
    pub fn calm() -> PayloadPlan {
        PayloadPlan { delay: (Micros(100), Micros(1_500)), ..PayloadPlan::default() }
    }

    fn draw(rng: &mut ChaCha8Rng) -> PayloadPlan {
        PayloadPlan {
            delay: (Micros(100), ms(rng, 1, 30)),
            loss: rate(rng, 300),
            duplicate: rate(rng, 500),
            reorder: rate(rng, 300),
            held_up: ms(rng, 1, 800),
            flip: rate(rng, 20),
            hostile: rate(rng, 100),
            reset_every: every(rng, 100, 3_000),
            partition_every: spells(rng, (500, 5_000), 3_000),
        }
    }
}

impl TrustedPlan {
    /// A network in which nothing is wrong.
    pub fn calm() -> TrustedPlan {
        TrustedPlan { delay: (Micros(50), Micros(500)), window: MAX_LINK_FRAMES, down_every: None }
    }

    fn draw(rng: &mut ChaCha8Rng) -> TrustedPlan {
        TrustedPlan {
            delay: (Micros(50), ms(rng, 1, 20)),
            window: rng.random_range(1..=MAX_LINK_FRAMES),
            down_every: spells(rng, (100, 3_000), 2_000),
        }
    }
}

impl HostPlan {
    fn draw(rng: &mut ChaCha8Rng) -> HostPlan {
        let durable = rng.random_bool(0.25);
        let loss_every = rng.random_bool(0.6).then(|| (ms(rng, 200, 3_000), ms(rng, 1, 1_500)));
        HostPlan {
            durable,
            loss_every,
            retired: rate(rng, 400),
            store: Some(ms(rng, 0, 60)),
            wipe_every: spells(rng, (300, 4_000), 1_000),
            all_every: spells(rng, (1_000, 6_000), 800),
        }
    }
}

impl ProcessPlan {
    fn draw(rng: &mut ChaCha8Rng) -> ProcessPlan {
        ProcessPlan {
            host_crash_every: spells(rng, (200, 4_000), 3_000),
            mid_step: rng.random_range(0..=1000),
            with_guest: rng.random_range(0..=1000),
            stay_down: rng.random_bool(0.5),
            guest_crash_every: spells(rng, (200, 4_000), 2_000),
            pause_every: spells(rng, (200, 4_000), 2_000),
            lag_every: None,
            clock_jump_every: every(rng, 500, 5_000),
            early_timers: rate(rng, 500),
            late_timers: (rate(rng, 500), ms(rng, 1, 300)),
            drift_ppm: if rng.random_bool(0.5) { rng.random_range(1..=20_000) } else { 0 },
        }
    }
}
