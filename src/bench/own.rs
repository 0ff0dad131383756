//! A cluster of one's own for one measurement: real processes in a temporary folder.
//!
//! Whichever way the measurement ends (done, failed, Ctrl-C), the processes die first and then the
//! folder goes: [`Own`] does both as it is dropped, and [`run`] drops it when a signal comes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use client::StatusError;
use protocol::messages::Status;
use shared_registers::cluster::Durability;
use shared_registers::ids::{ServerId, Term};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::cli::ApplicationName;
use crate::init::{self, Wanted};
use crate::session::{self, Interrupt, Operator};
use crate::supervisor::{Programs, Supervisor};
use crate::up;

/// A server has so long to answer when it is asked how it is.
const PATIENCE: Duration = Duration::from_secs(2);
/// All of them have so long.
const ALL_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before they are asked again.
const LOOK: Duration = Duration::from_millis(50);

/// What the cluster shall be. Its application is `echo-sized`.
pub(crate) struct Spec {
    /// How many faulty servers it tolerates.
    pub(crate) f: usize,
    /// How many clients get keys.
    pub(crate) clients: u32,
    /// What a host's records outlive before others see them.
    pub(crate) durability: Durability,
    /// For how many microseconds processes look for work before they sleep.
    pub(crate) spin_us: u64,
    /// Guests that run another program than this one.
    pub(crate) programs: Programs,
}

impl Spec {
    /// A cluster of 2`f`+1 servers with keys for `clients`, durability `process`.
    pub(crate) fn new(f: usize, clients: u32) -> Spec {
        let (durability, programs) = (Durability::Process, Programs::new());
        Spec { f, clients, durability, spin_us: 0, programs }
    }
}

/// A cluster that runs. Dropped, its processes are killed and its folder is removed.
pub(crate) struct Own {
    /// Its processes. The first field: they must be dead before their folder goes.
    pub(crate) supervisor: Supervisor,
    /// Who may ask the servers how they are; has the cluster's description too.
    pub(crate) operator: Operator,
    dir: PathBuf,
    folder: TempDir,
}

impl Own {
    /// Makes a cluster, starts it, and waits until all its servers serve. To be called on the main
    /// thread (see [`Supervisor::start`]).
    pub(crate) async fn start(spec: &Spec) -> Result<Own> {
        let folder = tempfile::Builder::new()
            .prefix("difato-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        let dir = folder.path().join("cluster");
        let wanted = Wanted {
            f: spec.f,
            clients: spec.clients,
            application: ApplicationName::EchoSized.name(),
            trusted: None,
            payload: None,
            durability: spec.durability,
            spin_us: spec.spin_us,
        };
        let cluster = init::create(&dir, &wanted)?;
        let operator = Operator::load(&dir)?;
        let supervisor = Supervisor::start_with(&dir, &cluster, &spec.programs)?;
        let mut own = Own { supervisor, operator, dir, folder };
        up::until_serving(&mut own.supervisor, &own.operator).await?;
        Ok(own)
    }

    /// The cluster's folder.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Asks all servers how they are.
    pub(crate) async fn ask(&self) -> Said {
        Said(self.operator.ask(PATIENCE).await)
    }

    /// Asks them until all have answered. Who connects while many clients do may be hung up on: a
    /// guest keeps few connections that have not proved yet whose they are.
    pub(crate) async fn ask_all(&self) -> Result<Said> {
        let start = Instant::now();
        loop {
            let said = self.ask().await;
            let all = said.all_answered();
            if all.is_ok() || start.elapsed() > ALL_PATIENCE {
                return all.map(|()| said);
            }
            sleep(LOOK).await;
        }
    }

    /// The newest term that any server is in.
    pub(crate) async fn newest_term(&self) -> Result<Term> {
        self.ask().await.newest_term()
    }

    /// Ends it. It is an error if a process has died that was not killed on purpose, or if the
    /// folder cannot be removed.
    pub(crate) fn close(mut self) -> Result<()> {
        let deaths: Vec<String> = self.supervisor.deaths().iter().map(|d| d.to_string()).collect();
        ensure!(deaths.is_empty(), "{}", deaths.join("; "));
        // Not told to stop but killed: the files that they would sync first are about to be removed.
        drop(self.supervisor);
        self.folder.close().context("cannot remove the temporary folder")
    }
}

/// What the servers said of themselves, or why one did not, by server.
#[derive(Debug, Default)]
pub(crate) struct Said(Vec<Result<Status, StatusError>>);

impl Said {
    /// Those that answered.
    pub(crate) fn servers(&self) -> impl Iterator<Item = &Status> + Clone {
        self.0.iter().flatten()
    }

    /// It is an error if one did not answer.
    fn all_answered(&self) -> Result<()> {
        let silent = ServerId::all(self.0.len()).zip(&self.0);
        let silent =
            silent.filter_map(|(id, said)| Some(format!("{id} ({})", said.as_ref().err()?)));
        let silent: Vec<String> = silent.collect();
        ensure!(silent.is_empty(), "not every server says how it is: {}", silent.join(", "));
        Ok(())
    }

    /// The newest term that any of them is in.
    pub(crate) fn newest_term(&self) -> Result<Term> {
        self.servers().map(|status| status.term).max().context("no server answers")
    }

    /// What they have counted under this name, all together.
    pub(crate) fn sum(&self, name: &str) -> u64 {
        let counters = self.servers().flat_map(|status| &status.counters);
        counters.filter(|(found, _)| found == name).map(|(_, count)| count).sum()
    }
}

/// Runs work on clusters of its own. SIGINT (Ctrl-C) or SIGTERM ends it, and with it they go.
pub(crate) fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    session::runtime()?.block_on(async {
        // First of all, so that no child is left behind by a hasty Ctrl-C.
        let mut interrupt = Interrupt::new()?;
        tokio::select! {
            done = work => done,
            () = interrupt.came() => bail!("interrupted; all processes are stopped"),
        }
    })
}
