//! `difato guard`: runs the guest of one server, on its host, and replaces it by a clean one: in its
//! turn (proactive rejuvenation), at once when others convict it, and when it ends by itself.
//!
//! It is trusted as the host agent is, but nothing depends on it: it only reads the read file, which
//! hosts alone write, and starts and kills. A guest has no say in when it is replaced.
//!
//! | module | its one job |
//! |---|---|
//! | [`turns`] | when it is this server's turn |
//! | [`watch`] | what the read file tells of guests: who writes, whom others convict |
//! | [`life`] | the guest's processes: one life after the other |

mod life;
mod turns;
mod watch;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use shared_registers::cluster::{Cluster, Paths};
use shared_registers::ids::ServerId;
use shared_registers::words::explain_bus_errors;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::{GuardArgs, GuardedArgs};
use crate::exit::bad_input;
use crate::role;
use life::{Ended, Life};
use turns::Turns;
use watch::Watch;

/// How often it looks.
const LOOK: Duration = Duration::from_millis(20);
/// The least that a turn lasts: a guest needs a part of that to come back.
const LEAST_TURN: Duration = Duration::from_secs(1);
/// A guest that ends by itself is started again after this; twice that if it ends again soon, ...
const PAUSE: Duration = Duration::from_millis(250);
/// ... and so on up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A guest that ran so long has not ended again soon.
const SETTLED: Duration = Duration::from_secs(60);

/// Runs `difato guard` until SIGTERM or SIGINT.
pub(crate) fn run(args: &GuardArgs) -> Result<()> {
    role::log_to_stderr()?;
    if let Some(parent) = args.supervised_by {
        role::end_with(parent)?;
    }
    explain_bus_errors().context("cannot handle SIGBUS")?;
    let paths = Paths::new(&args.dir);
    let cluster = Cluster::load(&paths)?;
    let (me, _) = cluster.server(args.id)?;
    let turns = match args.rejuvenate {
        Some(period) => Some(Turns::new(me, cluster.n(), period, wall()).ok_or_else(|| {
            let least = LEAST_TURN * cluster.n() as u32;
            bad_input(format!(
                "--rejuvenate {} leaves {} servers too little time each; it must be at least {}",
                humantime::format_duration(period),
                cluster.n(),
                humantime::format_duration(least)
            ))
        })?),
        None => None,
    };
    let signals = Signals::new([SIGTERM, SIGINT]).context("cannot take signals")?;
    let watch = Watch::new(cluster.geometry(me), cluster.f, paths.read_file(me));
    let (begins, pause, command) = (Instant::now(), PAUSE, &args.command[..]);
    let (f, lasted, back) = (cluster.f, false, None);
    let guard = Guard { me, f, turns, watch, life: None, begins, pause, lasted, command, back };
    guard.serve(signals)
}

/// Runs the hidden `difato guarded`: becomes the command, and ends when the guard ends, however it
/// does.
pub(crate) fn run_guarded(args: &GuardedArgs) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("cannot tie the guest to its guard")?;
    // It may have ended before that took hold.
    if getppid() != Pid::from_raw(args.guard) {
        return Err(bad_input(format!("the parent process is not {}", args.guard)));
    }
    let program = &args.command[0];
    let error = std::process::Command::new(program).args(&args.command[1..]).exec();
    eprintln!("difato: cannot run {}: {error}", program.display());
    std::process::exit(life::CANNOT_RUN)
}

struct Guard<'a> {
    me: ServerId,
    f: usize,
    turns: Option<Turns>,
    watch: Watch,
    /// None between one that ended by itself and the next, ...
    life: Option<Life>,
    /// ... which starts then.
    begins: Instant,
    /// Before a guest that ends by itself is started again.
    pause: Duration,
    /// There was a guest that ran.
    lasted: bool,
    command: &'a [OsString],
    /// When the guest was last started again, until it is seen to write.
    back: Option<Instant>,
}

impl Guard<'_> {
    fn serve(mut self, mut signals: Signals) -> Result<()> {
        while signals.pending().next().is_none() {
            self.watch.look(Instant::now());
            self.say_who_is_back();
            let ended = self.life.as_mut().and_then(Life::ended);
            if let Some(term) = self.watch.convicted() {
                self.replace(&format!("others convict it of what it proposed in term {term}"))?;
            } else if let Some(ended) = ended {
                self.wait_after(&ended)?;
            } else if self.life.is_none() && Instant::now() >= self.begins {
                self.begin()?;
            } else {
                self.take_turn()?;
            }
            thread::sleep(LOOK);
        }
        if let Some(life) = self.life {
            life.stop();
        }
        tracing::info!("guest {} stopped", self.me);
        Ok(())
    }

    /// One server at a time: in its turn, and only if enough others are seen to be at work. Whoever is
    /// silent is not: else an idle cluster might lose all that its guests have in memory, one after the
    /// other. Who is not seen yet may be seen later in the turn's first half.
    fn take_turn(&mut self) -> Result<()> {
        let Some(turns) = &mut self.turns else { return Ok(()) };
        let since = Instant::now().checked_sub(turns.since_all_are_back(wall()));
        let away = self.watch.away(since);
        // With this one away too there are no more than f.
        if turns.due(wall()) && away.count() < self.f {
            turns.taken(wall());
            return self.replace("it is its turn");
        }
        if turns.missed(wall()) {
            tracing::warn!(
                "guest {} was not replaced in its turn: {away} not seen at work",
                self.me
            );
        }
        Ok(())
    }

    fn replace(&mut self, why: &str) -> Result<()> {
        tracing::info!("guest {} is replaced by a clean one: {why}", self.me);
        (self.pause, self.lasted) = (PAUSE, true);
        self.life = None;
        self.begin()
    }

    fn wait_after(&mut self, ended: &Ended) -> Result<()> {
        if !self.lasted && ended.was_never_run() {
            let program = self.command[0].display();
            return Err(bad_input(format!("{program} cannot be run; see above")));
        }
        self.lasted = true;
        let pause = if ended.lived > SETTLED { PAUSE } else { self.pause };
        tracing::warn!("guest {} {ended}; it starts again in {} ms", self.me, pause.as_millis());
        (self.life, self.begins) = (None, Instant::now() + pause);
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        self.life = Some(Life::start(self.command)?);
        self.back = Some(Instant::now());
        Ok(())
    }

    fn say_who_is_back(&mut self) {
        if let Some(since) = self.back.filter(|since| self.watch.wrote(self.me) > Some(*since)) {
            tracing::info!(
                "guest {} is back at work after {} ms",
                self.me,
                since.elapsed().as_millis()
            );
            self.back = None;
        }
    }
}

/// The time of day. Hosts' clocks are the machine's; that they differ by less than half a turn is
/// all that is asked of them.
fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
