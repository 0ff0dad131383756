//! Processes that come back: they catch up, and what they vote counts.

use crate::support::clients::{Caller, one_order};
use crate::support::{Builder, Cluster, Role};

/// One more guest is killed, so that whoever rejoined is needed; then the order goes on.
fn assert_needed(mut cluster: Cluster, caller: &Caller, rejoined: u16, orders: &mut Vec<u64>) {
    cluster.await_delivered(rejoined, *orders.last().unwrap());
    let other = cluster.ids().find(|id| ![rejoined, cluster.sequencer()].contains(id)).unwrap();
    cluster.kill(Role::Guest, other);
    orders.extend(caller.invoke_all("after", 20));
    cluster.await_delivered(rejoined, *orders.last().unwrap());
    assert!(orders.iter().copied().eq(1..=60), "{orders:?}");
    let order = one_order(&cluster.folder, 60);
    let wanted = ["before", "meanwhile", "after"].iter();
    let wanted = wanted.flat_map(|name| (0..20).map(move |i| format!("{name} {i}").into_bytes()));
    assert!(order.into_iter().map(|message| message.payload).eq(wanted));
    cluster.assert_all_run();
}

#[test]
fn a_guest_that_was_killed_rejoins_and_its_vote_counts() {
    let mut cluster = Builder::new().start();
    let caller = Caller::new(&cluster.folder, 0);
    let mut orders = caller.invoke_all("before", 20);
    let victim = cluster.after_sequencer(1);
    cluster.kill(Role::Guest, victim);
    orders.extend(caller.invoke_all("meanwhile", 20));
    cluster.restart(Role::Guest, victim);
    assert_needed(cluster, &caller, victim, &mut orders);
}

#[test]
fn a_sequencers_guest_that_was_killed_rejoins_the_later_term() {
    let mut cluster = Builder::new().start();
    let caller = Caller::new(&cluster.folder, 0);
    let mut orders = caller.invoke_all("before", 20);
    let victim = cluster.sequencer();
    cluster.kill(Role::Guest, victim);
    orders.extend(caller.invoke_all("meanwhile", 20));
    cluster.restart(Role::Guest, victim);
    assert_needed(cluster, &caller, victim, &mut orders);
}

#[test]
fn a_host_that_was_killed_rejoins_its_guest_that_went_on_running() {
    let mut cluster = Builder::new().start();
    let caller = Caller::new(&cluster.folder, 0);
    let mut orders = caller.invoke_all("before", 20);
    let victim = cluster.after_sequencer(1);
    cluster.kill(Role::Host, victim);
    orders.extend(caller.invoke_all("meanwhile", 20));
    cluster.restart(Role::Host, victim);
    assert_needed(cluster, &caller, victim, &mut orders);
}

#[test]
fn a_server_that_was_stopped_clean_rejoins() {
    let mut cluster = Builder::new().start();
    let caller = Caller::new(&cluster.folder, 0);
    let mut orders = caller.invoke_all("before", 20);
    let away = cluster.after_sequencer(2);
    cluster.stop(Role::Guest, away);
    cluster.stop(Role::Host, away);
    orders.extend(caller.invoke_all("meanwhile", 20));
    cluster.start(Role::Host, away);
    cluster.restart(Role::Guest, away);
    assert_needed(cluster, &caller, away, &mut orders);
}
