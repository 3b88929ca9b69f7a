//! Server-sent events: the `data:` lines of a byte stream, however it is cut.

/// Collects bytes and gives out whole events.
#[derive(Debug, Default)]
pub(super) struct Events {
    pending: Vec<u8>,
    seen: usize,
}

impl Events {
    /// Appends bytes; returns how many have come in all.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        self.pending.extend_from_slice(bytes);
        self.seen += bytes.len();
        self.seen
    }

    /// The data of the next whole line that has some.
    pub(super) fn next(&mut self) -> Option<String> {
        loop {
            let end = self.pending.iter().position(|byte| *byte == b'\n')?;
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(data) = line.trim_end().strip_prefix("data:") {
                return Some(data.trim_start().to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_stream_is_cut() {
        let stream = "event: message\r\ndata: {\"token\": \"漢\"}\r\n\r\n: ping\n\ndata: [DONE]\n".as_bytes();
        for cut in 0..stream.len() {
            let mut events = Events::default();
            let mut found = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                events.push(part);
                found.extend(std::iter::from_fn(|| events.next()));
            }
            assert_eq!(found, ["{\"token\": \"漢\"}", "[DONE]"]);
        }
    }
}
