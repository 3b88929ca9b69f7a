//! How much memory a device has left, and how much of it this process holds.

use candle_core::Device;

/// Bytes that can still be had on a device; `None` where the system does not tell. The processor and Apple's GPUs have the
/// machine's memory, within the bounds of the control groups that this process belongs to.
pub fn free_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cpu | Device::Metal(_) => host_free_bytes(),
        #[cfg(feature = "cuda")]
        Device::Cuda(card) => {
            let (free, _) = card.cuda_stream().context().mem_get_info().ok()?;
            Some(free as u64)
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => None,
    }
}

/// Bytes of the machine's memory that this process holds by itself, files that it mapped left out. What it has freed but
/// its allocator has kept is among them, so that this and [`free_bytes`] together are what it can have.
pub fn own_bytes() -> Option<u64> {
    field_kib(&std::fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

fn host_free_bytes() -> Option<u64> {
    let machine = field_kib(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    Some(group_free_bytes().map_or(machine, |group| group.min(machine)))
}

/// What the control groups (version 2) around this process leave it; `None` without a bound.
fn group_free_bytes() -> Option<u64> {
    let of = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = of.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = std::path::Path::new("/sys/fs/cgroup");
    let whole = root.join(path);
    let groups = whole.ancestors().take_while(|group| group.starts_with(root));
    let left = groups.filter_map(|group| {
        let read = |file: &str| std::fs::read_to_string(group.join(file)).ok();
        left_in_group(&read("memory.max")?, &read("memory.current")?, &read("memory.stat")?)
    });
    left.min()
}

/// The bound less what is used; files that nobody looked at lately can be dropped and are free.
fn left_in_group(max: &str, current: &str, stat: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let droppable = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "))
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(droppable)))
}

/// A line such as `MemAvailable:  123 kB`, in bytes.
fn field_kib(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_tables_are_read_in_bytes() {
        let text = "MemTotal:       32 kB\nMemAvailable:       16 kB\nSwapFree: 7 kB\n";
        assert_eq!(field_kib(text, "MemAvailable:"), Some(16 << 10));
        assert_eq!(field_kib(text, "MemNone:"), None);
        assert_eq!(field_kib("MemAvailable: many kB", "MemAvailable:"), None);
        assert_eq!(
            field_kib(&format!("MemAvailable: {} kB", u64::MAX), "MemAvailable:"),
            None
        );
    }

    #[test]
    fn a_group_leaves_its_bound_less_what_cannot_be_dropped() {
        assert_eq!(
            left_in_group("1000\n", "700\n", "anon 400\ninactive_file 200\n"),
            Some(500)
        );
        assert_eq!(left_in_group("1000", "1500", ""), Some(0));
        assert_eq!(left_in_group("max\n", "700", ""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_held_is_counted_as_own() {
        let before = own_bytes().expect("Linux tells");
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        let after = own_bytes().expect("Linux tells");
        assert!(after >= before + (48 << 20), "{before} {after} {}", held.len());
        assert!(free_bytes(&Device::Cpu).is_some_and(|free| free > 0));
    }
}
