//! Under which accelerator a machine runs: KVM is tried once a boot, and going without it is said.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::cluster::{Cluster, run, until};

/// Stands in for QEMU: a machine that says so much and ends.
fn qemu_that_says(path: &Path, what: &str) {
    fs::write(path, format!("#!/bin/sh\necho '{what}'\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
}

#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn kvm_is_tried_once_a_boot_and_its_absence_is_said_each_time() {
    let cluster = Cluster::up(&["--no-guests"]);
    let host = cluster.dir().join("hosts/1");
    until("the host agent has its files", || host.join("run/bell-1").exists().then_some(()));
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let qemu = folder.path().join("qemu-system-x86_64");
    let (bin, host) = (folder.path().to_str().unwrap(), host.to_str().unwrap());
    let image = std::env::var("DIFATO_VM_IMAGE").unwrap_or_else(|_| "target/vm-image".to_owned());
    // A `/run` of its own, as after a boot, and a `/dev` that has a `kvm`.
    let script = format!(
        "cd {}; mount -t tmpfs none {bin}/run; mkdir -p {bin}/run/dev/shm; \
         mknod -m 666 {bin}/run/dev/null c 1 3; mknod {bin}/run/dev/kvm c 10 232; \
         ln -s /proc/self/fd {bin}/run/dev/fd; mount --rbind {bin}/run/dev /dev; \
         mount --bind {bin}/run /run; PATH={bin}:$PATH; \
         start() {{ vm/run-guest --dir {host} --id 1 --tap difato-tap --user 60601 --image {image} \
         --accel auto 2>&1 || true; }}; start; start; cp {bin}/none {bin}/qemu-system-x86_64; start; start",
        env!("CARGO_MANIFEST_DIR")
    );
    fs::create_dir(folder.path().join("run")).unwrap();
    qemu_that_says(&qemu, "this machine has booted");
    qemu_that_says(&folder.path().join("none"), "nothing of a kind");
    let space = format!("{}-h1", cluster.name);
    let said = run(&["ip", "netns", "exec", &space, "unshare", "--mount", "bash", "-c", &script]);
    let found: Vec<_> = said.lines().filter(|line| line.contains("guest 1 runs under")).collect();
    let words = [["kvm", "(tried)"], ["kvm", "found"], ["tcg", "(tried)"], ["tcg", "found"]];
    assert_eq!(found.len(), 4, "{said}");
    for (line, words) in found.iter().zip(words) {
        assert!(words.iter().all(|word| line.contains(word)), "{said}");
    }
    assert_eq!(said.matches("WARNING: no KVM here").count(), 2, "{said}");
}
