//! `difato retire`: a server is gone for good (R6). It is noted in `retired.toml`, where the host
//! agents of this folder see it within seconds; they tell the others.
//!
//! What is noted is that all incarnations of the server so far are over. Which those are is read from
//! the register files that lie here: each host keeps, for every server, the least incarnation that it
//! listens to. So an entry says nothing of a server that came back after it.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Uid, User};
use shared_registers::cluster::{Cluster, Paths, Retired, RetiredServer};
use shared_registers::ids::ServerId;
use shared_registers::layout::{self, floor_from_word, floor_word};
use shared_registers::words::{MappedReadOnly, Words};

use crate::cli::RetireArgs;
use crate::exit::bad_input;
use crate::output;
use crate::regular::open_regular;

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
        let Ok(file) = open_regular(&paths.read_file(host)) else { continue };
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

/// Replaces `retired.toml` whole, readable by the folder's owner alone: that is who the host agents
/// that read it run as.
fn write(paths: &Paths, list: &Retired) -> Result<()> {
    let text = toml::to_string(list).context("cannot write retired.toml")?;
    let text = format!("# Written by `difato retire`.\n{text}");
    let cannot = || format!("cannot write {}", paths.retired().display());
    let owner = std::fs::metadata(paths.dir()).with_context(cannot)?;
    let file = tempfile::Builder::new().prefix(".retired-").tempfile_in(paths.dir());
    let owned = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        // Who is the owner need not be of the folder's group, and nothing is for the group.
        if file.as_file().metadata()?.uid() != owner.uid() {
            fchown(file.as_file(), Some(owner.uid()), Some(owner.gid()))?;
        }
        file.as_file().sync_all()?;
        Ok(file)
    });
    let file = owned.map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => bad_input(format!(
            "{} is for host agents to read, which run as {}: run `difato retire` as that user or as \
             root",
            paths.retired().display(),
            name(owner.uid())
        )),
        _ => anyhow::Error::new(error).context(cannot()),
    })?;
    file.persist(paths.retired()).with_context(cannot)?;
    Ok(())
}

/// How a user is called; one without a name has a number.
fn name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| format!("user {uid}"), |user| user.name)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::thread;

    use nix::unistd::{geteuid, setfsuid};

    use super::*;
    use crate::exit::BadInput;

    /// Users that own nothing and need not exist.
    const OWNER: (u32, u32) = (54_321, 54_322);
    const STRANGER: u32 = 54_323;

    fn list() -> Retired {
        Retired { retired: vec![RetiredServer { id: 1, below: 1 }] }
    }

    #[test]
    fn it_belongs_to_the_folders_owner_alone_whoever_writes_it() {
        let folder = tempfile::tempdir().unwrap();
        // Another user's needs root to make it.
        if geteuid().is_root() {
            chown(folder.path(), Some(OWNER.0), Some(OWNER.1)).unwrap();
        }
        let owner = fs::metadata(folder.path()).unwrap();
        let paths = Paths::new(folder.path());
        for _ in 0..2 {
            write(&paths, &list()).unwrap();
            let data = fs::metadata(paths.retired()).unwrap();
            let is = (data.uid(), data.gid(), data.mode() & 0o777);
            assert_eq!(is, (owner.uid(), owner.gid(), 0o600));
        }
        assert_eq!(Retired::load(&paths).unwrap().retired[0].id, 1);
    }

    #[test]
    fn who_cannot_give_it_to_the_folders_owner_is_told_so_and_changes_nothing() {
        if !geteuid().is_root() {
            eprintln!("not run: to be another user takes root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        chown(folder.path(), Some(OWNER.0), Some(OWNER.1)).unwrap();
        let paths = Paths::new(folder.path());
        // Whether or not others may write to the folder.
        for mode in [0o755, 0o777] {
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            let paths = paths.clone();
            // Of this thread alone, with all that root may do to files.
            let refused = thread::spawn(move || {
                setfsuid(Uid::from_raw(STRANGER));
                write(&paths, &list()).unwrap_err()
            });
            let refused = refused.join().unwrap();
            assert!(refused.is::<BadInput>(), "{refused:?}");
            assert!(refused.to_string().contains("as user 54321: run"), "{refused}");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
