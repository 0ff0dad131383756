//! Small rings, many laps: whatever guests write and claim, and whichever hosts are killed, cut off
//! and started again, a reader gets each stream as it was admitted, or is told what is gone; what
//! is gone was claimed by `f + 1`; and when all is well again everybody has everything.
//!
//! Guest 0 is broken into: it fills its window to the last byte and lies about checkpoints. The
//! others leave the end of their windows for theirs (R7).

use proptest::prelude::*;
use shared_registers::guest_side::Next;
use shared_registers::host_side::Counter;
use shared_registers::ids::{Seq, ServerId};

use crate::world::{World, accept, claim, propose};

const N: usize = 3;
/// Some seventeen small records.
const RING: u64 = 1 << 11;
/// A correct guest whose window has less room than this writes nothing more but checkpoints, ...
const RESERVE: u64 = 1000;
/// ... and none with less than this, until all is well again.
const LAST: u64 = 320;

#[derive(Clone, Debug)]
enum Act {
    /// So many records, large ones or small ones.
    Write(u16, bool, usize),
    /// A guest finds that a checkpoint is due, and claims it.
    Checkpoint(u16),
    /// All that can be sent is sent, a checkpoint is due, and whoever can claims it.
    Round(u16),
    /// A guest claims the one that was due last, or one before.
    Claim(u16, usize),
    Lie(u64),
    Send(u16, u16, usize),
    Settle,
    Link(u16, u16, bool),
    Restart(u16),
    Tick,
    Read(u16),
}

fn act() -> impl Strategy<Value = Act> {
    let server = || 0..N as u16;
    prop_oneof![
        8 => (server(), any::<bool>(), 1..6_usize)
            .prop_map(|(i, large, count)| Act::Write(i, large, count)),
        2 => server().prop_map(Act::Checkpoint),
        4 => server().prop_map(Act::Round),
        4 => (server(), 0..3_usize).prop_map(|(i, back)| Act::Claim(i, back)),
        1 => any::<u64>().prop_map(Act::Lie),
        6 => (server(), server(), 1..9_usize).prop_map(|(a, b, most)| Act::Send(a, b, most)),
        1 => Just(Act::Settle),
        3 => (server(), server(), prop::bool::weighted(0.8)).prop_map(|(a, b, up)| Act::Link(a, b, up)),
        1 => server().prop_map(Act::Restart),
        1 => Just(Act::Tick),
        1 => server().prop_map(Act::Read),
    ]
}

struct Model {
    world: World,
    /// Per stream, the bodies that its host admitted.
    log: Vec<Vec<Vec<u8>>>,
    /// Cuts of the checkpoints that were due, by batch, and who claimed them.
    due: Vec<(Vec<u64>, [bool; N])>,
    /// Per guest and stream, how many records it has read or was told to be gone.
    read: [[u64; N]; N],
    told: u64,
}

impl Model {
    fn new() -> Model {
        let mut world = World::with_rings(N, RING);
        world.connect_all();
        Model { world, log: vec![vec![]; N], due: vec![], read: [[0; N]; N], told: 0 }
    }

    /// Host `i` looks at its guest's frames.
    fn look(&mut self, i: u16) {
        while self.world.look(i).more {}
        let stream = usize::from(i);
        for seq in self.log[stream].len() as u64 + 1..=self.world.copied(i, i) {
            let body = self.world.record(i, i, seq).expect("it was admitted just now");
            self.log[stream].push(body);
        }
    }

    fn write(&mut self, i: u16, body: &[u8], reserve: u64) -> bool {
        self.look(i);
        let reserve = if i == 0 { 0 } else { reserve };
        let waits = self.world.guest(i).stream_full();
        if waits || self.world.guest(i).room(ServerId(i)) < reserve {
            return false;
        }
        self.world.write_only(i, body);
        self.look(i);
        true
    }

    /// Guest `i` claims the checkpoint of this batch if it has delivered so much.
    fn claim(&mut self, i: u16, batch: usize) -> bool {
        let cut = self.due[batch].0.clone();
        let past = self.world.exposed(i).iter().zip(&cut).all(|(exposed, cut)| exposed >= cut);
        let claimed = past && self.write(i, &claim(batch as u64, 7, &cut), LAST);
        // A broken-in guest's claim may wait for long; it says what any could say.
        self.due[batch].1[usize::from(i)] |= claimed;
        claimed
    }

    fn checkpoint(&mut self, i: u16) {
        let cut = self.world.exposed(i);
        let after = |(last, _): &(Vec<u64>, _)| {
            *last != cut && last.iter().zip(&cut).all(|(last, cut)| last <= cut)
        };
        if self.due.last().is_none_or(after) {
            self.due.push((cut, [false; N]));
            self.claim(i, self.due.len() - 1);
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Write(i, large, count) => {
                let order: &[(u32, &[u8])] = &[(0, &[7; 150])];
                let body = if large { propose(i, order) } else { accept(1) };
                for _ in 0..count {
                    self.write(i, &body, RESERVE);
                }
            }
            Act::Checkpoint(i) => self.checkpoint(i),
            Act::Round(i) => {
                self.world.settle();
                self.checkpoint(i);
                self.world.settle();
                for other in 0..N as u16 {
                    self.act(Act::Claim(other, 0));
                }
            }
            Act::Claim(i, back) => {
                if let Some(batch) = self.due.len().checked_sub(1 + back) {
                    self.claim(i, batch);
                }
            }
            Act::Lie(by) => {
                let cut: Vec<_> =
                    self.world.exposed(0).iter().map(|c| c.saturating_add(by % 4)).collect();
                self.write(0, &claim(self.due.len() as u64, (by % 8) as u8, &cut), 0);
            }
            Act::Send(a, b, most) => {
                for _ in 0..most {
                    if a == b || !self.world.send(a, b) {
                        break;
                    }
                }
            }
            Act::Settle => self.world.settle(),
            Act::Link(a, b, _) if a == b => {}
            Act::Link(a, b, true) => self.world.connect(a, b),
            Act::Link(a, b, false) => self.world.cut(a, b),
            Act::Restart(i) => {
                self.world.crash(i);
                self.world.restart(i);
                self.world.connect(i, (i + 1) % N as u16);
            }
            Act::Tick => self.world.tick(),
            Act::Read(i) => self.read_all(i),
        }
    }

    fn read_all(&mut self, i: u16) {
        for writer in ServerId::all(N) {
            let read = &mut self.read[usize::from(i)][writer.index()];
            loop {
                let guest = self.world.guest(i);
                match guest.next(writer) {
                    Next::Nothing => break,
                    Next::Damaged => panic!("a damaged record"),
                    Next::Reclaimed => {
                        let first = guest.first(writer);
                        assert!(first.0 > *read, "record {} is here", *read + 1);
                        guest.seek(writer, first).unwrap();
                        (*read, self.told) = (first.0, self.told + 1);
                        continue;
                    }
                    Next::Record(record) => {
                        assert_eq!(record.stamp.seq, Seq(*read + 1));
                        let admitted = &self.log[writer.index()][*read as usize];
                        assert_eq!(record.body, admitted, "not what was admitted");
                        *read += 1;
                    }
                }
                guest.advance(writer);
            }
        }
    }

    /// What is gone was claimed by `f + 1`, and what is here is what was admitted.
    fn check(&mut self) {
        let quorum = |by: &[bool; N]| by.iter().filter(|claimed| **claimed).count() > N / 2;
        let mut stable = [0; N];
        for (cut, _) in self.due.iter().filter(|(_, by)| quorum(by)) {
            stable.iter_mut().zip(cut).for_each(|(stable, cut)| *stable = (*stable).max(*cut));
        }
        for i in 0..N as u16 {
            for (writer, first) in (0..).zip(self.world.first(i)) {
                let stable = stable[usize::from(writer)];
                assert!(first <= stable, "host {i}, stream {writer}: {first} > {stable}");
                let copied = self.world.copied(i, writer);
                let here = first + 1..=copied;
                for seq in [first + 1, copied].into_iter().filter(|seq| here.contains(seq)) {
                    let admitted = self.log[usize::from(writer)].get(seq as usize - 1);
                    assert_eq!(self.world.record(i, writer, seq).as_ref(), admitted);
                }
            }
        }
    }

    /// Everybody is up and connected, and the correct ones go on with their checkpoints.
    fn finish(&mut self) {
        self.world.connect_all();
        for _ in 0..6 {
            for _ in 0..2 {
                self.world.tick();
                self.world.settle();
                (0..N as u16).for_each(|i| self.look(i));
                self.world.settle();
            }
            let cut = self.world.exposed(1);
            self.due.push((cut.clone(), [false; N]));
            let batch = self.due.len() as u64 - 1;
            for i in [1, 2] {
                self.world.write_only(i, &claim(batch, 7, &cut));
                self.look(i);
                self.due[batch as usize].1[usize::from(i)] = true;
                self.world.settle();
            }
            self.check();
        }
        (0..N as u16).for_each(|i| self.look(i));
        self.world.settle();
        let all: Vec<_> = self.log.iter().map(|log| log.len() as u64).collect();
        for i in 0..N as u16 {
            assert!(!self.world.guest(i).stream_full());
            assert_eq!(self.world.exposed(i), all, "host {i}");
            self.read_all(i);
            assert_eq!(self.read[usize::from(i)][..], all);
        }
    }
}

fn run(acts: Vec<Act>) -> Model {
    let mut model = Model::new();
    for act in acts {
        model.act(act);
        model.check();
    }
    model.finish();
    model
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_reader_gets_what_was_admitted_or_is_told(acts in proptest::collection::vec(act(), 0..400)) {
        run(acts);
    }
}

#[test]
fn the_laps_have_jumps_full_rings_and_slow_readers() {
    // Else the test above says nothing.
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{TestRng, TestRunner};
    let rng = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let (mut told, mut jumps, mut checkpoints, mut records) = (0, 0, 0, 0);
    for _ in 0..10 {
        let acts = proptest::collection::vec(act(), 600).new_tree(&mut runner).unwrap().current();
        let model = run(acts);
        told += model.told;
        jumps += model.world.total(Counter::Jumps);
        checkpoints += model.world.total(Counter::Checkpoints);
        records += model.log.iter().map(Vec::len).sum::<usize>();
    }
    let counts =
        format!("{told} told, {jumps} jumps, {checkpoints} checkpoints, {records} records");
    assert!(told > 20 && jumps > 5 && checkpoints > 200 && records > 1000, "{counts}");
}
