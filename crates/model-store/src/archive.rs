//! Reads zip archives (Python wheels, PyTorch files) with limits: the central directory is checked before a byte of a
//! member is read, and no member can unpack to more than it announces.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// Longest central directory.
const MAX_DIRECTORY_BYTES: u64 = 16 << 20;
/// Most members.
const MAX_MEMBERS: usize = 65_536;

/// A zip archive's members.
#[derive(Debug)]
pub(crate) struct Archive {
    file: File,
    members: Vec<Member>,
}

/// One member as the central directory describes it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub name: String,
    pub size: u64,
    packed: u64,
    method: u16,
    header_at: u64,
    crc32: u32,
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

impl Archive {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::read(File::open(path)?)
    }

    pub(crate) fn read(mut file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let tail_bytes = length.min(65_557);
        let mut tail = vec![0u8; usize::try_from(tail_bytes).unwrap_or(0)];
        file.seek(SeekFrom::Start(length - tail_bytes))?;
        file.read_exact(&mut tail)?;
        let at = tail
            .windows(4)
            .rposition(|four| four == b"PK\x05\x06")
            .filter(|at| tail.len() - at >= 22)
            .ok_or_else(|| bad("not a zip archive"))?;
        let end = &tail[at..];
        let mut count = u64::from(le16(end, 10));
        let mut size = u64::from(le32(end, 12));
        let mut start = u64::from(le32(end, 16));
        if (count == 0xffff || size == 0xffff_ffff || start == 0xffff_ffff)
            && at >= 20
            && &tail[at - 20..at - 16] == b"PK\x06\x07"
        {
            let record_at = le64(&tail[at - 20..], 8);
            let mut record = [0u8; 56];
            file.seek(SeekFrom::Start(record_at))?;
            file.read_exact(&mut record)?;
            if &record[..4] != b"PK\x06\x06" {
                return Err(bad("the zip64 record is not where it should be"));
            }
            (count, size, start) = (le64(&record, 32), le64(&record, 40), le64(&record, 48));
        }
        if size > MAX_DIRECTORY_BYTES
            || count > MAX_MEMBERS as u64
            || start.checked_add(size).is_none_or(|end| end > length)
        {
            return Err(bad("the archive's directory is not possible"));
        }
        let mut directory = vec![0u8; usize::try_from(size).unwrap_or(0)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut directory)?;
        let mut members = Vec::new();
        let mut rest = directory.as_slice();
        for _ in 0..count {
            let (member, after) = parse_member(rest).ok_or_else(|| bad("the archive's directory is cut off"))?;
            members.push(member);
            rest = after;
        }
        Ok(Self { file, members })
    }

    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    pub(crate) fn find(&self, name: &str) -> Option<Member> {
        self.members.iter().find(|member| member.name == name).cloned()
    }

    /// A reader over the unpacked bytes of a member; ends with an error when length or checksum are wrong.
    pub(crate) fn unpack(&self, member: &Member) -> io::Result<impl Read + use<>> {
        let mut file = self.file.try_clone()?;
        let start = self.data_start(member)?;
        file.seek(SeekFrom::Start(start))?;
        let packed = io::BufReader::with_capacity(1 << 16, file.take(member.packed));
        let inner: Box<dyn Read + Send> = match member.method {
            0 if member.packed == member.size => Box::new(packed),
            8 => Box::new(flate2::bufread::DeflateDecoder::new(packed)),
            0 => return Err(bad("a stored member with two lengths")),
            _ => return Err(bad("a packing method other than deflate")),
        };
        Ok(Checked {
            inner,
            left: member.size,
            crc: flate2::Crc::new(),
            expected_crc: member.crc32,
        })
    }

    /// Where a stored member's bytes begin in the file, for reading parts of it.
    pub(crate) fn stored_range(&self, member: &Member) -> io::Result<(u64, u64)> {
        if member.method != 0 || member.packed != member.size {
            return Err(bad("a packed member where a stored one is needed"));
        }
        let start = self.data_start(member)?;
        let end = start
            .checked_add(member.size)
            .filter(|end| self.file.metadata().is_ok_and(|m| m.len() >= *end));
        Ok((start, end.ok_or_else(|| bad("a member ends behind the file"))?))
    }

    fn data_start(&self, member: &Member) -> io::Result<u64> {
        let mut header = [0u8; 30];
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut header, member.header_at)?;
        if &header[..4] != b"PK\x03\x04" {
            return Err(bad("a member is not where the directory says"));
        }
        Ok(member.header_at + 30 + u64::from(le16(&header, 26)) + u64::from(le16(&header, 28)))
    }
}

fn parse_member(bytes: &[u8]) -> Option<(Member, &[u8])> {
    let head = bytes.get(..46).filter(|head| head.starts_with(b"PK\x01\x02"))?;
    let (name_bytes, extra_bytes, note_bytes) = (le16(head, 28), le16(head, 30), le16(head, 32));
    let name_end = 46 + usize::from(name_bytes);
    let extra_end = name_end + usize::from(extra_bytes);
    let name = String::from_utf8(bytes.get(46..name_end)?.to_vec()).ok()?;
    let extra = bytes.get(name_end..extra_end)?;
    let rest = bytes.get(extra_end + usize::from(note_bytes)..)?;
    let mut member = Member {
        name,
        method: le16(head, 10),
        crc32: le32(head, 16),
        packed: u64::from(le32(head, 20)),
        size: u64::from(le32(head, 24)),
        header_at: u64::from(le32(head, 42)),
    };
    // Zip64 lengths stand in the extra field, only those that did not fit, in this order.
    let mut fields = extra;
    while fields.len() >= 4 {
        let (id, length) = (le16(fields, 0), usize::from(le16(fields, 2)));
        let mut body = fields.get(4..4 + length)?;
        if id == 1 {
            for value in [&mut member.size, &mut member.packed, &mut member.header_at] {
                if *value == 0xffff_ffff {
                    *value = le64(body.get(..8)?, 0);
                    body = &body[8..];
                }
            }
        }
        fields = &fields[4 + length..];
    }
    Some((member, rest))
}

struct Checked {
    inner: Box<dyn Read + Send>,
    left: u64,
    crc: flate2::Crc,
    expected_crc: u32,
}

impl Read for Checked {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            let mut more = [0u8; 1];
            if self.inner.read(&mut more)? != 0 {
                return Err(bad("a member unpacks to more than it announces"));
            }
            if self.crc.sum() != self.expected_crc {
                return Err(bad("a member's checksum is wrong"));
            }
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let n = self.inner.read(&mut out[..most])?;
        if n == 0 {
            return Err(bad("a member is cut off"));
        }
        self.crc.update(&out[..n]);
        self.left -= n as u64;
        Ok(n)
    }
}

// Callers pass slices that are long enough for the field: fixed heads, or checked by `get` before.
fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from(le16(bytes, at)) | u32::from(le16(bytes, at + 2)) << 16
}

fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from(le32(bytes, at)) | u64::from(le32(bytes, at + 4)) << 32
}
