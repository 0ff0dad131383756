//! Processes that have little to do take little memory: windows are large, and mapped as far as
//! they were used.

use shared_registers::cluster::Limits;

use crate::support::clients::Caller;
use crate::support::memory::Memory;
use crate::support::{Builder, Cluster, Role};

/// An idle process has less than this, with the default windows.
const IDLE_KIB: u64 = 64 << 10;

/// What every process has.
pub(crate) fn of_all(cluster: &Cluster) -> Vec<(String, Memory)> {
    let roles = [(Role::Host, "host agent"), (Role::Guest, "guest")];
    let all = cluster.ids().flat_map(|id| roles.map(|(role, name)| (id, role, name)));
    let registers = cluster.folder.paths().dir().join("registers").canonicalize().unwrap();
    let memory = |role, id| Memory::of(cluster.pid(role, id), &registers);
    all.map(|(id, role, name)| (format!("{name} {id}"), memory(role, id))).collect()
}

#[test]
fn an_idle_cluster_takes_little_memory() {
    let windows = Limits::default().ring_bytes;
    let mut cluster = Builder::new().set("ring_bytes", windows).start();
    // It serves: everybody has read and written.
    assert_eq!(Caller::new(&cluster.folder, 1).invoke("one").order.0, 1);
    let memory = of_all(&cluster);
    let said: Vec<_> = memory.iter().map(|(name, memory)| format!("{name}: {memory}")).collect();
    println!("{}", said.join("\n"));
    for (name, memory) in memory {
        assert!(memory.resident < IDLE_KIB, "{name} has too much:\n{}", said.join("\n"));
        assert!(memory.registers > 0, "{name} has mapped no registers:\n{}", said.join("\n"));
    }
    cluster.assert_all_run();
}
