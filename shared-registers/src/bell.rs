//! The doorbell's socket: a unix stream on which one byte means "look". The host agent listens, its
//! guest connects; what the byte is means nothing, and either side may find the other gone.
//!
//! A unix socket's address holds about a hundred bytes of path, and a cluster's folder may lie
//! deeper: so the socket is named through an open descriptor of its folder.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Listens at `path`, without blocking, for this user and the socket's group: who may enter its
/// folder decides, and that is this user alone until somebody opens it (to a virtual machine's
/// group). A socket that an earlier run left there is replaced: the caller makes sure that no other
/// process listens on it.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = through_folder(path, |short| UnixListener::bind(short))?;
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects to the socket at `path`. The stream does not block.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = through_folder(path, |short| UnixStream::connect(short))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Calls `open` with a short path that names the same file.
fn through_folder<T>(path: &Path, open: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a path of a socket"));
    };
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let folder = File::open(here)?;
    open(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_bell_rings_in_a_folder_far_too_deep_for_a_socket_address() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let path = deep.join("bell-0");
        assert!(connect(&path).is_err());
        drop(listen(&path).unwrap());
        // What the first listener left is replaced.
        let listener = listen(&path).unwrap();
        let mut guest = connect(&path).unwrap();
        let (mut host, _) = listener.accept().unwrap();
        host.write_all(&[1]).unwrap();
        assert_eq!(guest.read(&mut [0; 8]).unwrap(), 1);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
    }
}
