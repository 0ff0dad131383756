//! Lines on stdout. A reader that goes away ends the command quietly instead of with a panic.

use std::io::{self, ErrorKind, StdoutLock, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::exit::OutputClosed;

/// Stdout, written in lines and flushed when its user says so.
pub(crate) struct Output(io::BufWriter<StdoutLock<'static>>);

impl Output {
    /// Takes stdout for this user alone.
    pub(crate) fn new() -> Output {
        Output(io::BufWriter::new(io::stdout().lock()))
    }

    /// Writes one line, which reaches the reader at the next [`flush`](Self::flush).
    pub(crate) fn line(&mut self, text: &str) -> Result<()> {
        closed(self.0.write_all(text.as_bytes()).and_then(|()| self.0.write_all(b"\n")))
    }

    /// Hands over what was written.
    pub(crate) fn flush(&mut self) -> Result<()> {
        closed(self.0.flush())
    }
}

/// Prints some text and a line break at once.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut output = Output::new();
    output.line(text)?;
    output.flush()
}

/// Comes when nobody reads stdout any more, so that a command that waits need not wait until its
/// next line to learn of it.
pub(crate) async fn reader_gone() {
    let (gone, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let stdout = io::stdout();
        // Asked for nothing, poll tells of errors alone: a pipe whose reader has gone is one.
        let mut stdout = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        while poll(&mut stdout, PollTimeout::NONE) == Err(Errno::EINTR) {}
        let closed = |flags: PollFlags| flags.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
        if stdout[0].revents().is_some_and(closed) {
            let _ = gone.send(());
        } else {
            // Not a pipe that could tell: whoever waits for this waits for ever.
            std::mem::forget(gone);
        }
    });
    if told.await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn closed(done: io::Result<()>) -> Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(OutputClosed))
        }
        done => done.context("cannot write to stdout"),
    }
}
