//! The loop.
//!
//! A turn takes what epoll says, hands messages and records to the core, lets it act, and carries
//! out what it wants: frames for the host first, and the doorbell, since other servers wait for
//! them; then answers, forwards and deliveries. Before it sleeps, the guest says so in its bell
//! word and looks once more, so that no ring is missed.
//!
//! A guest is not always at work: see [`Core`].

mod answers;
mod reading;
mod report;
mod storing;

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use protocol::catch_up;
use protocol::messages::ToClient;
use protocol::replica::{Config, Input, Output, Replica};
use protocol::trace::Moment;
use shared_registers::guest_side::HostHint;
use shared_registers::ids::Micros;
use shared_registers::words::News;

use crate::Factory;
use crate::catch_up::CatchUp;
use crate::connections::{Bounds, Connections};
use crate::counters::Counters;
use crate::error::GuestError;
use crate::limits::{ACCEPT_PAUSE, ACCEPTS_PER_TURN, HINTS_EVERY, WAIT_LOG_EVERY, WAIT_STEP};
use crate::net::{BELL, FIRST_CONNECTION, LISTENER, Poll, STOP, STORE, Token, token_peer};
use crate::peers::Peers;
use crate::registers::{Places, Registers};
use crate::setup::Setup;
use crate::store::Store;
use crate::subscriptions::Subscriptions;
use crate::trace::Trace;

/// The `now` of the core: since the process started.
struct Clock(Instant);

impl Clock {
    fn now(&self) -> Micros {
        Micros(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// Why a guest's life ends.
enum End {
    /// It was asked to stop.
    Asked,
    /// The host's streams are not what they were (R6).
    Over,
}

/// Runs a guest until `stop` can be read, from the registers (P6); if they are not what they were,
/// once more from the start.
pub(crate) fn run(
    setup: Setup,
    mut application: Factory,
    stop: impl AsFd,
) -> Result<(), GuestError> {
    let listener = setup.listen()?;
    while let End::Over = live(&setup, &mut application, &stop, &listener)? {
        tracing::warn!("the host's streams are not what they were: reading them from the start");
    }
    Ok(())
}

fn live(
    setup: &Setup,
    application: &mut Factory,
    stop: impl AsFd,
    listener: &TcpListener,
) -> Result<End, GuestError> {
    let store = setup.store()?;
    let mut poll = Poll::new().map_err(GuestError::system("make an epoll instance"))?;
    poll.watch(&stop, STOP, EpollFlags::EPOLLIN)
        .map_err(GuestError::system("watch for the end"))?;
    let (clock, mut counters) = (Clock(Instant::now()), Counters::default());
    let Some(registers) = wait_for_host(setup, &mut poll, &clock, &mut counters)? else {
        return Ok(End::Asked);
    };
    let listener = listener.try_clone().map_err(GuestError::system("share the listener"))?;
    poll.watch(&listener, LISTENER, EpollFlags::EPOLLIN)
        .map_err(GuestError::system("watch the payload address"))?;
    poll.watch(store.event(), STORE, EpollFlags::EPOLLIN)
        .map_err(GuestError::system("watch the store"))?;
    let guest = Guest {
        n: setup.cluster.n(),
        clock,
        core: reading(Replica::new(setup.config(), application())),
        config: setup.config(),
        spin: Micros(setup.cluster.timing.spin_us),
        now: Micros(0),
        application,
        cluster_toml: setup.paths.cluster_toml(),
        registers,
        connections: Connections::new(setup.identity(), Bounds::default()),
        subscriptions: Subscriptions::default(),
        peers: setup.peers(),
        store,
        counters,
        trace: Trace::default(),
        #[cfg(feature = "faulty-sequencer")]
        faulty: crate::faulty::Faulty::default(),
        listener,
        accept_after: None,
        hints_at: Micros(0),
        hints: Vec::new(),
        out: Vec::new(),
        status: None,
        poll,
    };
    tracing::info!("guest {} serves on the payload network", setup.me);
    guest.run()
}

/// Waits until the host agent is there. Returns `None` if the process is to end first.
fn wait_for_host(
    setup: &Setup,
    poll: &mut Poll,
    clock: &Clock,
    counters: &mut Counters,
) -> Result<Option<Registers>, GuestError> {
    let geometry = setup.cluster.geometry(setup.me);
    let mut registers: Option<Registers> = None;
    let mut said: Option<(&str, Micros)> = None;
    let mut ready = Vec::new();
    loop {
        let now = clock.now();
        if registers.is_none() {
            registers = Registers::map(geometry, Places::new(&setup.paths, setup.me))?;
        }
        let waiting_for = match &mut registers {
            None => "the host agent's register files",
            Some(r) => {
                r.tend_bell(now, poll, counters)?;
                r.check_full();
                if r.is_over() {
                    registers = None;
                    continue;
                }
                if r.has_bell() {
                    return Ok(registers);
                }
                "the host agent's doorbell"
            }
        };
        if said.is_none_or(|(what, at)| what != waiting_for || now.since(at) >= WAIT_LOG_EVERY) {
            tracing::info!("waiting for {waiting_for} in {}", setup.paths.dir().display());
            said = Some((waiting_for, now));
        }
        poll.wait(WAIT_STEP, &mut ready).map_err(GuestError::system("wait for events"))?;
        for (token, flags) in ready.drain(..) {
            match (token, &mut registers) {
                (STOP, _) => return Ok(None),
                (BELL, Some(r)) => r.on_bell(clock.now(), flags, counters),
                _ => {}
            }
        }
    }
}

/// How far this guest is. A replica claims a checkpoint when its snapshot is stored.
type Core = catch_up::Core<CatchUp>;

fn reading(mut replica: Replica) -> Core {
    replica.claim_after_store();
    Core::reading(replica)
}

/// A guest, at work or on its way there.
struct Guest<'a> {
    n: usize,
    clock: Clock,
    poll: Poll,
    core: Core,
    config: Config,
    /// How long it looks for work before it sleeps.
    spin: Micros,
    /// When this turn began, or something was last executed in it: the rest is short against
    /// whatever is timed.
    now: Micros,
    application: &'a mut Factory,
    /// Where the configuration is from.
    cluster_toml: PathBuf,
    registers: Registers,
    connections: Connections,
    subscriptions: Subscriptions,
    peers: Peers,
    store: Store,
    counters: Counters,
    trace: Trace,
    #[cfg(feature = "faulty-sequencer")]
    faulty: crate::faulty::Faulty,
    listener: TcpListener,
    /// Nothing is accepted before this; the listener is not watched meanwhile.
    accept_after: Option<Micros>,
    hints_at: Micros,
    hints: Vec<HostHint>,
    /// What the core wants and is not carried out yet.
    out: Vec<Output>,
    /// This turn's answer to all who ask for status.
    status: Option<ToClient>,
}

impl Guest<'_> {
    fn run(mut self) -> Result<End, GuestError> {
        let mut ready = Vec::new();
        loop {
            if self.registers.is_over() {
                return Ok(End::Over);
            }
            let more = self.turn(&ready)?;
            ready.clear();
            let more = more || self.spin(&mut ready)?;
            let nap = if more { Micros(0) } else { self.doze() };
            if ready.is_empty() {
                self.wait(nap, &mut ready)?;
            }
            self.registers.files.wake();
            if ready.iter().any(|(token, _)| *token == STOP) {
                tracing::info!("asked to stop");
                return Ok(End::Asked);
            }
        }
    }

    fn wait(
        &mut self,
        at_most: Micros,
        ready: &mut Vec<(Token, EpollFlags)>,
    ) -> Result<(), GuestError> {
        self.poll.wait(at_most, ready).map_err(GuestError::system("wait for events"))
    }

    /// Looks for work for a while before it sleeps, if it is to: then nobody has to wake it.
    /// Returns whether there is any.
    fn spin(&mut self, ready: &mut Vec<(Token, EpollFlags)>) -> Result<bool, GuestError> {
        if self.spin == Micros(0) {
            return Ok(false);
        }
        let until = self.clock.now().plus(self.spin);
        let wanted = self.wanted();
        while ready.is_empty() && !self.registers.files.has_news(wanted) {
            if self.clock.now() >= until {
                return Ok(false);
            }
            self.wait(Micros(0), ready)?;
        }
        Ok(true)
    }

    /// For what the host is to ring.
    fn wanted(&self) -> News {
        if self.registers.frames_wait() { News::ALL } else { self.core.wanted() }
    }

    /// Says that this guest is about to sleep, looks once more, and returns for how long it may.
    fn doze(&mut self) -> Micros {
        let wanted = self.wanted();
        self.registers.files.doze(wanted);
        if self.registers.files.has_news(wanted) {
            return Micros(0);
        }
        let now = self.clock.now();
        let deadlines = [
            self.core.next_deadline(CatchUp::next_deadline),
            self.connections.next_deadline(),
            self.peers.next_deadline(),
            self.registers.next_deadline(),
            self.accept_after,
            Some(self.hints_at),
        ];
        let next = deadlines.into_iter().flatten().min();
        next.map_or(HINTS_EVERY, |at| at.since(now)).min(HINTS_EVERY)
    }

    /// One turn. Returns whether there is more to do at once.
    fn turn(&mut self, ready: &[(Token, EpollFlags)]) -> Result<bool, GuestError> {
        let now = self.clock.now();
        self.now = now;
        self.status = None;
        self.trace.begin_turn(now);
        let mut rung = false;
        for (token, flags) in ready {
            match *token {
                LISTENER => self.accept(now)?,
                BELL => {
                    self.registers.on_bell(now, *flags, &mut self.counters);
                    rung = true;
                }
                STORE => self.on_stored(),
                FIRST_CONNECTION.. => {
                    self.connections.on_event(*token, *flags, &mut self.counters);
                }
                other => {
                    if let Some(peer) = token_peer(other) {
                        self.peers.on_event(peer, now);
                    }
                }
            }
        }
        self.tend(now)?;
        self.serve();
        // P6: whatever an earlier guest wrote is in the own stream, and will have been read.
        let drained = self.core.at_work().is_none() && self.registers.files.drained();
        let unread = match self.core {
            Core::CatchingUp(_) => self.catch_up()?,
            Core::Replica { .. } => self.read_records()?,
        };
        // R6: a host that recovers takes none, and its guest reads only.
        if !unread && (drained || self.registers.reads_only()) {
            self.begin_work();
        }
        self.act(rung);
        self.store(unread);
        self.carry_out();
        let more = self.deliver();
        self.trace.end_turn();
        self.connections.flush(&self.poll);
        if !self.registers.has_bell() {
            // What it is sent it cannot place: its clients are not to wait for `T_resend`.
            self.connections.hang_up();
        }
        Ok(unread || more || self.connections.has_ready())
    }

    /// What is due by the clock.
    fn tend(&mut self, now: Micros) -> Result<(), GuestError> {
        self.store.check()?;
        self.connections.expire(now, &mut self.counters);
        self.registers.tend_bell(now, &self.poll, &mut self.counters)?;
        if self.accept_after.is_some_and(|at| now >= at) {
            self.accept_after = None;
            self.watch_listener(EpollFlags::EPOLLIN)?;
        }
        Ok(())
    }

    fn watch_listener(&self, flags: EpollFlags) -> Result<(), GuestError> {
        self.poll
            .change(&self.listener, LISTENER, flags)
            .map_err(GuestError::system("watch the payload address"))
    }

    fn accept(&mut self, now: Micros) -> Result<(), GuestError> {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let opened = self.connections.open(stream, now, &self.poll, &mut self.counters);
                    if let Err(error) = opened {
                        tracing::debug!(%error, "lost a connection as it came");
                        self.counters.refused_connections += 1;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if out_of_descriptors(&error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    self.counters.refused_connections += 1;
                    self.accept_after = Some(now.plus(ACCEPT_PAUSE));
                    return self.watch_listener(EpollFlags::empty());
                }
                // The other end went away before it was accepted.
                Err(_) => self.counters.refused_connections += 1,
            }
        }
        Ok(())
    }

    /// Tells the core what was dropped and what the hints are, and lets it act.
    fn act(&mut self, rung: bool) {
        let now = self.now;
        let due = now >= self.hints_at;
        let look = rung || due;
        if due {
            self.registers.drain_bell(now, &mut self.counters);
        }
        if look {
            self.hints_at = now.plus(HINTS_EVERY);
        }
        if self.registers.reads_only() {
            return; // P6: its own stream has to be whole before it goes on with it.
        }
        if look {
            self.registers.check_full();
        }
        let Some(replica) = self.core.at_work() else { return };
        if let Some(notice) = self.registers.drop_notice() {
            // Frames that follow a dropped one are void (R1): the core writes them anew.
            self.out.retain(|output| !matches!(output, Output::Write { .. }));
            replica.step(now, Input::Dropped(notice), &mut self.out);
        }
        if look {
            self.hints.clear();
            self.hints.extend(self.registers.files.hints());
            replica.step(now, Input::Hints(&self.hints), &mut self.out);
        }
        let geometry = self.registers.files.geometry();
        let free = self.registers.files.room(geometry.server);
        replica.on_room(free, &geometry.limits);
        replica.step(now, Input::Idle, &mut self.out);
    }

    /// Carries out what the core wants: frames and the bell before all else, since every other
    /// server waits for them.
    fn carry_out(&mut self) {
        let mut rest = Vec::new();
        for output in self.out.drain(..) {
            match output {
                Output::Write { seq, body } => {
                    #[cfg(feature = "faulty-sequencer")]
                    let body = self.faulty.spoil(self.n, body);
                    self.registers.write(seq, body, &mut self.counters);
                    self.trace.note(|| Moment::Written(seq));
                }
                other => rest.push(other),
            }
        }
        let now = self.now;
        self.registers.publish(now, &mut self.counters);
        for output in rest {
            match output {
                Output::Forward(to, order) => {
                    self.peers.forward(to, order, &mut self.counters);
                }
                Output::ToClient(client, answer) => self.answer(client, &answer),
                Output::Write { .. } => {}
            }
        }
        self.peers.tend(now, &self.poll, &mut self.counters);
    }
}

/// Whether the process or the system can open no more files for now.
fn out_of_descriptors(error: &std::io::Error) -> bool {
    let errors = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error.raw_os_error().is_some_and(|code| errors.contains(&Errno::from_raw(code)))
}
