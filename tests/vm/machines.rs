//! Three machines, one of them lost at a time.

use std::time::Instant;

use crate::cluster::{Cluster, until};

#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn three_machines_order_requests_and_any_one_may_be_lost() {
    let started = Instant::now();
    let cluster = Cluster::up(&[]);
    println!("three machines serve {:.1} s after vm/cluster up", started.elapsed().as_secs_f64());
    assert_eq!(cluster.send("0", &["one", "two", "three"]), [1, 2, 3]);
    (0..3).for_each(|server| cluster.until_at_work(server, 3));

    let sequencer = cluster.status()[0]["sequencer"].as_u64().unwrap() as usize;
    cluster.script("stop-guest", &[&sequencer.to_string()]);
    let lost = Instant::now();
    assert_eq!(cluster.send("0", &["four", "five"]), [4, 5]);
    println!("the next two requests took {:.1} s", lost.elapsed().as_secs_f64());

    let again = Instant::now();
    cluster.script("start-guest", &[&sequencer.to_string()]);
    cluster.until_at_work(sequencer, 5);
    println!("the machine is at work again after {:.1} s", again.elapsed().as_secs_f64());
    assert_eq!(cluster.send("0", &["six"]), [6]);
    until("the guest that came back votes", || {
        let status = cluster.status();
        let counters = &status.get(sequencer)?["counters"];
        (counters["votes_written"].as_u64()? > 0).then_some(())
    });
    println!("its first vote is seen after {:.1} s", again.elapsed().as_secs_f64());

    // Without another one, the one that came back is needed.
    let other = (sequencer + 1) % 3;
    cluster.script("stop-guest", &[&other.to_string()]);
    assert_eq!(cluster.send("1", &["seven", "eight"]), [7, 8]);
    cluster.until_at_work(sequencer, 8);
}

#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn a_machine_without_a_disk_comes_back_by_a_snapshot_of_the_others() {
    // Rings that hold some hundred messages.
    let settings = ["ring_bytes=2097152", "write_ring_bytes=1048576", "max_payload_bytes=65536"];
    let settings: Vec<_> = settings.iter().flat_map(|one| ["--set", one]).collect();
    let cluster = Cluster::up(&settings);
    let payload = "x".repeat(8000);
    let mut sent = 0;
    let mut send = |commands: u64| {
        for _ in 0..commands {
            let orders = cluster.send("0", &[payload.as_str(); 100]);
            sent += 100;
            assert_eq!(orders.last(), Some(&sent));
        }
        sent
    };
    send(4);
    until("records are reclaimed", || {
        let stable = cluster.status().first()?["stable"]["batch"].as_u64()?;
        (stable > 0).then_some(())
    });
    cluster.script("stop-guest", &["1"]);
    let all = send(4);
    let again = Instant::now();
    cluster.script("start-guest", &["1"]);
    cluster.until_at_work(1, all);
    println!("by way of a snapshot it took {:.1} s", again.elapsed().as_secs_f64());
    let said = cluster.log("guest-1.log");
    assert!(said.contains("restored from a snapshot"), "{said}");
    // And it is needed again.
    cluster.script("stop-guest", &["2"]);
    let all = send(1);
    cluster.until_at_work(1, all);
}

#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn a_machine_goes_on_with_a_host_agent_that_was_killed() {
    let cluster = Cluster::up(&[]);
    assert_eq!(cluster.send("0", &["one"]), [1]);
    cluster.script("stop-host", &["1"]);
    assert_eq!(cluster.send("0", &["two", "three"]), [2, 3]);
    cluster.script("start-host", &["1"]);
    cluster.until_at_work(1, 3);
    // Its doorbell rings through the same machine: without another it is needed.
    cluster.script("stop-guest", &["2"]);
    assert_eq!(cluster.send("0", &["four"]), [4]);
    cluster.until_at_work(1, 4);
    assert_eq!(cluster.log("guest-1.log").matches("this machine has booted").count(), 1);
}
