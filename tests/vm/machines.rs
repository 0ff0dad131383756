//! Three machines, one of them lost at a time.

use std::time::Instant;

use crate::cluster::Cluster;

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

    // Without another one, the one that came back is needed.
    let other = (sequencer + 1) % 3;
    cluster.script("stop-guest", &[&other.to_string()]);
    assert_eq!(cluster.send("1", &["six", "seven"]), [6, 7]);
    cluster.until_at_work(sequencer, 7);
}
