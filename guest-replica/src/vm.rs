//! A guest as the one process of a virtual machine.
//!
//! The machine's image holds a kernel, a few of its modules and this program, which is its init:
//! no shell, no other process, nothing that a guest does not need, no secret, and the same for all
//! guests. Everything else comes from the host, and is laid out in [`FOLDER`] as the folder of a
//! cluster, so that from then on a guest is the same in a machine and as a plain process:
//!
//! | what | where the host puts it | where it is laid out |
//! |---|---|---|
//! | `cluster.toml` | fw_cfg `opt/difato/cluster` | `cluster.toml` |
//! | this guest's keys | fw_cfg `opt/difato/keys` | `keys/guest-I.key` |
//! | [which guest](GuestConfig) | fw_cfg `opt/difato/guest` | the network device's address and routes |
//! | write and read file | two `ivshmem-plain` devices, by slot | links in `registers/I` |
//! | doorbell | a virtio port named `difato.bell` | a link in `run` |
//!
//! There is no disk: the guest's store of snapshots lies in its memory, and goes with it.
//!
//! | module | one job |
//! |---|---|
//! | `devices` | kernel modules, and which device is which |
//! | `firmware` | what the host says through fw_cfg |
//! | `network` | an address for the network device |

mod devices;
mod firmware;
mod network;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::{Pid, getpid, sync};
use shared_registers::cluster::{Cluster, Paths};
use shared_registers::ids::ServerId;

use crate::Options;

pub use firmware::GuestConfig;

/// Where a machine's cluster folder is laid out.
pub const FOLDER: &str = "/run/difato";

/// Why a machine cannot become a guest. It says what, and who has to do something about it.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// This is not a machine's first process.
    #[error("--vm makes a whole machine of this process: it is for the init of a guest's image")]
    NotInit,
    /// The system refuses a step.
    #[error("cannot {what}: {source}")]
    Step {
        /// What.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// A device is not there.
    #[error("there is no {what}: start this machine with `vm/run-guest`")]
    Missing {
        /// Which.
        what: String,
    },
    /// What the host gave cannot be read.
    #[error("{item} from the host is wrong: {why}")]
    Config {
        /// Which item of fw_cfg.
        item: String,
        /// What is wrong with it.
        why: String,
    },
}

impl VmError {
    /// What makes of a system's error one that says what was being done.
    fn step<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> VmError {
        let what = what.into();
        move |error| VmError::Step { what, source: error.into() }
    }
}

/// Makes a guest of the virtual machine whose init this process is: loads modules, finds the
/// devices, takes configuration and keys from the host, and gives the network device its address.
/// What it returns is for [`run`](crate::run).
pub fn boot() -> Result<Options, VmError> {
    if getpid() != Pid::from_raw(1) {
        return Err(VmError::NotInit);
    }
    mount_all()?;
    // `vm/run-guest` looks for this line when it tries an accelerator.
    tracing::info!("this machine has booted");
    devices::load_modules()?;
    let given = firmware::read()?;
    let (me, addresses) = Cluster::parse(&given.cluster)
        .and_then(|cluster| cluster.server(given.guest.id).map_err(|error| error.to_string()))
        .map_err(|why| VmError::Config { item: firmware::CLUSTER.to_owned(), why })?;
    network::set_up(addresses.payload.ip(), given.guest.prefix, given.guest.gateway)?;
    lay_out(&Paths::new(FOLDER), me, &given)?;
    Ok(Options { dir: PathBuf::from(FOLDER), id: me.0 })
}

/// Ends the machine.
pub fn power_off() {
    sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    tracing::error!("cannot power off: {error}");
}

fn mount_all() -> Result<(), VmError> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount_one(kind, Path::new(at))?;
    }
    Ok(())
}

fn mount_one(kind: &str, at: &Path) -> Result<(), VmError> {
    let failed = || format!("mount {kind} at {}", at.display());
    fs::create_dir_all(at).map_err(VmError::step(failed()))?;
    let nothing = None::<&str>;
    mount(Some(kind), at, Some(kind), MsFlags::empty(), nothing).map_err(VmError::step(failed()))
}

/// Lays everything out as the folder of a cluster.
fn lay_out(paths: &Paths, me: ServerId, given: &firmware::Given) -> Result<(), VmError> {
    let registers = devices::registers()?;
    let bell = devices::bell()?;
    let failed = || VmError::step(format!("lay out {}", paths.dir().display()));
    let mut folders = DirBuilder::new();
    folders.recursive(true).mode(0o700);
    for folder in [paths.keys(), paths.registers(me), paths.run(), paths.snapshots(me)] {
        folders.create(folder).map_err(failed())?;
    }
    let write = |path: &Path, text: &str| {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed())
    };
    write(&paths.cluster_toml(), &given.cluster)?;
    write(&paths.guest_keys(me), &given.keys)?;
    let links = [
        (registers.write, paths.write_file(me)),
        (registers.read, paths.read_file(me)),
        (bell, paths.bell(me)),
    ];
    for (device, path) in links {
        symlink(device, path).map_err(failed())?;
    }
    // Half of the memory at most, as is usual: a store that is full is one that claims nothing.
    mount_one("tmpfs", &paths.snapshots(me))
}
