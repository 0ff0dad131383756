//! A cluster of virtual machines, made and removed by `vm/cluster`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Nothing here takes longer, unless it never comes: machines without hardware's help are slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// No command takes longer.
const COMMAND_SECONDS: &str = "150";
const LOOK: Duration = Duration::from_millis(100);
/// Lines of each log that a failure prints.
const LOG_LINES: usize = 20;

/// Waits for a condition.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(LOOK);
    }
}

fn sources() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn image(variable: &str, default: &str, made_by: &str) -> PathBuf {
    let path = std::env::var_os(variable).map_or_else(|| sources().join(default), PathBuf::from);
    assert!(path.join("initramfs").exists(), "no image in {}: run {made_by}", path.display());
    path
}

/// The image that guests boot.
pub(crate) fn clean_image() -> PathBuf {
    image("DIFATO_VM_IMAGE", "target/vm-image", "vm/build-image")
}

/// The image that the intruder boots.
pub(crate) fn intruder_image() -> PathBuf {
    image("DIFATO_VM_INTRUDER", "target/vm-intruder", "tests/vm/build-intruder")
}

/// Runs a command to its end, and returns what it printed if it did what it was asked.
#[track_caller]
pub(crate) fn run(command: &[&str]) -> String {
    match try_run(command) {
        Ok(printed) => printed,
        Err(why) => panic!("{why}"),
    }
}

/// As [`run`], where it may fail.
pub(crate) fn try_run(command: &[&str]) -> Result<String, String> {
    let output = Command::new("timeout").arg(COMMAND_SECONDS).args(command).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(said(&output.stdout));
    }
    let (out, err) = (said(&output.stdout), said(&output.stderr));
    Err(format!("{command:?}: {}\n{out}{err}", output.status))
}

/// A cluster of three servers.
pub(crate) struct Cluster {
    pub(crate) name: String,
    folder: TempDir,
}

impl Cluster {
    /// Makes the networks and starts the host agents, and the guests if asked to. `options` are
    /// `vm/cluster up`'s.
    pub(crate) fn up(options: &[&str]) -> Cluster {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::Builder::new().prefix("difato-vm-").tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).unwrap();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let this = Cluster { name: format!("t{}{count}", process::id() % 100_000), folder };
        let image = clean_image();
        let accel = std::env::var("DIFATO_VM_ACCEL").unwrap_or_else(|_| "tcg".to_owned());
        let always = ["--name", &this.name, "--image", image.to_str().unwrap(), "--accel", &accel];
        this.script("up", &[&always, options].concat());
        this
    }

    /// The cluster's folder.
    pub(crate) fn dir(&self) -> PathBuf {
        self.folder.path().join("c")
    }

    /// Runs a subcommand of `vm/cluster`.
    #[track_caller]
    pub(crate) fn script(&self, subcommand: &str, args: &[&str]) -> String {
        let script = sources().join("vm/cluster");
        let dir = self.dir();
        run(&[&[script.to_str().unwrap(), subcommand, dir.to_str().unwrap()], args].concat())
    }

    /// Runs a command in one of its namespaces: `net`, `client`, `h0`, ...
    #[track_caller]
    pub(crate) fn inside(&self, space: &str, command: &[&str]) -> String {
        let space = format!("{}-{space}", self.name);
        run(&[&["ip", "netns", "exec", &space], command].concat())
    }

    /// Has messages ordered by a client on the payload network; returns their order numbers.
    #[track_caller]
    pub(crate) fn send(&self, client: &str, messages: &[&str]) -> Vec<u64> {
        let program = self.dir().join("bin/difato");
        let dir = self.dir();
        let dir = dir.to_str().unwrap();
        let send = [program.to_str().unwrap(), "send", "--dir", dir, "--client", client];
        let printed = self.inside("client", &[&send, messages].concat());
        printed.lines().map(|line| line.trim().parse().unwrap()).collect()
    }

    /// What the servers say of themselves.
    pub(crate) fn status(&self) -> Vec<Value> {
        let program = self.dir().join("bin/difato");
        let dir = self.dir();
        let (program, dir) = (program.to_str().unwrap(), dir.to_str().unwrap());
        let space = format!("{}-client", self.name);
        let command = ["ip", "netns", "exec", &space, program, "status", "--dir", dir, "--json"];
        // It fails if no server answers.
        let said = try_run(&command).unwrap_or_default();
        serde_json::from_str(&said).unwrap_or_default()
    }

    /// Waits until a server is at work and has delivered so much.
    #[track_caller]
    pub(crate) fn until_at_work(&self, server: usize, delivered: u64) {
        until(&format!("guest {server} is at work and has delivered {delivered}"), || {
            let status = self.status();
            let status = status.get(server)?;
            let at_work = status["up"] == true && status["catching_up"].is_null();
            (at_work && status["delivered"].as_u64() >= Some(delivered)).then_some(())
        });
    }

    /// What a log of the cluster's says so far.
    pub(crate) fn log(&self, name: &str) -> String {
        let bytes = fs::read(self.dir().join("logs").join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            for entry in fs::read_dir(self.dir().join("logs")).into_iter().flatten().flatten() {
                let text = self.log(entry.file_name().to_str().unwrap_or_default());
                let lines: Vec<_> = text.lines().collect();
                let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                eprintln!("--- {}\n{end}", entry.file_name().display());
            }
        }
        let script = sources().join("vm/cluster");
        let dir = self.dir();
        let down = try_run(&[script.to_str().unwrap(), "down", dir.to_str().unwrap()]);
        if let Err(why) = down
            && !thread::panicking()
        {
            panic!("{why}");
        }
    }
}
