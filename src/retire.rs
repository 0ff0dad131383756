//! `difato retire`: a server is gone for good (R6). It is noted in `retired.toml`, where the host
//! agents of this folder see it within seconds; they tell the others.
//!
//! What is noted is that all incarnations of the server so far are over. Which those are is read from
//! the register files that lie here: each host keeps, for every server, the least incarnation that it
//! listens to. So an entry says nothing of a server that came back after it.

use std::fs::File;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use shared_registers::cluster::{Cluster, Paths, Retired, RetiredServer};
use shared_registers::ids::ServerId;
use shared_registers::layout::{self, floor_from_word, floor_word};
use shared_registers::words::{MappedReadOnly, Words};

use crate::cli::RetireArgs;
use crate::exit::bad_input;
use crate::output;

/// Runs `difato retire`.
pub(crate) fn run(args: &RetireArgs) -> Result<()> {
    let paths = Paths::new(&args.dir);
    let cluster = Cluster::load(&paths)?;
    let (id, _) = cluster.server(args.id)?;
    // Two at a time would lose one of their entries.
    let folder = File::open(paths.dir()).context("cannot open the cluster's folder")?;
    let _lock = Flock::lock(folder, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("cannot lock the cluster's folder")?;
    let mut list = Retired::load(&paths)?;
    let floors = floors(&paths, &cluster, &list);
    let retired = |id: ServerId| layout::is_retired(floors[id.index()]);
    let registers = paths.registers(id);
    if retired(id) {
        return Err(bad_input(format!(
            "server {id} is retired already; to bring it back remove {} where it runs and start it",
            registers.display()
        )));
    }
    let others = ServerId::all(cluster.n()).filter(|id| retired(*id)).count();
    if others >= cluster.f {
        let s = if others == 1 { " is" } else { "s are" };
        return Err(bad_input(format!(
            "{others} server{s} retired already, and f = {}: with one more the others might miss \
             what was ordered; bring one back first",
            cluster.f
        )));
    }
    list.retired.retain(|entry| entry.id != id.0);
    list.retired.push(RetiredServer { id: id.0, below: floors[id.index()] | 1 });
    write(&paths, &list)?;
    output::print(&format!(
        "Server {id} is retired: host agents on this folder listen to it no more, and wait for it no \
         more.\nTo bring it back remove {} where it runs, and start it.",
        registers.display()
    ))
}

/// Whether a server is retired, as far as is known in this folder.
pub(crate) fn is_retired(paths: &Paths, cluster: &Cluster, id: ServerId) -> bool {
    let list = Retired::load(paths).unwrap_or_default();
    layout::is_retired(floors(paths, cluster, &list)[id.index()])
}

/// By server the least incarnation that anybody here listens to; odd for one that is retired.
fn floors(paths: &Paths, cluster: &Cluster, list: &Retired) -> Vec<u32> {
    let mut floors = vec![0; cluster.n()];
    for entry in &list.retired {
        if let Some(floor) = floors.get_mut(usize::from(entry.id)) {
            *floor = entry.below.max(*floor);
        }
    }
    for host in ServerId::all(cluster.n()) {
        // The hosts that are not on this machine have no file here.
        let Ok(file) = File::open(paths.read_file(host)) else { continue };
        let Ok(words) = MappedReadOnly::map(&file) else { continue };
        if cluster.geometry(host).check_read(&words).is_err() {
            continue;
        }
        for (server, floor) in ServerId::all(cluster.n()).zip(&mut floors) {
            let word = words.load(floor_word(server), Ordering::Acquire);
            *floor = floor_from_word(word).unwrap_or(0).max(*floor);
        }
    }
    floors
}

/// Replaces `retired.toml` whole, readable by this user alone.
fn write(paths: &Paths, list: &Retired) -> Result<()> {
    let text = toml::to_string(list).context("cannot write retired.toml")?;
    let text = format!("# Written by `difato retire`.\n{text}");
    let file = tempfile::Builder::new().prefix(".retired-").tempfile_in(paths.dir());
    let cannot = || format!("cannot write {}", paths.retired().display());
    let file = file.with_context(cannot)?;
    std::fs::write(file.path(), text).with_context(cannot)?;
    file.as_file().sync_all().with_context(cannot)?;
    file.persist(paths.retired()).with_context(cannot)?;
    Ok(())
}
