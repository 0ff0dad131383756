//! Processes that come back: they catch up, and what they vote counts.

use protocol::application::KeyValue;

use crate::support::clients::{Caller, one_order};
use crate::support::{Builder, Cluster, Role};

/// One more guest is killed, so that whoever rejoined is needed; then the order goes on.
pub(crate) fn assert_needed(
    mut cluster: Cluster,
    caller: &Caller,
    rejoined: u16,
    orders: &mut Vec<u64>,
) {
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

/// Puts so many bytes at keys, through the client library, with many orders on their way.
fn push_bytes(caller: &Caller, orders: &mut Vec<u64>, bytes: usize) {
    let value = vec![b'v'; 4096];
    let puts = (0..bytes / value.len()).map(|i| KeyValue::put(&(i % 256).to_le_bytes(), &value));
    orders.extend(caller.invoke_many(puts));
}

/// A guest is away until its records are reclaimed. It comes back by a snapshot while the others go
/// on, takes part, and the cluster outlives the loss of another one.
#[test]
fn a_guest_whose_records_were_reclaimed_comes_back_by_a_snapshot_and_is_needed() {
    let tight = Builder::new().application("kv").set("ring_bytes", 2 << 20);
    let mut cluster = tight.set("max_payload_bytes", 8 << 10).start();
    let caller = Caller::new(&cluster.folder, 0);
    let mut orders = Vec::new();
    push_bytes(&caller, &mut orders, 1 << 20);
    let victim = cluster.after_sequencer(1);
    cluster.kill(Role::Guest, victim);
    push_bytes(&caller, &mut orders, 6 << 20);
    cluster.start(Role::Guest, victim);
    // The others do not wait for it.
    push_bytes(&caller, &mut orders, 1 << 20);
    cluster.await_delivered(victim, *orders.last().unwrap());
    assert_eq!(cluster.counter(victim, "snapshots_restored"), 1);
    let status = cluster.folder.command("status", &["--json"]).done();
    let status: Vec<serde_json::Value> = serde_json::from_str(&status).unwrap();
    let said = &status[usize::from(victim)];
    assert!(said["catching_up"].is_null() && said["stable"]["order"].is_u64(), "{said}");

    let other = cluster.ids().find(|id| ![victim, cluster.sequencer()].contains(id)).unwrap();
    cluster.kill(Role::Guest, other);
    push_bytes(&caller, &mut orders, 6 << 20);
    cluster.await_delivered(victim, *orders.last().unwrap());
    assert!(orders.iter().copied().eq(1..=orders.len() as u64), "dense, and in order");
    // Two servers are left, so what listeners hear of the time when it was away is also its word.
    one_order(&cluster.folder, orders.len() as u64);
    cluster.assert_all_run();
}

/// Nobody is left who has the snapshot in memory; each has stored it.
#[test]
fn a_cluster_that_was_stopped_whole_goes_on_after_records_were_reclaimed() {
    let tight = Builder::new().application("kv").set("ring_bytes", 2 << 20);
    let mut cluster = tight.set("max_payload_bytes", 8 << 10).start();
    let (caller, mut orders) = (Caller::new(&cluster.folder, 0), Vec::new());
    push_bytes(&caller, &mut orders, 6 << 20);
    for role in [Role::Guest, Role::Host] {
        cluster.ids().for_each(|id| cluster.stop(role, id));
    }
    for role in [Role::Host, Role::Guest] {
        cluster.ids().for_each(|id| cluster.start(role, id));
    }
    push_bytes(&caller, &mut orders, 1 << 20);
    for id in cluster.ids() {
        cluster.await_delivered(id, *orders.last().unwrap());
        assert_eq!(cluster.counter(id, "snapshots_restored"), 1);
    }
    assert!(orders.iter().copied().eq(1..=orders.len() as u64), "dense, and in order");
    one_order(&cluster.folder, orders.len() as u64);
}

/// What is kept for listeners is the same at everyone, also at one that came back by a snapshot.
#[test]
fn who_listens_too_far_back_is_told_from_where_on_it_may() {
    let tight = Builder::new().application("kv").set("ring_bytes", 2 << 20);
    let tight = tight.set("max_payload_bytes", 8 << 10).set("retain_messages", 300);
    let mut cluster = tight.start();
    let (caller, mut orders) = (Caller::new(&cluster.folder, 0), Vec::new());
    let victim = cluster.after_sequencer(1);
    cluster.kill(Role::Guest, victim);
    push_bytes(&caller, &mut orders, 4 << 20);
    cluster.start(Role::Guest, victim);
    cluster.await_delivered(victim, *orders.last().unwrap());
    assert_eq!(cluster.counter(victim, "snapshots_restored"), 1);
    let other = cluster.ids().find(|id| ![victim, cluster.sequencer()].contains(id)).unwrap();
    cluster.kill(Role::Guest, other);

    let first = orders.len() - 299;
    let said = cluster.folder.command("listen", &["--client", "2", "--from", "1"]);
    let said = said.to_string();
    assert!(said.contains(&format!("the oldest message that may be had is {first}")), "{said}");
    let args = ["--client", "2", "--from", &first.to_string(), "--count", "300"];
    assert_eq!(cluster.folder.command("listen", &args).done().lines().count(), 300);
}
