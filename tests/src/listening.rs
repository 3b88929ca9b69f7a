//! Looks from outside whether any process of a tree listens on anything (Linux, `/proc`).

use std::collections::BTreeSet;
use std::path::Path;

/// One listening socket and the process that holds it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listener {
    /// Process id of the holder.
    pub pid: u32,
    /// `tcp 0100007F:1F90`, `unix @name` and the like, as the kernel prints it.
    pub socket: String,
}

/// `root` and all its descendants that are alive now.
pub fn process_tree(root: u32) -> BTreeSet<u32> {
    let mut tree = BTreeSet::from([root]);
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent_of(pid)?)))
        .collect();
    loop {
        let before = tree.len();
        tree.extend(
            parents
                .iter()
                .filter(|(_, parent)| tree.contains(parent))
                .map(|(pid, _)| *pid)
                .collect::<Vec<_>>(),
        );
        if tree.len() == before {
            return tree;
        }
    }
}

/// Every listening TCP or Unix socket that a process of the tree under `root` holds, and every UDP socket open to all.
pub fn listeners(root: u32) -> BTreeSet<Listener> {
    process_tree(root).into_iter().flat_map(listeners_of).collect()
}

/// Processes of the tree under `root` into which this process may not look: workers are not dumpable, so only root sees
/// their sockets. For these, [`listeners`] finds nothing whatever they do.
pub fn hidden(root: u32) -> BTreeSet<u32> {
    process_tree(root)
        .into_iter()
        .filter(|pid| {
            std::fs::read_dir(format!("/proc/{pid}/fd"))
                .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        })
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    // The command name, in parentheses, may hold anything: fields are counted after the last `)`.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn listeners_of(pid: u32) -> Vec<Listener> {
    let held: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let net = |name: &str| {
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("net").join(name)).unwrap_or_default()
    };
    let mut found = Vec::new();
    for (table, wanted_state) in [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")] {
        for line in net(table).lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let [_, local, remote, state, ..] = fields[..]
                && state == wanted_state
                && fields.get(9).is_some_and(|inode| held.contains(*inode))
                && (state == "0A" || remote.ends_with(":0000"))
            {
                found.push(Listener {
                    pid,
                    socket: format!("{table} {local}"),
                });
            }
        }
    }
    const ACCEPTS_CONNECTIONS: u32 = 0x0001_0000; // __SO_ACCEPTCON
    for line in net("unix").lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, _, flags, _, _, inode, ..] = fields[..]
            && u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & ACCEPTS_CONNECTIONS != 0)
            && held.contains(inode)
        {
            found.push(Listener {
                pid,
                socket: format!("unix {}", fields.get(7).unwrap_or(&"(unnamed)")),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_of_this_process_is_seen_and_a_connection_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let port = format!(":{:04X}", address.port());
        let _client = std::net::TcpStream::connect(address).expect("a connection");
        let seen = listeners(std::process::id());
        assert_eq!(
            seen.iter()
                .filter(|one| one.socket.starts_with("tcp ") && one.socket.ends_with(&port))
                .count(),
            1
        );
        drop(listener);
        let seen = listeners(std::process::id());
        assert!(!seen.iter().any(|one| one.socket.ends_with(&port)), "{seen:?}");
    }

    #[test]
    fn a_child_belongs_to_the_tree() {
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .expect("sleep starts");
        assert!(process_tree(std::process::id()).contains(&child.id()));
        child.kill().expect("it can be ended");
        child.wait().expect("it ends");
    }
}
