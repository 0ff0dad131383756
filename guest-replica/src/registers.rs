//! This guest's two register files and its host agent's doorbell.
//!
//! The host agent may come later than its guest, go away and come back: what is mapped stays
//! valid as long as it goes on with the same files. If it has lost them, or records in them, and
//! recovers (R6), its guest [starts over](Registers::is_over): once to read what there is, and once
//! more, to take part, when the streams are whole. The read file is opened and mapped for reading
//! alone.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::epoll::EpollFlags;
use shared_registers::cluster::Paths;
use shared_registers::guest_side::{DropNotice, GuestRegisters};
use shared_registers::ids::{Micros, Seq, ServerId};
use shared_registers::layout::{Geometry, LayoutError};
use shared_registers::words::{MappedReadOnly, MappedReadWrite};

use crate::bell::Bell;
use crate::counters::Counters;
use crate::error::GuestError;
use crate::frames::Frames;
use crate::limits::BELL_RETRY;
use crate::net::{BELL, Poll};

/// The files as this guest maps them.
pub(crate) type Files = GuestRegisters<Arc<MappedReadOnly>, MappedReadWrite>;

/// Where the files lie.
pub(crate) struct Places {
    pub(crate) read: PathBuf,
    pub(crate) write: PathBuf,
    pub(crate) bell: PathBuf,
}

impl Places {
    pub(crate) fn new(paths: &Paths, server: ServerId) -> Places {
        Places {
            read: paths.read_file(server),
            write: paths.write_file(server),
            bell: paths.bell(server),
        }
    }
}

/// Which file a path named when it was mapped.
type Inode = (u64, u64);
/// The host's incarnation, and whether it recovered.
type Life = (u64, bool);

/// The register files, the doorbell, and the frames that wait.
pub(crate) struct Registers {
    pub(crate) files: Files,
    /// The read file once more, to check its header.
    header: Arc<MappedReadOnly>,
    places: Places,
    inodes: [Inode; 2],
    /// R6: as what the host wrote when this guest began to read.
    life: Life,
    frames: Frames,
    bell: Option<Bell>,
    bell_lost: bool,
    /// The files are not those of the host any more.
    over: bool,
    retry_at: Micros,
    /// Drops so far, as far as the host has told.
    drops: u64,
    said_full: bool,
}

impl Registers {
    /// Maps the files, or returns `None` if the host agent has not made them yet.
    pub(crate) fn map(geometry: Geometry, places: Places) -> Result<Option<Registers>, GuestError> {
        let read = OpenOptions::new().read(true).open(&places.read);
        let write = OpenOptions::new().read(true).write(true).open(&places.write);
        let (Some(read), Some(write)) = (there(read, &places.read)?, there(write, &places.write)?)
        else {
            return Ok(None);
        };
        let layout = |path: &Path| {
            let path = path.to_owned();
            move |source| GuestError::Layout { path, source }
        };
        let map = |path: &Path| {
            let path = path.to_owned();
            move |source| GuestError::Map { path, source }
        };
        let inodes = [
            read.metadata().map(|m| (m.dev(), m.ino())).map_err(map(&places.read))?,
            write.metadata().map(|m| (m.dev(), m.ino())).map_err(map(&places.write))?,
        ];
        let header = Arc::new(MappedReadOnly::map(&read).map_err(map(&places.read))?);
        let write = MappedReadWrite::map(&write).map_err(map(&places.write))?;
        match geometry.check_read(&header) {
            // The host agent is about to write it, or to recover it (R6).
            Err(LayoutError::Magic | LayoutError::Size { .. }) => return Ok(None),
            checked => checked.map_err(layout(&places.read))?,
        }
        geometry.check_write(&write).map_err(layout(&places.write))?;
        let files = GuestRegisters::attach(geometry, header.clone(), write)
            .map_err(layout(&places.read))?;
        Ok(Some(Registers {
            life: (files.incarnation(), files.recovering().is_some()),
            files,
            header,
            places,
            inodes,
            frames: Frames::default(),
            bell: None,
            bell_lost: false,
            over: false,
            retry_at: Micros(0),
            drops: 0,
            said_full: false,
        }))
    }

    /// Whether the doorbell is connected.
    pub(crate) fn has_bell(&self) -> bool {
        self.bell.is_some()
    }

    /// Connects to the doorbell if it is not connected and it is time to.
    pub(crate) fn tend_bell(
        &mut self,
        now: Micros,
        poll: &Poll,
        counters: &mut Counters,
    ) -> Result<(), GuestError> {
        if self.bell.is_some() || now < self.retry_at {
            return Ok(());
        }
        self.retry_at = now.plus(BELL_RETRY);
        let Ok(bell) = Bell::connect(&self.places.bell) else { return Ok(()) };
        if self.bell_lost && self.reads_only() {
            // It has begun to recover once more.
            self.over = true;
        }
        self.check_files();
        poll.watch(&bell.stream, BELL, bell.flags())
            .map_err(GuestError::system("watch the host agent's doorbell"))?;
        self.bell = Some(bell);
        tracing::info!("connected to the host agent");
        // It may have slept while frames came that it was not rung for.
        self.ring(now, counters);
        Ok(())
    }

    /// R6: whether nothing that was read holds any more: the host has begun to recover, or is done
    /// with it, or has other files.
    pub(crate) fn is_over(&self) -> bool {
        self.over || self.life != (self.files.incarnation(), self.files.recovering().is_some())
    }

    /// What is read of a stream is no record. That is an error, unless the host has cut it off (R6):
    /// then there is no next turn.
    pub(crate) fn damaged(&self, writer: ServerId) -> Result<(), GuestError> {
        if self.is_over() {
            return Ok(());
        }
        Err(GuestError::Damaged { path: self.places.read.clone(), writer })
    }

    /// R6: whether the host recovers: all can be read, and nothing written.
    pub(crate) fn reads_only(&self) -> bool {
        self.life.1
    }

    /// When [`Self::tend_bell`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Micros> {
        self.bell.is_none().then_some(self.retry_at)
    }

    /// Whether the paths still name the mapped files, and the header is still right.
    fn check_files(&mut self) {
        for (path, mapped) in [&self.places.read, &self.places.write].into_iter().zip(self.inodes) {
            let now = fs::metadata(path).map(|m| (m.dev(), m.ino()));
            self.over |= now.ok() != Some(mapped);
        }
        self.over |= self.files.geometry().check_read(&self.header).is_err();
    }

    /// Takes in what epoll says of the doorbell.
    pub(crate) fn on_bell(&mut self, now: Micros, flags: EpollFlags, counters: &mut Counters) {
        let Some(bell) = &mut self.bell else { return };
        if bell.heard(flags).is_err() {
            self.lose_bell(now, counters);
        }
    }

    /// Makes room for rings: a bell that is full is not heard.
    pub(crate) fn drain_bell(&mut self, now: Micros, counters: &mut Counters) {
        if self.bell.as_mut().is_some_and(|bell| bell.drain().is_err()) {
            self.lose_bell(now, counters);
        }
    }

    fn lose_bell(&mut self, now: Micros, counters: &mut Counters) {
        tracing::warn!("the host agent has gone away; waiting for it to come back");
        counters.bells_lost += 1;
        self.bell_lost = true;
        self.bell = None;
        self.retry_at = now.plus(BELL_RETRY);
    }

    fn ring(&mut self, now: Micros, counters: &mut Counters) {
        let Some(bell) = &mut self.bell else { return };
        counters.bells_rung += 1;
        match bell.stream.write(&[1]) {
            Ok(_) => {}
            // A full pipe of rings says "look" already.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.lose_bell(now, counters),
        }
    }

    /// Writes a frame for position `seq` of the own stream.
    pub(crate) fn write(&mut self, seq: Seq, body: Vec<u8>, counters: &mut Counters) {
        self.frames.write(seq, body, &mut self.files, counters);
    }

    /// Writes frames that waited, and rings if the host must be rung to see what was written.
    pub(crate) fn publish(&mut self, now: Micros, counters: &mut Counters) {
        self.frames.pump(&mut self.files, counters);
        if self.bell.is_some() && self.files.must_ring() {
            self.ring(now, counters);
        }
    }

    /// What the host, or this guest for want of room, dropped. The frames that wait are forgotten:
    /// the core writes them anew.
    pub(crate) fn drop_notice(&mut self) -> Option<DropNotice> {
        if let Some(notice) = self.files.drop_notice() {
            self.drops = notice.drops;
            self.frames.clear();
            return Some(notice);
        }
        let seq = self.frames.take_lost()?;
        Some(DropNotice { drops: self.drops, seq, reason: None, orders: Vec::new() })
    }

    /// Whether frames wait for room in the write file.
    pub(crate) fn frames_wait(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Forgets the frames that wait: their replica is gone.
    pub(crate) fn forget_frames(&mut self) {
        self.frames.clear();
    }

    /// Says so when the own stream's ring has become full (R7).
    pub(crate) fn check_full(&mut self) {
        let full = self.files.stream_full();
        if full && !self.said_full {
            tracing::warn!(
                "the ring of this server's stream is full: its host takes nothing more until a \
                 checkpoint is stable, for which f + 1 guests have to be at work"
            );
        }
        self.said_full = full;
    }
}

/// The file, unless it is not there or not yet as long as a header.
fn there(file: std::io::Result<File>, path: &Path) -> Result<Option<File>, GuestError> {
    let failed = |source| GuestError::Map { path: path.to_owned(), source };
    match file {
        Ok(file) => {
            let empty = file.metadata().map_err(failed)?.len() == 0;
            Ok(Some(file).filter(|_| !empty))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed(source)),
    }
}
