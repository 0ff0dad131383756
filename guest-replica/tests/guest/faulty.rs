//! Guests that propose wrongly on purpose: one batch in ten, whenever they are the sequencer.

use protocol::messages::ToServer;
use shared_registers::ids::OrderNumber;

use crate::cluster::{Cluster, N};
use crate::reply;

/// So many orders one at a time are that many batches: some of each server's turns are over.
const ORDERS: u64 = 50;

#[test]
fn a_wrong_batch_ends_its_term_and_no_order_is_lost() {
    let cluster = Cluster::start();
    let mut clients: Vec<_> = (0..N as u16).map(|server| cluster.client(0, server)).collect();
    for count in 1..=ORDERS {
        for client in &mut clients {
            client.send(&ToServer::Order(cluster.order(0, count, b"hello")));
        }
        for client in &mut clients {
            let mut answers = std::iter::repeat_with(|| reply(client));
            let answer = answers.find(|answer| answer.count >= count).unwrap();
            assert_eq!((answer.count, answer.order), (count, OrderNumber(count)));
        }
    }
    let wrong: Vec<u64> = (0..N as u16).map(|id| cluster.count(id, "wrong_proposals")).collect();
    assert!(wrong[0] > 0 && wrong.iter().sum::<u64>() >= ORDERS / 10 - N as u64, "{wrong:?}");
    let terms = (0..N as u16).map(|id| cluster.status(id).term.0);
    let terms: Vec<u64> = terms.collect();
    assert!(terms.iter().all(|term| *term == wrong.iter().sum()), "{terms:?}, {wrong:?}");
}
