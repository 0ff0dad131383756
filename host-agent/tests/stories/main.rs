//! Stories about hosts: whole clusters of them in one thread, and one of real processes.

mod admission;
mod disks;
mod hostile;
mod laps;
mod power;
mod processes;
mod reclaiming;
mod recovery;
mod spreading;
mod world;
