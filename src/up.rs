//! `difato cluster up`: every process of a cluster on this machine, in the foreground.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use shared_registers::cluster::Paths;
use shared_registers::ids::ServerId;

use crate::cli::UpArgs;
use crate::exit::bad_input;
use crate::output;
use crate::retire;
use crate::session::{self, Interrupt, Operator};
use crate::supervisor::{Role, Supervisor};

/// How often we look for dead processes.
const LOOK: Duration = Duration::from_millis(50);
/// A server has so long to answer while we wait for it to serve.
const PATIENCE: Duration = Duration::from_millis(400);
/// All servers have so long to serve before we say that they do not.
const SERVING: Duration = Duration::from_secs(20);

/// Runs `difato cluster up`.
pub(crate) fn run(args: UpArgs) -> Result<()> {
    let (paths, operator) = (Paths::new(&args.dir), Operator::load(&args.dir)?);
    let runtime = session::runtime()?;
    runtime.block_on(async {
        // First of all, so that no child is left behind by a hasty Ctrl-C.
        let mut interrupt = Interrupt::new()?;
        let mut supervisor = Supervisor::start(&args.dir, &operator.cluster)?;
        let done = tokio::select! {
            done = watch(&mut supervisor, &paths, &operator) => done,
            () = interrupt.came() => Ok(()),
        };
        let unclean = supervisor.stop();
        for what in &unclean {
            eprintln!("difato: {what}");
        }
        done?;
        if !unclean.is_empty() {
            bail!("not every process stopped clean");
        }
        say("all processes stopped");
        Ok(())
    })
}

/// Says when all serve, and who dies; ends only if there is nothing left to watch.
async fn watch(supervisor: &mut Supervisor, paths: &Paths, operator: &Operator) -> Result<()> {
    let started = Instant::now();
    let mut announced = false;
    loop {
        for death in supervisor.deaths() {
            match death.bad_input() {
                // R6: the others go on without it, and its guest has no host.
                Some(why) if retire::is_retired(paths, &operator.cluster, death.id()) => {
                    eprintln!("difato: {why}");
                    if supervisor.runs(Role::GuestReplica, death.id()) {
                        supervisor.kill(Role::GuestReplica, death.id())?;
                    }
                }
                Some(why) if !announced => return Err(bad_input(why)),
                _ => eprintln!("difato: {death}"),
            }
        }
        if supervisor.processes().is_empty() {
            bail!("every process has died");
        }
        if !announced {
            let silent = not_serving(supervisor, operator).await;
            if silent.is_empty() {
                announced = true;
                say(&all_serve(supervisor, operator));
            } else if started.elapsed() > SERVING {
                announced = true;
                let seconds = SERVING.as_secs();
                eprintln!("difato: not serving after {seconds} s: {}", silent.join("; "));
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until all serve. It is an error if a process dies or they take too long.
pub(crate) async fn until_serving(supervisor: &mut Supervisor, operator: &Operator) -> Result<()> {
    let started = Instant::now();
    loop {
        if let Some(death) = supervisor.deaths().into_iter().next() {
            return Err(death.bad_input().map_or_else(|| anyhow::anyhow!("{death}"), bad_input));
        }
        let silent = not_serving(supervisor, operator).await;
        if silent.is_empty() {
            return Ok(());
        }
        if started.elapsed() > SERVING {
            bail!("not serving after {} s: {}", SERVING.as_secs(), silent.join("; "));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Which of the servers whose guest runs do not answer, and why.
async fn not_serving(supervisor: &Supervisor, operator: &Operator) -> Vec<String> {
    let said = operator.ask(PATIENCE).await;
    let servers = ServerId::all(operator.cluster.n()).zip(said);
    let silent = servers.filter_map(|(id, said)| match said {
        Err(error) if supervisor.runs(Role::GuestReplica, id) => {
            Some(format!("server {id}: {error}"))
        }
        _ => None,
    });
    silent.collect()
}

fn all_serve(supervisor: &Supervisor, operator: &Operator) -> String {
    let (count, n) = (supervisor.processes().len(), operator.cluster.n());
    if count == 2 * n {
        return format!("{n} servers are up and serving ({count} processes); Ctrl-C stops them");
    }
    format!("{count} of {} processes are up; Ctrl-C stops them", 2 * n)
}

/// A cluster goes on whether or not anyone reads what we say about it.
fn say(text: &str) {
    let _ = output::print(text);
}
