//! Machines that are replaced by clean ones: in turns, while clients go on, and when convicted.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, clean_image, intruder_image, run, try_run, until};

/// Under TCG a machine is at work some seconds after its start; this gives each twenty.
const PERIOD: &str = "60s";
/// Twice round, one turn missed, and the start.
const LONGEST: Duration = Duration::from_secs(240);
/// Nobody waits longer for an answer: some time-outs, and what a busy machine adds under TCG.
const PAUSE: Duration = Duration::from_secs(20);
/// Between two requests of the load, answered or not.
const EVERY: Duration = Duration::from_millis(20);

/// Requests of client 0, `load 0` and so on, without end: many may wait for an answer at a time.
struct Load {
    send: Child,
    stop: Arc<AtomicBool>,
    sends: JoinHandle<u64>,
    answers: JoinHandle<Answers>,
}

/// What came of them, in the order in which it came.
struct Answers {
    orders: Vec<u64>,
    longest_pause: Duration,
}

impl Load {
    fn start(cluster: &Cluster) -> Load {
        let mut send = in_client(cluster, &["send", "--client", "0", "--lines"]);
        let mut send = send.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut to, from) = (send.stdin.take().unwrap(), send.stdout.take().unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sends = thread::spawn(move || {
            (0..).take_while(|_| !stopped.load(Ordering::Relaxed)).fold(0, |_, i| {
                writeln!(to, "load {i}").unwrap();
                thread::sleep(EVERY);
                i + 1
            })
        });
        let answers = thread::spawn(move || {
            let (mut orders, mut longest_pause) = (Vec::new(), Duration::ZERO);
            let mut last = None;
            for line in BufReader::new(from).lines() {
                orders.push(line.unwrap().trim().parse().unwrap());
                let now = Instant::now();
                let pause = now - last.replace(now).unwrap_or(now);
                longest_pause = longest_pause.max(pause);
            }
            Answers { orders, longest_pause }
        });
        Load { send, stop, sends, answers }
    }

    fn goes_on(&self) -> bool {
        !self.sends.is_finished() && !self.answers.is_finished()
    }

    /// Sends no more, and waits for all answers. None may be lost, and none given twice.
    fn finish(mut self) -> Answers {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sends.join().unwrap();
        let answers = self.answers.join().unwrap();
        assert!(self.send.wait().unwrap().success(), "the client did not get all its answers");
        assert!(answers.orders.iter().copied().eq(1..=sent), "{sent}: {:?}", answers.orders);
        answers
    }
}

/// The command on the payload network, to be killed with the cluster.
fn in_client(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &format!("{}-client", cluster.name)]);
    command.arg(cluster.dir().join("bin/difato")).arg(args[0]);
    command.arg("--dir").arg(cluster.dir()).args(&args[1..]);
    command
}

#[test]
#[ignore = "takes minutes: see tests/vm/main.rs"]
fn every_machine_is_replaced_twice_under_load_and_no_request_is_lost() {
    let cluster = Cluster::up(&["--rejuvenate", PERIOD]);
    let (started, load) = (Instant::now(), Load::start(&cluster));
    let replaced = |server: u16| {
        let said = cluster.log(&format!("run-guest-{server}.log"));
        let count = |what: &str| said.matches(what).count();
        count("is replaced by a clean one: it is its turn").min(count("is back at work"))
    };
    while (0..3).any(|server| replaced(server) < 2) {
        assert!(load.goes_on(), "the client has ended");
        assert!(started.elapsed() < LONGEST, "not all were replaced twice in {LONGEST:?}");
        thread::sleep(Duration::from_millis(100));
    }
    let took = started.elapsed().as_secs();
    let Answers { orders, longest_pause } = load.finish();
    let last = orders.len() as u64;
    println!(
        "{last} requests in {took} s in which six machines were replaced; the longest pause between \
         two answers was {} ms",
        longest_pause.as_millis()
    );
    assert!(longest_pause < PAUSE, "no answer for {longest_pause:?}");
    (0..3).for_each(|server| cluster.until_at_work(server, last));
    // The one order holds them all.
    let listen = in_client(&cluster, &["listen", "--client", "1", "--count", &last.to_string()]);
    let words: Vec<_> = listen.get_args().map(|word| word.to_str().unwrap()).collect();
    let heard = run(&[&["ip"], &words[..]].concat());
    let wanted = (1..=last).map(|order| format!("{order} 0 load {}", order - 1));
    assert!(heard.lines().eq(wanted), "{heard}");
}

/// The first machine of server 0 has an intruder in it (`tests/vm/intruder`), who is the sequencer.
#[test]
#[ignore = "needs root, QEMU, vm/build-image and tests/vm/build-intruder: see tests/vm/main.rs"]
fn a_sequencers_machine_that_proposes_what_it_must_not_is_replaced_at_once() {
    let cluster = Cluster::up(&["--no-guests", "--rejuvenate", "30d"]);
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let initramfs = folder.path().join("initramfs");
    symlink(clean_image().join("vmlinuz"), folder.path().join("vmlinuz")).unwrap();
    symlink(intruder_image().join("initramfs-as-guest"), &initramfs).unwrap();
    cluster.script("start-guest", &["0", "--image", folder.path().to_str().unwrap()]);
    cluster.script("start-guest", &["1"]);
    cluster.script("start-guest", &["2"]);
    until("the intruder has booted", || {
        cluster.log("guest-0.log").contains("intruder: waits to be told").then_some(())
    });
    // From now on the image is clean.
    fs::remove_file(&initramfs).unwrap();
    symlink(clean_image().join("initramfs"), &initramfs).unwrap();
    // To ask for their status would be to tell it.
    until("the others are at work", || {
        let at_work = |i| cluster.log(&format!("guest-{i}.log")).contains("all is read; at work");
        (1..3).all(at_work).then_some(())
    });
    let said = |server: u16, what: &str| {
        cluster.log(&format!("run-guest-{server}.log")).matches(what).count()
    };
    assert!((0..3).all(|server| said(server, "is replaced") == 0));

    let space = format!("{}-client", cluster.name);
    let connect = "exec 3<>/dev/tcp/10.99.1.1/7000";
    try_run(&["ip", "netns", "exec", &space, "timeout", "10", "bash", "-c", connect]).unwrap();
    let told = Instant::now();
    until("its guard hears that others convict it", || {
        (said(0, "others convict it of what it proposed in term 0") > 0).then_some(())
    });
    let heard = told.elapsed();
    cluster.until_at_work(0, 0);
    println!(
        "convicted after {:.1} s, a clean machine at work after {:.1} s",
        heard.as_secs_f64(),
        told.elapsed().as_secs_f64()
    );
    assert_eq!(cluster.send("0", &["one", "two"]), [1, 2]);
    // Without another one, the clean one is needed.
    cluster.script("stop-guest", &["2"]);
    assert_eq!(cluster.send("0", &["three"]), [3]);
    cluster.until_at_work(0, 3);
    assert_eq!([0, 1, 2].map(|server| said(server, "is replaced")), [1, 0, 0]);
}
