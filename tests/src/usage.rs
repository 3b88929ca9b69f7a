//! What a running process takes of the machine, from `/proc` (proc(5)).

use std::time::Duration;

/// Bytes of memory that the process holds now (`VmRSS`); `None` when it is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmRSS:")
}

/// Most bytes of memory that the process has held at any time (`VmHWM`); `None` when it is gone.
pub fn most_bytes(pid: u32) -> Option<u64> {
    status_bytes(pid, "VmHWM:")
}

/// Processor time of all threads of the process since its start, in user and kernel; `None` when it is gone.
pub fn processor_time(pid: u32) -> Option<Duration> {
    /// Ticks a second that `/proc` counts in on Linux, whatever the kernel's own clock (`USER_HZ`).
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, in parentheses, may hold anything: fields are counted after the last `)`.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some(Duration::from_secs_f64((ticks()? + ticks()?) / TICKS))
}

fn status_bytes(pid: u32, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
