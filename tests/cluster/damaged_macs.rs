//! An order with a damaged MAC entry: the sequencer's host drops it and names it; whatever else is
//! in flight goes on in the same term, and an intact copy is still taken.

use protocol::messages::{OrderMessage, Refusal, ToClient};

use crate::attacker::HandClient;
use crate::support::clients::{Traffic, one_order};
use crate::support::{Builder, until};

fn damaged(order: &OrderMessage, server: u16) -> OrderMessage {
    let mut order = order.clone();
    order.macs[usize::from(server)][0] ^= 1;
    order
}

#[test]
fn an_order_with_a_damaged_mac_is_named_and_the_rest_goes_on_in_the_same_term() {
    let mut cluster = Builder::new().start();
    let mut traffic = Traffic::start(&cluster, 0, 32);
    traffic.await_more(100);
    let (term, sequencer) = (cluster.term(), cluster.sequencer());
    let client = HandClient::new(&cluster, 1);
    let mut connection = client.dial(&cluster, sequencer);
    let mut orders = Vec::new();
    for round in 1..=5 {
        let good = client.order(&cluster, round, &format!("by hand {round}"));
        let failed = cluster.counter(sequencer, "host_orders_mac_failed");
        connection.send(&damaged(&good, sequencer));
        until("the sequencer's host counts the order whose MAC fails", || {
            cluster.counter(sequencer, "host_orders_mac_failed") > failed
        });
        connection.await_message("word that the host refused it", |message| match message {
            ToClient::Refused { count, reason: Refusal::BadMac, .. } => {
                (*count == round).then_some(())
            }
            _ => None,
        });
        traffic.await_more(50);
        connection.send(&good);
        orders.push(connection.await_message(
            "a reply to the intact copy",
            |message| match message {
                ToClient::Reply(reply) if reply.count == round => Some(reply.order.0),
                _ => None,
            },
        ));
    }
    traffic.await_more(100);
    let answers = traffic.finish();
    assert_eq!(cluster.term(), term, "a damaged MAC changed the sequencer");
    assert!(cluster.counter(sequencer, "host_dropped_order_mac") >= 5);
    let order = one_order(&cluster.folder, answers.last().max(orders[4]));
    answers.assert_stand_in(&order);
    let by_hand = order.iter().filter(|message| message.client.0 == 1);
    let by_hand: Vec<_> = by_hand.map(|m| (m.order.0, m.payload.clone())).collect();
    let wanted = (1..).map(|round| format!("by hand {round}").into_bytes());
    assert_eq!(by_hand, orders.into_iter().zip(wanted).collect::<Vec<_>>());
    cluster.assert_all_run();
}
