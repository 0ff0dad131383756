//! Anything at all, from the guest and from the network: it never makes a host panic, and never
//! keeps it from its work.

use std::sync::atomic::Ordering;

use host_agent::Input;
use proptest::prelude::*;
use shared_registers::host_side::Counter;
use shared_registers::ids::ServerId;
use shared_registers::layout::write;
use shared_registers::words::{WordsMut, padded};

use crate::world::{World, accept, change, propose};

const MAGIC: u64 = 0x4472_4146 << 32;

/// Bodies that are nearly right.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let right = prop_oneof![
        Just(accept(1)),
        Just(change(0)),
        Just(propose(0, &[(0, b"one"), (1, b"two")])),
        proptest::collection::vec(any::<u8>(), 0..80),
    ];
    let flip = proptest::option::of((any::<proptest::sample::Index>(), any::<u8>()));
    (right, flip).prop_map(|(mut body, flip)| {
        if let Some((at, byte)) = flip.filter(|_| !body.is_empty()) {
            let at = at.index(body.len());
            body[at] = byte;
        }
        body
    })
}

#[derive(Clone, Debug)]
enum Act {
    /// A frame for this position, that knows of this many drops.
    Write(u64, u64, Vec<u8>),
    /// A word of the ring, counted back from its end.
    Word(usize, u64),
    Head(u64),
    /// The head, moved.
    Skip(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        7 => (0u64..6, 0u64..5, bodies()).prop_map(|(seq, drops, body)| {
            Act::Write(seq, drops, body)
        }),
        1 => (0usize..64, any::<u64>()).prop_map(|(at, word)| Act::Word(at, word)),
        1 => (0usize..64, 0u64..200).prop_map(|(at, len)| Act::Word(at, MAGIC | len)),
        1 => any::<u64>().prop_map(Act::Head),
        1 => (0u64..300).prop_map(Act::Skip),
    ];
    proptest::collection::vec(act, 0..40)
}

fn act(world: &mut World, act: Act) {
    let (consumed, ring) = (world.consumed(0), world.geometry(0).frame_ring());
    let server = &mut world.servers[0];
    match act {
        Act::Write(seq, drops, body) => {
            let mut frame = (MAGIC | (16 + body.len() as u64)).to_le_bytes().to_vec();
            frame.extend([seq.to_le_bytes(), drops.to_le_bytes()].concat());
            frame.extend(body);
            ring.put(&server.write, consumed, &frame);
            server.write.store(write::HEAD, consumed + padded(frame.len()), Ordering::SeqCst);
        }
        Act::Word(at, word) => server.write.store(512 + at, word, Ordering::SeqCst),
        Act::Head(head) => server.write.store(write::HEAD, head, Ordering::SeqCst),
        Act::Skip(by) => server.write.store(write::HEAD, consumed + by, Ordering::SeqCst),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_is_in_the_write_file_the_host_goes_on(acts in acts()) {
        let mut world = World::new(3);
        for next in acts {
            act(&mut world, next);
            world.look(0);
        }
        // R3: what was admitted is one sequence, whole at every host.
        world.write(1, &accept(1));
        world.settle();
        let mine = world.read(0, 0);
        prop_assert_eq!(mine.len() as u64, world.copied(0, 0));
        prop_assert_eq!(mine, world.read(2, 0));
        prop_assert_eq!(world.exposed(0)[1], 1);
        // A guest that is started clean gets through: its host's word is enough to go on from.
        let (geometry, server) = (world.geometry(0), &mut world.servers[0]);
        server.guest = shared_registers::guest_side::GuestRegisters::attach(
            geometry, server.read.clone(), server.write.clone()).unwrap();
        while world.look(0).more {}
        prop_assert!(world.guest(0).drained());
        world.servers[0].written = world.copied(0, 0);
        let before = world.copied(0, 0);
        world.write(0, &accept(9));
        prop_assert_eq!(world.copied(0, 0), before + 1);
    }

    #[test]
    fn whatever_a_peer_sends_the_host_goes_on(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..90), 0..10),
        kind in 0u8..4, flip in any::<proptest::sample::Index>(), byte in any::<u8>()
    ) {
        let mut world = World::new(3);
        let now = world.now;
        world.write(1, &accept(1));
        let mut nearly = Vec::new();
        prop_assert!(world.host(1).next_frame(ServerId(0), &mut nearly));
        let at = flip.index(nearly.len());
        nearly[at] = byte;
        for mut frame in frames.into_iter().chain([nearly]) {
            if let Some(first) = frame.first_mut().filter(|_| kind > 0) {
                *first = kind;
            }
            let before = world.counter(0, Counter::LinkRefused);
            let refused = world.host(0).step(now, Input::PeerFrame(ServerId(1), &frame)).is_err();
            let counted = world.counter(0, Counter::LinkRefused) - before;
            prop_assert_eq!(counted, u64::from(refused));
        }
        world.write(2, &accept(1));
        world.write(0, &accept(2));
        world.cut(0, 1);
        world.connect(0, 1);
        world.settle();
        prop_assert_eq!(world.exposed(0), vec![1, 1, 1]);
    }
}
