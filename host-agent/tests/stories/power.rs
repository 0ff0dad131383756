//! R6: machines that lose their power, and with it whatever no disk has, page by page; files that
//! are lost; hosts that are killed; and links that come and go, all at random. Two different records
//! in one place, anywhere, are a failure; so is a host that does not come back, unless its own last
//! records name one that is nowhere any more: then it does once that one's writer has written as
//! many again.

use std::collections::BTreeMap;

use proptest::prelude::*;
use shared_registers::guest_side::GuestRegisters;
use shared_registers::ids::{Seq, ServerId};
use shared_registers::record::Record;

use crate::recovery::assert_one_history;
use crate::world::{World, accept};

const N: u16 = 3;

#[derive(Clone, Debug)]
enum Act {
    Write(u16, usize),
    Send(u16, u16, usize),
    Link(u16, u16, bool),
    Tick,
    /// The host's process is killed and starts again.
    Kill(u16),
    /// Its machine loses power; pages are written or not by these bits.
    Power(u16, u64),
    /// All machines do.
    Blackout(u64),
    /// Its files are gone.
    Lose(u16),
}

fn acts(losses: bool) -> impl Strategy<Value = Vec<Act>> {
    let server = || 0..N;
    let act = prop_oneof![
        8 => (server(), 1..4_usize).prop_map(|(i, count)| Act::Write(i, count)),
        8 => (server(), server(), 1..6_usize).prop_map(|(a, b, most)| Act::Send(a, b, most)),
        4 => (server(), server(), any::<bool>()).prop_map(|(a, b, up)| Act::Link(a, b, up)),
        4 => Just(Act::Tick),
        1 => server().prop_map(Act::Kill),
        2 => (server(), any::<u64>()).prop_map(|(i, bits)| Act::Power(i, bits)),
        1 => any::<u64>().prop_map(Act::Blackout),
        1 => server().prop_map(move |i| if losses { Act::Lose(i) } else { Act::Tick }),
    ];
    proptest::collection::vec(act, 0..80)
}

/// Bits without end.
fn bits(seed: u64) -> impl FnMut() -> bool {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 32 & 1 == 1
    }
}

struct Model {
    world: World,
    /// Durability `disk`, and no file is ever lost.
    keeps: bool,
    /// What counted anywhere of each stream, then.
    shown: BTreeMap<(u16, u64), Vec<u8>>,
}

impl Model {
    fn act(&mut self, act: &Act) {
        let world = &mut self.world;
        match *act {
            Act::Write(i, count) => {
                for _ in 0..count {
                    write(world, i);
                }
            }
            Act::Send(a, b, most) if a != b => {
                for _ in 0..most {
                    world.send(a, b);
                }
            }
            Act::Link(a, b, true) if a != b => world.connect(a, b),
            Act::Link(a, b, false) if a != b => world.cut(a, b),
            Act::Send(..) | Act::Link(..) => {}
            Act::Tick => world.tick(),
            Act::Kill(i) => {
                let recovering = world.waits(i).is_some();
                world.crash(i);
                if recovering { world.recover(i) } else { world.restart(i) }
            }
            Act::Power(i, seed) => power(world, i, seed),
            Act::Blackout(seed) => {
                (0..N).for_each(|i| power(world, i, seed.rotate_left(u32::from(i))))
            }
            Act::Lose(i) => {
                world.crash(i);
                world.lose(i);
            }
        }
        assert_one_history(&self.world);
        if self.keeps {
            self.look();
        }
    }

    /// What counts anywhere stays what it is.
    fn look(&mut self) {
        for server in &self.world.servers {
            let registers = server.host.as_ref().unwrap().registers();
            for writer in ServerId::all(usize::from(N)) {
                for seq in 1..=registers.copied(writer).0 {
                    let mut bytes = Vec::new();
                    assert!(registers.record(writer, Seq(seq), &mut bytes));
                    let known = self.shown.entry((writer.0, seq)).or_insert_with(|| bytes.clone());
                    assert_eq!(*known, bytes, "record {seq} of {writer} has changed");
                }
            }
        }
    }
}

/// A new guest writes behind what its host holds (P6).
fn write(world: &mut World, i: u16) {
    if world.waits(i).is_some() {
        return;
    }
    let (files, geometry) = (world.files(i), world.geometry(i));
    let mut guest = GuestRegisters::attach(geometry, files.0, files.1).unwrap();
    let appended = world.host(i).registers().appended(ServerId(i));
    guest.write(appended.next(), &accept(appended.0 + 1)).unwrap();
    world.look(i);
    if appended.0.is_multiple_of(3) {
        world.host(i).must_ring(); // Syncs now; else whatever is sent does.
    }
}

fn power(world: &mut World, i: u16, seed: u64) {
    world.crash(i);
    let (read, write) = world.files(i);
    let mut written = bits(seed);
    read.power_failure(&mut written);
    write.power_failure(&mut written);
    // With durability `disk` it needs to ask nobody, unless it was at it.
    let (geometry, files) = (world.geometry(i), world.files(i));
    let whole = shared_registers::host_side::HostRegisters::reopen(geometry, files.0, files.1);
    match whole {
        Ok(_) if world.durable => world.restart(i),
        Err(why) if world.durable => {
            let why = why.to_string();
            assert!(why.contains("not recovered to the end"), "{why}");
            world.recover(i);
        }
        _ => world.recover(i),
    }
}

/// The record that nobody has and the own last ones of `i` name, for which it waits if it does.
fn lost_past(world: &mut World, i: u16) -> Option<(u16, u64)> {
    let hosts = world.waits(i)?;
    assert!(hosts.is_empty(), "{i} waits for {hosts:?}, who are there");
    let registers = world.host(i).registers();
    let next = registers.exposed(ServerId(i)).next();
    let mut bytes = Vec::new();
    assert!(registers.record(ServerId(i), next, &mut bytes), "{i} waits for nothing");
    let seen = Record::decode(&bytes, usize::from(N)).unwrap().stamp.seen;
    let lost = (0..N).map(|k| (k, seen[usize::from(k)])).find(|(k, upto)| {
        let most = (0..N).map(|host| world.copied(host, *k)).max();
        most.unwrap() < *upto
    });
    assert!(lost.is_some(), "what {i} waits for is there: {seen:?}");
    lost
}

fn run(durable: bool, keeps: bool, acts: &[Act]) {
    let world = World::durable(usize::from(N), durable);
    let mut model = Model { world, keeps, shown: BTreeMap::new() };
    acts.iter().for_each(|act| model.act(act));
    let mut world = model.world;
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        world.connect(a, b);
    }
    world.exchanges(10);
    // Who waits for what is lost waits for a server that does not wait: what it names is older.
    for _ in 0..N {
        let lost: Vec<_> = (0..N).filter_map(|i| lost_past(&mut world, i)).collect();
        assert!(lost.is_empty() || !keeps, "with durability `disk` nothing is lost: {lost:?}");
        let writers = lost.iter().filter(|(k, _)| world.waits(*k).is_none()).copied();
        let writers: BTreeMap<u16, u64> = writers.collect();
        assert_eq!(writers.is_empty(), lost.is_empty(), "all wait for each other: {lost:?}");
        for (k, upto) in writers {
            while world.copied(k, k) < upto {
                write(&mut world, k);
            }
        }
        world.exchanges(10);
    }
    assert_one_history(&world);
    let ends = world.exposed(0);
    for i in 0..N {
        assert_eq!((i, world.waits(i), world.exposed(i)), (i, None, ends.clone()));
    }
    for (writer, seq) in model.shown.keys() {
        assert!(ends[usize::from(*writer)] >= *seq, "record {seq} of {writer} is lost");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_power_failure_and_no_loss_makes_two_records_of_one(acts in acts(true)) {
        run(false, false, &acts);
    }

    #[test]
    fn with_durability_disk_no_power_failure_loses_what_anybody_saw(acts in acts(false)) {
        run(true, true, &acts);
    }

    #[test]
    fn with_durability_disk_a_lost_file_makes_no_two_records_of_one(acts in acts(true)) {
        run(true, false, &acts);
    }
}
