//! The `sealdrive` command: hardens the process, then hands its arguments to `sealdrive::cli`.
//!
//! Invariant: hardening comes before anything that may hold a secret. Called by the shell, mount(8) and umount(8).

use std::process::ExitCode;

/// Most of what a mount allocates are buffers of up to a megabyte that live for milliseconds. glibc maps and unmaps
/// each one, or keeps several hundred megabytes of them; the page faults of that took a seventh of a large write.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    sealdrive::hygiene::harden();
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == "mount")
    {
        sealdrive::hygiene::bound_memory();
    }
    sealdrive::cli::main(std::env::args_os())
}
