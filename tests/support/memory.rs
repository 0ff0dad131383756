//! What a process has in memory, as the system accounts for it.

use std::fmt;
use std::fs;
use std::path::Path;

/// What is resident of a process, in KiB.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    /// All of it (VmRSS).
    pub(crate) resident: u64,
    /// What is its own alone (RssAnon).
    pub(crate) private: u64,
    /// What it has mapped of files that a disk holds, its program too (RssFile).
    pub(crate) file: u64,
    /// What it has mapped of files that memory alone holds (RssShmem).
    pub(crate) shared: u64,
    /// Of these two: register files.
    pub(crate) registers: u64,
}

impl Memory {
    /// That of a process whose register files are in `registers`.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub(crate) fn of(pid: i32, registers: &Path) -> Memory {
        let read = |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap();
        let (status, maps) = (read("status"), read("smaps"));
        let word = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        Memory {
            resident: word("VmRSS:"),
            private: word("RssAnon:"),
            file: word("RssFile:"),
            shared: word("RssShmem:"),
            registers: mapped(&maps, registers),
        }
    }
}

/// KiB that are resident of the files in `folder`, by what `smaps` says.
fn mapped(maps: &str, folder: &Path) -> u64 {
    let (mut inside, mut sum) = (false, 0);
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // ADDRESSES PERMISSIONS OFFSET DEVICE INODE PATH; without a path if it is no file.
            [range, _, _, _, _, ref path @ ..] if range.contains('-') => {
                inside = path.first().is_some_and(|path| Path::new(path).starts_with(folder));
            }
            ["Rss:", kib, "kB"] if inside => sum += kib.parse::<u64>().unwrap(),
            _ => {}
        }
    }
    sum
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Memory { resident, private, file, shared, registers } = self;
        write!(
            f,
            "{resident} KiB resident: {private} private, {file} of files, {shared} shared; \
             {registers} of these are registers"
        )
    }
}
