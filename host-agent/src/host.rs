//! The host of a server, without I/O and without a clock: it admits its guest's frames, stamps
//! them, exposes records to its guest, spreads them to its peers, and reclaims what a stable
//! checkpoint covers.
//!
//! Whoever drives it (the agent's event loop, or a simulator) tells it what happened through
//! [`Host::step`], and asks through [`Host::next_frame`] what goes to each peer, one frame at a
//! time and only while there is room for it: there is no queue of records anywhere but the
//! registers themselves.

use shared_registers::canary::{Canary, broken};
use shared_registers::codec::Malformed;
use shared_registers::crypto::MacKey;
use shared_registers::host_side::{Counter, Frame, HostRegisters, StreamFull, Taken};
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::layout::{DropReason, read};
use shared_registers::limits::MAX_FRAMES_PER_TURN;
use shared_registers::record::Record;
use shared_registers::words::{News, Words, WordsMut};

use crate::admission::{Admission, Moment, Refusal};
use crate::checkpoints::Checkpoints;
use crate::limits::MAX_BYTES_PER_TURN;
use crate::peers::{Jump, Lengths, Owed, Own, PeerFrame, Peers, RECORD};
use crate::recovery::{Recovery, Step};

/// The two clocks of one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Microseconds since 1970, to stamp records. It may jump.
    pub wall: Micros,
    /// Microseconds since any fixed start, never going back, for silences and exchanges.
    pub mono: Micros,
}

/// What a host is told besides its registers.
pub struct HostConfig {
    /// Order keys of this host, by client.
    pub order_keys: Vec<MacKey>,
    /// How often [`Input::Tick`] comes: the period of the exchange of lengths.
    pub exchange: Micros,
}

/// Something that happened.
pub enum Input<'a> {
    /// The guest may have written frames.
    Guest,
    /// The guest is at its doorbell, or has left it (R8).
    AtDoorbell(bool),
    /// The link to a peer is up; an earlier one, if any, is over.
    PeerUp(ServerId),
    /// It is down.
    PeerDown(ServerId),
    /// A frame came from a peer, authenticated by its link.
    PeerFrame(ServerId, &'a [u8]),
    /// The exchange's period is over.
    Tick,
    /// An operator says that incarnations of this server below this one are over (R6).
    Floor(ServerId, u32),
}

/// What a step asks of its caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// The guest's frames were not all looked at, or those that waited for room find some now:
    /// step with [`Input::Guest`] again.
    pub more: bool,
    /// A stream's ring has become full, and waits for a checkpoint. Told once each time.
    pub full: Option<StreamFull>,
}

/// What is wrong with a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerFault {
    /// It sent what no host sends: close the link.
    #[error("sent a frame that no host sends")]
    Malformed(#[from] Malformed),
    /// This host has lost records of its own stream. To go on would fork its history (R3): stop.
    #[error("holds {theirs} records of this server's stream, and {ours} are here")]
    Rollback {
        /// What the peer has.
        theirs: Seq,
        /// What is here.
        ours: Seq,
    },
    /// Nobody listens to this incarnation of this host any more (R6): stop.
    #[error("incarnations of this server below {floor} are over")]
    Over {
        /// The least that is listened to; odd if the server was retired.
        floor: u32,
    },
}

/// A host.
pub struct Host<R: WordsMut, W: Words> {
    me: ServerId,
    n: usize,
    registers: HostRegisters<R, W>,
    admission: Admission,
    checkpoints: Checkpoints,
    peers: Peers,
    /// R6: it recovers.
    recovery: Option<Recovery>,
    /// The guest's frame, copied out.
    body: Vec<u8>,
    /// A record, encoded.
    bytes: Vec<u8>,
    /// Per stream: its ring was found full, and the caller was told (R7).
    full: Vec<bool>,
    /// The last stable checkpoint covers all that is reclaimed here, so that a peer may jump to it.
    /// Not so only while a host that started again has yet to find the one before its end.
    covers: bool,
    /// The guest's frames waited for a checkpoint, and it is stable.
    resumed: bool,
    /// What was published that a sleeping guest may act on.
    news: News,
}

impl<R: WordsMut, W: Words> Host<R, W> {
    /// A host that starts, or goes on, with what the registers hold.
    pub fn new(config: HostConfig, registers: HostRegisters<R, W>, now: Now) -> Self {
        let (me, n) = (registers.geometry().server, registers.geometry().n);
        let mut this = Host {
            me,
            n,
            admission: Admission::new(registers.geometry(), config.order_keys),
            checkpoints: Checkpoints::new(n),
            peers: Peers::new(me, n, config.exchange, now.mono),
            recovery: registers.recovering().then(|| Recovery::new(me, n)),
            registers,
            body: Vec::new(),
            bytes: Vec::new(),
            full: vec![false; n],
            covers: false,
            resumed: false,
            news: News::ALL,
        };
        this.registers.set_stream_full(false);
        // What is here was exposed and counted before, or could have been.
        this.registers.expose();
        this.checkpoints.look(&this.registers);
        this.reclaim();
        this.expose();
        this.publish_hints(now);
        this
    }

    /// Takes in what happened. Only [`Input::PeerFrame`] and [`Input::Floor`] can fail.
    pub fn step(&mut self, now: Now, input: Input<'_>) -> Result<Turn, PeerFault> {
        match input {
            Input::Guest => return Ok(self.guest(now)),
            Input::PeerUp(peer) => {
                self.peers.up(peer, now.mono);
                self.registers.count(Counter::LinkUps, 1);
                self.news |= News::ELSE;
            }
            Input::PeerDown(peer) => {
                self.peers.down(peer);
                self.news |= News::ELSE;
            }
            Input::PeerFrame(peer, bytes) => return self.peer_frame(now, peer, bytes),
            Input::AtDoorbell(here) => self.peers.desert(!here),
            Input::Tick => self.peers.announce(),
            Input::Floor(server, floor) => {
                self.raise(server, floor)?;
                self.recover();
            }
        }
        self.publish_hints(now);
        Ok(self.resumed())
    }

    /// The next frame for `peer` replaces what is in `out`; false if there is none now. The frame
    /// counts as sent: drop the link rather than the frame.
    pub fn next_frame(&mut self, peer: ServerId, out: &mut Vec<u8>) -> bool {
        self.commit();
        out.clear();
        let held = |writer| (self.registers.first(writer), self.registers.copied(writer));
        let stable = self.checkpoints.stable().filter(|_| self.covers);
        let unnamed = self.recovery.as_ref().is_some_and(Recovery::unnamed);
        if unnamed && !self.peers.owes_lengths(peer) {
            return false; // R6: nobody takes what comes from no incarnation.
        }
        match self.peers.owed(peer, held, stable.map(|stable| &stable.cut[..])) {
            None => return false,
            Some(Owed::Lengths) => {
                let (held, floors) = (self.copied_all(), self.registers.floors());
                let recovering = self.recovery.is_some();
                let own = Own { held: &held, floors: &floors, recovering, unnamed };
                // R6: as long as it takes nothing, all rings are as good as full.
                let oriented = self.recovery.as_ref().is_none_or(Recovery::oriented);
                let full: Vec<bool> = self.full.iter().map(|full| *full || !oriented).collect();
                self.peers.encode_lengths(peer, &own, &full, out);
            }
            Some(Owed::Record(writer, seq)) => {
                out.push(RECORD);
                assert!(self.registers.record(writer, seq, out), "owed, and not here");
                self.registers.count(Counter::RecordFramesSent, 1);
            }
            Some(Owed::Jump) => {
                let checkpoint = stable.expect("its cut was given").clone();
                let last = |(writer, cut)| self.registers.last_change(writer, Seq(cut));
                let cut = checkpoint.cut.iter().copied();
                let changes = ServerId::all(self.n).zip(cut).map(last);
                let changes = changes.map(|last| last.filter(|_| !broken(Canary::S6JumpChanges)));
                let changes = changes.collect();
                Jump { checkpoint, changes }.encode(out);
            }
        }
        true
    }

    /// Whether the guest sleeps and must be rung, because something was published for it.
    pub fn must_ring(&mut self) -> bool {
        self.commit();
        let news = std::mem::take(&mut self.news);
        self.registers.must_ring(news)
    }

    /// Whether the guest has written frames that this host could take.
    pub fn has_frames(&self) -> bool {
        !self.waits() && self.registers.has_frames()
    }

    /// R6, durability `disk`: one sync for all that waits, before anything of it is exposed or sent.
    fn commit(&mut self) {
        if self.registers.commit() {
            self.expose();
            self.recover();
        }
    }

    /// R7, R6: a frame that found no room finds none until a checkpoint is stable, and none is taken
    /// for a stream whose end is not known.
    fn waits(&self) -> bool {
        let recovers = self.recovery.is_some() && !broken(Canary::R6Early);
        self.full[self.me.index()] || recovers
    }

    /// R6: for which hosts this one waits, one bit for each, if it recovers.
    pub fn waits_for(&self) -> Option<u64> {
        self.recovery.is_some().then(|| self.registers.header(read::WAITS))
    }

    /// The registers, to look at.
    pub fn registers(&self) -> &HostRegisters<R, W> {
        &self.registers
    }

    /// The registers, for their doorbell and header words.
    pub fn registers_mut(&mut self) -> &mut HostRegisters<R, W> {
        &mut self.registers
    }

    /// What it keeps besides the registers: how long each is, and how long it may be.
    pub fn queues(&self) -> [(&'static str, usize, usize); 5] {
        let (geometry, [here, waiting, changes]) =
            (self.registers.geometry(), self.registers.longest());
        let (records, body) = (geometry.max_records(), geometry.limits.max_body_bytes());
        [
            ("records of one stream", here, records),
            ("records that are not exposed", waiting, here),
            ("CHANGEs of one stream", changes, here),
            ("bytes of a frame copied out", self.body.len(), body),
            ("bytes of a record", self.bytes.len(), geometry.max_record_bytes()),
        ]
    }

    fn guest(&mut self, now: Now) -> Turn {
        if self.waits() {
            return Turn::default();
        }
        let mut bytes = 0;
        for _ in 0..MAX_FRAMES_PER_TURN {
            if bytes > MAX_BYTES_PER_TURN {
                break;
            }
            let (seq, drops) = match self.registers.take() {
                Taken::Nothing => return Turn::default(),
                Taken::Garbage => {
                    let next = self.registers.appended(self.me).next();
                    self.registers.notify_drop(next, DropReason::Framing, &[]);
                    self.news |= News::ELSE;
                    continue;
                }
                Taken::Frame(frame) => {
                    self.body.clear();
                    self.body.extend_from_slice(frame.body);
                    (frame.seq, frame.drops)
                }
            };
            bytes += self.body.len();
            if let Err(full) = self.frame(now, seq, drops) {
                // R7: this guest waits, its frame stays where it is, and nobody else notices.
                self.registers.set_stream_full(true);
                return Turn { more: false, full: self.note_full(full) };
            }
            self.registers.consume();
            self.news |= News::of(self.me);
        }
        Turn { more: self.registers.has_frames(), full: None }
    }

    /// R1: admits the frame whose body was copied out, or drops it.
    fn frame(&mut self, now: Now, seq: Seq, drops: u64) -> Result<(), StreamFull> {
        let mut seen = match broken(Canary::R4Stamp) {
            false => self.registers.exposed_all(),
            true => self.copied_all(),
        };
        let own = self.registers.appended(self.me);
        seen[self.me.index()] = own.0;
        let moment = Moment {
            drops: self.registers.drops(),
            seen,
            time: now.wall,
            incarnation: self.registers.floor(self.me),
        };
        let frame = Frame { seq, drops, body: &self.body };
        let exposed = |writer| {
            let upto = if writer == self.me { own } else { self.registers.exposed(writer) };
            self.registers.last_change(writer, upto)
        };
        let changes = || ServerId::all(self.n).map(exposed).collect();
        match self.admission.admit(&frame, moment, changes) {
            Ok((mut record, counter)) => {
                let again = self.registers.fetch_again();
                record.body = again.as_deref().unwrap_or(record.body);
                self.bytes.clear();
                Record::encode(&record.stamp, record.body, &mut self.bytes);
                self.registers.append(&record, &self.bytes)?;
                self.registers.count(counter, 1);
                self.registers.count(Counter::AdmittedBytes, self.bytes.len() as u64);
                self.expose();
            }
            Err(Refusal::Stale) => self.registers.count(Counter::DroppedStale, 1),
            Err(Refusal::Unacknowledged) => {
                self.registers.count(Counter::DroppedUnacknowledged, 1);
            }
            Err(Refusal::Drop { reason, orders, bad_macs }) => {
                self.registers.count(Counter::OrderMacFailed, bad_macs);
                // What is lost begins at the place that is still free, whatever the frame said.
                let next = self.registers.appended(self.me).next();
                self.registers.notify_drop(next, reason, &orders);
                self.news |= News::ELSE;
            }
        }
        Ok(())
    }

    fn peer_frame(&mut self, now: Now, peer: ServerId, bytes: &[u8]) -> Result<Turn, PeerFault> {
        if !self.peers.is_up(peer) {
            return Ok(Turn::default());
        }
        let oriented = self.recovery.as_ref().is_none_or(Recovery::oriented);
        let listens = oriented && self.peers.listens(peer, self.registers.floor(peer));
        let done = match PeerFrame::decode(bytes, self.n) {
            Ok(PeerFrame::Lengths(lengths)) => return self.lengths(now, peer, &lengths),
            // R6: it may know of records that this host has promised to take from nobody.
            Ok(_) if !listens => {
                self.registers.count(Counter::EarlierIncarnation, 1);
                return Ok(Turn::default());
            }
            Ok(PeerFrame::Jump(jump)) => return self.jump(now, peer, &jump),
            Ok(PeerFrame::Record(bytes)) => self.record(now, peer, bytes),
            Err(error) => Err(error),
        };
        if done.is_err() {
            self.registers.count(Counter::LinkRefused, 1);
        }
        Ok(done?)
    }

    fn lengths(&mut self, now: Now, peer: ServerId, said: &Lengths) -> Result<Turn, PeerFault> {
        for (server, floor) in ServerId::all(self.n).zip(&said.floors) {
            self.raise(server, *floor)?;
        }
        let (theirs, ours) = (Seq(said.counts[self.me.index()]), self.registers.copied(self.me));
        match &mut self.recovery {
            Some(recovery) => {
                let before = recovery.oriented();
                recovery.answer(peer, said);
                if recovery.oriented() != before {
                    self.peers.announce();
                }
            }
            None if theirs > ours => return Err(PeerFault::Rollback { theirs, ours }),
            None => {}
        }
        if self.peers.meet(peer, said, self.registers.floor(peer)) {
            self.peers.heard(peer, now.mono);
            let before = self.peers.hint(peer, now.mono).0;
            self.peers.lengths(peer, said, self.copied_all(), now.mono);
            if self.peers.hint(peer, now.mono).0 != before {
                self.publish_hints(now);
                self.news |= News::ELSE;
            }
        }
        self.recover();
        Ok(self.resumed())
    }

    /// R6: adopts a floor that somebody has heard of, and tells everyone.
    fn raise(&mut self, server: ServerId, floor: u32) -> Result<(), PeerFault> {
        if floor <= self.registers.floor(server) {
            return Ok(());
        }
        if server == self.me && self.recovery.is_none() {
            return Err(PeerFault::Over { floor });
        }
        self.registers.set_floor(server, floor);
        self.peers.announce();
        Ok(())
    }

    /// R6: looks how far the recovery has come, if there is one.
    fn recover(&mut self) {
        let (registers, me) = (&self.registers, self.me);
        let Some(recovery) = &mut self.recovery else { return };
        let (copied, exposed) = (registers.copied(me), registers.exposed(me));
        match recovery.step(&registers.floors(), copied, exposed) {
            Step::Wait(hosts) => self.registers.set_waits(hosts),
            Step::Ask(incarnation) => {
                self.registers.set_floor(me, incarnation);
                self.peers.start_over();
                self.recover();
            }
            Step::Done(incarnation) => {
                self.registers.recovered(incarnation);
                self.recovery = None;
                self.peers.announce();
                self.resumed = true;
                self.news |= News::ELSE;
            }
        }
    }

    /// A record from a peer, whoever wrote it.
    fn record(&mut self, now: Now, peer: ServerId, bytes: &[u8]) -> Result<Turn, Malformed> {
        let record = Record::decode(bytes, self.n)?;
        self.peers.heard(peer, now.mono);
        self.registers.count(Counter::RecordFramesReceived, 1);
        let (writer, seq) = (record.stamp.writer, record.stamp.seq);
        let next = self.registers.appended(writer).next();
        if seq < next {
            self.registers.count(Counter::RecordsDuplicate, 1);
        } else if seq > next || (writer == self.me && self.recovery.is_none()) {
            // The own stream grows by admission alone, once it is whole (R6).
            self.registers.count(Counter::RecordsOutOfOrder, 1);
        } else if let Err(full) = self.registers.append(&record, bytes) {
            // R7: it is gone; its sender is told, and sends it again when there is room.
            let full = self.note_full(full);
            if full.is_some() {
                self.peers.refuse(writer);
            }
            return Ok(Turn { more: false, full });
        } else {
            self.expose();
            self.recover();
        }
        Ok(self.resumed())
    }

    /// Section 6: a peer has reclaimed what this host lacks, and says where it goes on.
    fn jump(&mut self, now: Now, peer: ServerId, jump: &Jump) -> Result<Turn, PeerFault> {
        self.peers.heard(peer, now.mono);
        let cut = &jump.checkpoint.cut;
        let (theirs, ours) = (Seq(cut[self.me.index()]), self.registers.copied(self.me));
        if theirs > ours && self.recovery.is_none() {
            return Err(PeerFault::Rollback { theirs, ours });
        }
        let jumped = self.registers.jump(cut, &jump.changes);
        if jumped {
            self.registers.count(Counter::Jumps, 1);
            self.news |= News::ELSE;
            // Nobody needs to send what lies before the cut.
            self.peers.announce();
        }
        if self.checkpoints.adopt(&jump.checkpoint) || jumped {
            // The cut is causally closed: what is here of it can be exposed now.
            self.expose();
            self.reclaim();
        }
        self.recover();
        Ok(self.resumed())
    }

    fn expose(&mut self) {
        let exposed = self.registers.expose();
        self.news |= exposed;
        let stable = self.checkpoints.look(&self.registers);
        if stable > 0 {
            self.registers.count(Counter::Checkpoints, stable);
            self.reclaim();
        }
        let (copied, exposed) = (self.registers.copied(self.me), self.registers.exposed(self.me));
        let whole = copied == exposed || self.recovery.is_some();
        assert!(whole, "own records see nothing that is not exposed");
    }

    /// Section 6: what the last stable checkpoint covers may be reclaimed, so nobody waits for room
    /// any more (R7).
    fn reclaim(&mut self) {
        let Some(stable) = self.checkpoints.stable() else { return };
        self.registers.set_stable(&stable.cut);
        let mut cut = ServerId::all(self.n).zip(&stable.cut);
        self.covers = cut.all(|(writer, cut)| self.registers.first(writer).0 <= *cut);
        if self.full.contains(&true) {
            self.resumed |= self.full[self.me.index()];
            self.full.fill(false);
            self.registers.set_stream_full(false);
            self.peers.announce();
        }
    }

    /// What a frame from a peer asks of the caller: to look at the guest's frames that wait, if
    /// they waited for a checkpoint until now.
    fn resumed(&mut self) -> Turn {
        Turn { more: std::mem::take(&mut self.resumed), full: None }
    }

    /// Notes that a ring is full; what it returns is to be told, once.
    fn note_full(&mut self, full: StreamFull) -> Option<StreamFull> {
        let told = std::mem::replace(&mut self.full[full.0.index()], true);
        (!told).then_some(full)
    }

    fn copied_all(&self) -> Box<[u64]> {
        ServerId::all(self.n).map(|writer| self.registers.copied(writer).0).collect()
    }

    /// R8.
    fn publish_hints(&self, now: Now) {
        for peer in ServerId::all(self.n).filter(|peer| *peer != self.me) {
            let (state, silence) = self.peers.hint(peer, now.mono);
            self.registers.hint(peer, state, silence);
        }
    }
}
