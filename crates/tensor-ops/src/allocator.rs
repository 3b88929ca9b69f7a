//! What becomes of the memory of freed tensors in a process that runs networks.
//!
//! Networks free and take the same few sizes again and again. glibc gives every large block back to the system at once,
//! and the system clears each page that it hands out anew: a third of the time of small networks. Elsewhere than with
//! glibc both functions do nothing.

/// Keeps freed memory for the tensors to come, in all threads; call it before the first network is read.
///
/// At the end of a job [`give_back`] returns what is not used.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 1 << 30;
        // SAFETY: these only set numbers of the allocator, under its own lock.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        }
    }
}

/// Returns memory that no tensor uses to the system.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the allocator takes its own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}
