//! A host's read file, as somebody sees it who is not its guest: to be read, and nothing else.

use std::fs::File;
use std::io;
use std::sync::Arc;

use shared_registers::guest_side::GuestRegisters;
use shared_registers::layout::Geometry;
use shared_registers::words::{MappedReadOnly, VecWords};

/// The streams in the file.
pub(crate) type Streams = GuestRegisters<Arc<MappedReadOnly>, VecWords>;

/// Maps a read file. Its streams are read from what is left of them on; the header comes along.
pub(crate) fn map(geometry: Geometry, file: &File) -> io::Result<(Streams, Arc<MappedReadOnly>)> {
    let other = |error| io::Error::other(format!("{error}"));
    let read = Arc::new(MappedReadOnly::map(file)?);
    geometry.check_read(&read).map_err(other)?;
    // Reading takes no write file: this one is nobody's.
    let write = VecWords::new((geometry.write_file_bytes() / 8) as usize);
    let streams = GuestRegisters::attach(geometry, read.clone(), write).map_err(other)?;
    Ok((streams, read))
}
