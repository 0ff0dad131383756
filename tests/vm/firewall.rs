//! A guest is connected only with the firewall's rules around it, whatever happens to them; and the
//! folder of a host's own user is no way to become root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};

use crate::cluster::{Cluster, clean_image, run, try_run, until};

/// `vm/network`'s arguments for server 1 of a `vm/cluster`.
const SERVER_1: [&str; 10] = [
    "--payload",
    "payload",
    "--trusted",
    "trusted",
    "--id",
    "1",
    "--guest-address",
    "10.99.1.2",
    "--user",
    "60601",
];

fn network(cluster: &Cluster, what: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/vm/network");
    cluster.inside("h1", &[&[script, what], &SERVER_1[..]].concat());
}

/// How often the log of guest 1's guard has these words.
fn said(cluster: &Cluster, words: &str) -> usize {
    cluster.log("run-guest-1.log").matches(words).count()
}

fn ends_disconnected(cluster: &Cluster, times: usize) {
    until("its machine has ended", || {
        (said(cluster, "are not what they were; vm/network makes them") >= times).then_some(())
    });
}

#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn a_machine_ends_with_the_rules_around_it_and_comes_back_with_them() {
    // A guard runs each.
    let cluster = Cluster::up(&["--rejuvenate", "1h"]);
    assert_eq!(cluster.send("0", &["one"]), [1]);
    let tap_is_up = || {
        let said = cluster.inside("h1", &["ip", "-o", "link", "show", "difato-tap"]);
        said.contains(",UP")
    };
    assert!(tap_is_up());
    // Somebody loads another firewall.
    cluster.inside("h1", &["nft", "flush", "ruleset"]);
    ends_disconnected(&cluster, 1);
    until("its guard tries again", || {
        (said(&cluster, "there are no rules around difato-tap in the firewall") > 0).then_some(())
    });
    assert!(!tap_is_up());
    assert_eq!(cluster.send("0", &["two", "three"]), [2, 3]);
    network(&cluster, "rules");
    cluster.until_at_work(1, 3);
    // The same rules again are no harm; one less is, though the tables stay.
    network(&cluster, "rules");
    assert_eq!(cluster.send("0", &["four"]), [4]);
    assert_eq!(said(&cluster, "are not what they were"), 1);
    cluster.inside("h1", &["nft", "flush", "chain", "bridge", "difato", "from_guest"]);
    ends_disconnected(&cluster, 2);
    network(&cluster, "rules");
    cluster.until_at_work(1, 4);
    // All anew, under a machine that has the device: it loses it, and another gets the new one.
    network(&cluster, "up");
    ends_disconnected(&cluster, 3);
    cluster.until_at_work(1, 4);
    cluster.script("stop-guest", &["2"]);
    assert_eq!(cluster.send("0", &["five"]), [5]);
}

#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn rules_are_the_last_to_go() {
    let cluster = Cluster::up(&["--no-guests"]);
    let folder = tempfile::tempdir().unwrap();
    let (shim, early) = (folder.path().join("nft"), folder.path().join("early"));
    let (early_path, folder) = (early.to_str().unwrap(), folder.path().to_str().unwrap());
    let real = run(&["sh", "-c", "command -v nft"]);
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in delete*)\n    for device in tap pay; do\n        \
         ! ip link show dev difato-$device >/dev/null 2>&1 || echo \"$*\" >>{early_path}\n    \
         done ;;\nesac\nexec {} \"$@\"\n",
        real.trim()
    );
    fs::write(&shim, script).unwrap();
    fs::set_permissions(&shim, Permissions::from_mode(0o755)).unwrap();
    let path = format!("PATH={folder}:{}", std::env::var("PATH").unwrap());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/vm/network");
    cluster.inside("h1", &[&["env", &path, script, "up"], &SERVER_1[..]].concat());
    cluster.inside("h1", &["env", &path, script, "down"]);
    assert!(!early.exists(), "{}", fs::read_to_string(&early).unwrap());
    let left = cluster.inside("h1", &["ip", "-o", "link"]);
    assert!(!left.contains("difato-"), "{left}");
    assert_eq!(cluster.inside("h1", &["nft", "list", "tables"]), "");
}

#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn the_trusted_network_carries_no_ipv6() {
    let cluster = Cluster::up(&["--no-guests"]);
    for (space, address) in [("h0", "fd00:d1fa::1/64"), ("h1", "fd00:d1fa::2/64")] {
        let add = ["ip", "address", "add", address, "dev", "trusted", "nodad"];
        cluster.inside(space, &add);
    }
    // Nobody listens there, and whoever is reached says so at once.
    let space = format!("{}-h0", cluster.name);
    let connect = "exec 3<>/dev/tcp/fd00:d1fa::2/9";
    let connect = ["ip", "netns", "exec", &space, "timeout", "2", "bash", "-c", connect];
    let reaches = || try_run(&connect).unwrap_err().contains("Connection refused");
    assert!(!reaches(), "IPv6 passes");
    // Each host lets none out, and none in.
    let no_rules =
        |space: &str| cluster.inside(space, &["nft", "delete", "table", "inet", "difato"]);
    cluster.inside("h0", &["nft", "flush", "chain", "inet", "difato", "input"]);
    no_rules("h1");
    assert!(!reaches(), "IPv6 leaves");
    no_rules("h0");
    network(&cluster, "rules");
    cluster.inside("h1", &["nft", "flush", "chain", "inet", "difato", "output"]);
    assert!(!reaches(), "IPv6 comes in");
    no_rules("h1");
    until("without the rules it passes", || reaches().then_some(()));
}

/// Whoever owns the host agent may put what it likes into its folder. `vm/run-guest` is root's.
#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn a_host_agents_user_does_not_become_root_by_its_guest() {
    let cluster = Cluster::up(&["--no-guests"]);
    let host = cluster.dir().join("hosts/1");
    until("the host agent has its files", || host.join("run/bell-1").exists().then_some(()));
    cluster.script("stop-host", &["1"]);
    let prize = tempfile::tempdir().unwrap();
    fs::set_permissions(prize.path(), Permissions::from_mode(0o700)).unwrap();
    let secret = prize.path().join("secret");
    fs::write(&secret, "root's own").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let look = || {
        let about = |path| fs::metadata(path).map(|data| (data.mode(), data.gid())).unwrap();
        (about(prize.path()), about(&secret))
    };
    let before = look();
    let image = clean_image();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/vm/run-guest");
    let start = || {
        let space = format!("{}-h1", cluster.name);
        let command = ["ip", "netns", "exec", &space, "timeout", "10", script, "--id", "1"];
        let options = ["--tap", "difato-tap", "--user", "60601", "--accel", "tcg"];
        let where_from = ["--image", image.to_str().unwrap(), "--dir", host.to_str().unwrap()];
        try_run(&[&command[..], &options, &where_from].concat()).unwrap_err()
    };
    let aside = host.join("aside");
    for (name, target) in [
        (host.join("run"), prize.path()),
        (host.join("registers/1/read"), &secret),
        (host.join("registers/1/write"), &secret),
        (host.join("registers/1"), prize.path()),
        (host.join("keys/guest-1.key"), &secret),
        (host.join("cluster.toml"), &secret),
        (host.join("logs"), prize.path()),
    ] {
        fs::rename(&name, &aside).unwrap();
        symlink(target, &name).unwrap();
        lchown(&name, Some(60641), Some(60641)).unwrap();
        let said = start();
        assert_eq!(look(), before, "{}: {said}", name.display());
        assert_eq!(fs::read_to_string(&secret).unwrap(), "root's own", "{}", name.display());
        assert_eq!(fs::read_dir(prize.path()).unwrap().count(), 1, "{}: {said}", name.display());
        fs::remove_file(&name).unwrap();
        fs::rename(&aside, &name).unwrap();
    }
}
