//! Which device is which, and the kernel modules that drive them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::VmError;

/// The image's kernel modules, in the order of their names, which is the order to load them in.
const MODULES: &str = "/modules";
const PCI: &str = "/sys/bus/pci/devices";
const PORTS: &str = "/sys/class/virtio-ports";
/// `vendor:device` of shared memory as `ivshmem-plain` offers it, in BAR 2.
const SHARED_MEMORY: (&str, &str) = ("0x1af4", "0x1110");
/// The slots on the first PCI bus that tell the write file's device from the read file's.
const WRITE_SLOT: &str = "0000:00:10.0";
const READ_SLOT: &str = "0000:00:11.0";
/// The doorbell's name.
const BELL_NAME: &str = "difato.bell";
/// A device that is not there after so long will not come.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The two register files' memory.
pub(super) struct Registers {
    pub(super) write: PathBuf,
    pub(super) read: PathBuf,
}

/// Loads the image's modules.
pub(super) fn load_modules() -> Result<(), VmError> {
    let list = || -> std::io::Result<Vec<PathBuf>> {
        fs::read_dir(MODULES)?.map(|entry| Ok(entry?.path())).collect()
    };
    let mut modules = list().map_err(VmError::step(format!("list {MODULES}")))?;
    modules.sort();
    for module in modules {
        let failed = || format!("load the module {}", module.display());
        let file = File::open(&module).map_err(VmError::step(failed()))?;
        match finit_module(file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(VmError::step(failed())(error)),
        }
    }
    Ok(())
}

/// Finds the register files, and turns their memory on.
pub(super) fn registers() -> Result<Registers, VmError> {
    let find = |slot: &str, name: &str| {
        let device = Path::new(PCI).join(slot);
        let says = |what: &str| fs::read_to_string(device.join(what)).unwrap_or_default();
        if (says("vendor").trim(), says("device").trim()) != SHARED_MEMORY {
            let what = format!("shared memory for the {name} file at {}", device.display());
            return Err(VmError::Missing { what });
        }
        fs::write(device.join("enable"), "1")
            .map_err(VmError::step(format!("turn on the {name} file's memory")))?;
        // Not resource2_wc: stores must be seen in the order in which they are done.
        Ok(device.join("resource2"))
    };
    Ok(Registers { write: find(WRITE_SLOT, "write")?, read: find(READ_SLOT, "read")? })
}

/// Finds the doorbell's port. The console driver learns of its ports little by little.
pub(super) fn bell() -> Result<PathBuf, VmError> {
    let look = || {
        let mut ports = fs::read_dir(PORTS).ok()?.filter_map(Result::ok);
        let named = |path: PathBuf| {
            let name = fs::read_to_string(path.join("name")).unwrap_or_default();
            (name.trim() == BELL_NAME).then_some(path)
        };
        let port = ports.find_map(|port| named(port.path()))?;
        Some(Path::new("/dev").join(port.file_name()?))
    };
    wait_for(look).ok_or_else(|| VmError::Missing { what: format!("virtio port {BELL_NAME}") })
}

/// Looks until there is something to see.
pub(super) fn wait_for<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match look() {
            None if Instant::now() < end => thread::sleep(LOOK_EVERY),
            seen => return seen,
        }
    }
}
