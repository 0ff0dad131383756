//! What `vm/run-guest` decides and keeps, with programs that stand in for QEMU.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use crate::cluster::{Cluster, clean_image, run, until};

/// A host without a guest, and a folder of programs that stand in for others.
struct Host {
    cluster: Cluster,
    programs: TempDir,
}

impl Host {
    fn new() -> Host {
        let cluster = Cluster::up(&["--no-guests"]);
        let programs = tempfile::tempdir().unwrap();
        fs::set_permissions(programs.path(), Permissions::from_mode(0o755)).unwrap();
        let this = Host { cluster, programs };
        let bell = this.folder().join("run/bell-1");
        until("the host agent has its files", || bell.exists().then_some(()));
        this
    }

    fn folder(&self) -> std::path::PathBuf {
        self.cluster.dir().join("hosts/1")
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.programs.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs a script in the host's namespace, with mounts of its own. `start` there runs the guest,
    /// with arguments; `$bin` is the folder of programs.
    fn run(&self, script: &str) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (folder, bin) = (self.folder(), self.programs.path().display());
        let script = format!(
            "cd {}; bin={bin}; PATH=$bin:$PATH; start() {{ vm/run-guest --dir {} --id 1 \
             --tap difato-tap --user 60601 --image {} \"$@\" 2>&1 || true; }}; {script}",
            root.display(),
            folder.display(),
            clean_image().display()
        );
        let space = format!("{}-h1", self.cluster.name);
        run(&["ip", "netns", "exec", &space, "unshare", "--mount", "bash", "-c", &script])
    }
}

#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn kvm_is_tried_once_a_boot_and_its_absence_is_said_each_time() {
    let host = Host::new();
    host.program("qemu-system-x86_64", "echo this machine has booted");
    host.program("none", "echo nothing of a kind");
    // A `/run` of its own, as after a boot, and a `/dev` that has a `kvm`.
    let said = host.run(
        "mkdir $bin/run; mount -t tmpfs none $bin/run; mkdir -p $bin/run/dev/shm; \
         mknod -m 666 $bin/run/dev/null c 1 3; mknod $bin/run/dev/kvm c 10 232; \
         ln -s /proc/self/fd $bin/run/dev/fd; mount --rbind $bin/run/dev /dev; \
         mount --bind $bin/run /run; start; ls /run; mkdir /run/difato; start; start; \
         cp $bin/none $bin/qemu-system-x86_64; start; start",
    );
    let found: Vec<_> = said.lines().filter(|line| line.contains("guest 1 runs under")).collect();
    // Where the unit has not made a folder for it, it is not kept.
    let words = [
        ["kvm", "(tried)"],
        ["kvm", "(tried)"],
        ["kvm", "found"],
        ["tcg", "(tried)"],
        ["tcg", "found"],
    ];
    assert_eq!(found.len(), words.len(), "{said}");
    assert!(said.lines().any(|line| line == "dev"), "something was left behind: {said}");
    for (line, words) in found.iter().zip(words) {
        assert!(words.iter().all(|word| line.contains(word)), "{said}");
    }
    assert_eq!(said.matches("WARNING: no KVM here").count(), 2, "{said}");
}

/// What a guest says is in its own file, so that it is nobody else's word, and does not fill the disk.
#[test]
#[ignore = "needs root, QEMU and vm/build-image: see tests/vm/main.rs"]
fn what_a_guest_says_is_kept_apart_and_within_a_bound() {
    let host = Host::new();
    host.program(
        "qemu-system-x86_64",
        "yes 'run-guest: all is well' | head -c 20000000; echo the end",
    );
    let said = host.run("start --accel tcg");
    assert!(!said.contains("all is well") && said.contains("ended by itself"), "{said}");
    let logs = host.folder().join("logs");
    let end = until("the console is kept", || {
        let text = fs::read_to_string(logs.join("guest-1.log")).ok()?;
        text.ends_with("the end\n").then_some(text)
    });
    let before = fs::metadata(logs.join("guest-1.log.1")).unwrap().len();
    assert!(end.len() <= 4 << 20 && before <= 4 << 20, "{} and {before}", end.len());
    assert_eq!(fs::read_dir(&logs).unwrap().count(), 2);
}
