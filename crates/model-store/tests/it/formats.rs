//! Heads that are bombs, lies or cut off: refused quickly, and sound ones are read.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use model_store::formats::{Format, Refusal, gguf, safetensors};
use proptest::prelude::*;

fn refuse(format: Format, bytes: &[u8]) -> Refusal {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let start = Instant::now();
    let refusal = format.precheck(file.path()).expect_err("this file must be refused");
    // The promise is 50 ms; a debug build on a busy machine gets ten times as much.
    assert!(
        start.elapsed() < Duration::from_millis(500),
        "{refusal}: {:?}",
        start.elapsed()
    );
    refusal
}

fn st(head: &str, data: usize) -> Vec<u8> {
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.extend(head.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

const MEASURE: &str = "MODEL_STORE_TEST_MEASURE";

/// Peak of resident memory of this process so far, from `VmHWM` of proc(5).
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The longest heads that are still looked at: the ones that cost most.
fn dearest_heads() -> Vec<(&'static str, Vec<u8>)> {
    let entries: Vec<String> = (0..25_000)
        .map(|n| format!(r#""tensor.with.a.long.name.{n:080}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#))
        .collect();
    let shape = format!(
        r#"{{"t":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,0]}}}}"#,
        "1,".repeat(2_000_000)
    );
    let gguf_tensors = (0..19_999u64).fold(Gguf::head(3, 20_000, 0), |out, n| {
        out.tensor(&format!("tensor.{n:050}"), &[32, 1, 1, 1], 0, n * 128)
    });
    let gguf_pairs = (0..4095u32).fold(Gguf::head(3, 0, 4096), |out, n| {
        out.text(&format!("key.{n:060}")).u32(8).text(&"v".repeat(2000))
    });
    let gguf_words = (0..1_000_000u32).fold(
        Gguf::head(3, 0, 1)
            .text("tokenizer.ggml.tokens")
            .u32(9)
            .u32(8)
            .u64(4 << 20),
        |out, _| out.text("word"),
    );
    vec![
        ("entries.safetensors", st(&format!("{{{}}}", entries.join(",")), 0)),
        ("shape.safetensors", st(&shape, 0)),
        ("brackets.safetensors", st(&"[".repeat(4_000_000), 0)),
        (
            "metadata_list.safetensors",
            st(
                &format!(r#"{{"__metadata__":{{"k":[{}0]}}}}"#, "0,".repeat(2_000_000)),
                0,
            ),
        ),
        (
            "metadata.safetensors",
            st(
                &format!(r#"{{"__metadata__":{{{}"a":1}}}}"#, r#""k":"v","#.repeat(400_000)),
                0,
            ),
        ),
        ("length.safetensors", (1u64 << 63).to_le_bytes().to_vec()),
        ("head_100mb.safetensors", st(&" ".repeat(100 << 20), 0)),
        ("tensors.gguf", gguf_tensors.0),
        ("pairs.gguf", gguf_pairs.0),
        ("words.gguf", gguf_words.0),
        ("count.gguf", Gguf::head(3, u64::MAX, u64::MAX).0),
        ("text.gguf", Gguf::head(3, 0, 1).text("k").u32(8).u64(1 << 62).0),
    ]
}

/// This test starts itself again as a child whose memory is only the check's.
#[test]
fn the_dearest_heads_are_refused_in_50_ms_and_32_mib() {
    if let Some(dir) = std::env::var_os(MEASURE) {
        return measure_refusals(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in dearest_heads() {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "formats::the_dearest_heads_are_refused_in_50_ms_and_32_mib"])
        .env(MEASURE, dir.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let report = std::fs::read_to_string(dir.path().join("report")).unwrap();
    println!("{report}");
    let lines: Vec<Vec<&str>> = report.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines.len(), 12, "{report}");
    // The promise is 50 ms. Without optimisation the same work takes several times as long.
    let limit_ms = if cfg!(debug_assertions) { 500 } else { 50 };
    for line in &lines {
        let [name, ms, kib, refusal] = line.as_slice() else {
            panic!("{line:?}")
        };
        assert!(ms.parse::<u64>().unwrap() <= limit_ms, "{name}: {ms} ms, {refusal}");
        assert!(kib.parse::<u64>().unwrap() <= 32 << 10, "{name}: {kib} KiB, {refusal}");
    }
}

/// Writes one line for each file: name, milliseconds (the best of three, for other programs take time too), KiB by
/// which the peak of all so far lies above the start, and the refusal.
fn measure_refusals(dir: &Path) {
    let start_kib = peak_kib();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let mut report = String::new();
    for path in &paths {
        let format = Format::of(path).unwrap();
        let timed = || {
            let start = Instant::now();
            let Err(refusal) = format.precheck(path) else {
                panic!("{} must be refused", path.display())
            };
            (start.elapsed().as_millis(), refusal)
        };
        let (ms, refusal) = [timed(), timed(), timed()]
            .into_iter()
            .min_by_key(|(ms, _)| *ms)
            .unwrap();
        let name = path.file_name().unwrap().to_string_lossy();
        report.push_str(&format!("{name}\t{ms}\t{}\t{refusal}\n", peak_kib() - start_kib));
    }
    std::fs::write(dir.join("report"), &report).unwrap();
    println!("{report}");
}

#[test]
fn bombs_and_lies_in_safetensors_heads_are_refused() {
    let f32s = |n: usize, shape: &str, range: (u64, u64)| {
        format!(
            r#""t{n}":{{"dtype":"F32","shape":{shape},"data_offsets":[{},{}]}}"#,
            range.0, range.1
        )
    };
    let one = |entry: String| st(&format!("{{{entry}}}"), 8);
    let many: Vec<String> = (0..25_000).map(|n| f32s(n, "[0]", (0, 0))).collect();
    let digits = format!(
        r#"{{"t":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,0]}}}}"#,
        "1,".repeat(1_900_000)
    );
    let nested = format!("{}{}", "[".repeat(2_000_000), "]".repeat(2_000_000));
    for (what, bytes) in [
        ("empty", vec![]),
        ("seven bytes", vec![0; 7]),
        ("length 2^63", (1u64 << 63).to_le_bytes().to_vec()),
        ("length behind the file", 100u64.to_le_bytes().to_vec()),
        ("a 100 MB head", (100u64 << 20).to_le_bytes().to_vec()),
        ("no JSON", st("not json", 0)),
        ("25 000 tensors", st(&format!("{{{}}}", many.join(",")), 0)),
        ("a shape of two million ones", st(&digits, 0)),
        ("two million brackets", st(&nested, 0)),
        ("overflow", one(f32s(0, "[4294967296,4294967296,4294967296]", (0, 8)))),
        ("overflow by bytes", one(f32s(0, "[18446744073709551615]", (0, 8)))),
        ("a hole at the start", one(f32s(0, "[1]", (4, 8)))),
        (
            "overlap",
            one(format!("{},{}", f32s(0, "[2]", (0, 8)), f32s(1, "[1]", (4, 8)))),
        ),
        ("bytes behind the last tensor", one(f32s(0, "[1]", (0, 4)))),
        ("a tensor behind the file", one(f32s(0, "[3]", (0, 12)))),
        ("backwards", one(f32s(0, "[2]", (8, 0)))),
        (
            "twice",
            one(format!("{},{}", f32s(0, "[1]", (0, 4)), f32s(0, "[1]", (4, 8)))),
        ),
        (
            "an unknown type",
            one(r#""t":{"dtype":"X9","shape":[2],"data_offsets":[0,8]}"#.into()),
        ),
        (
            "a negative size",
            one(r#""t":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#.into()),
        ),
        (
            "an unknown key",
            one(r#""t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"exec":1}"#.into()),
        ),
    ] {
        let refusal = refuse(Format::Safetensors, &bytes);
        assert!(!refusal.to_string().is_empty(), "{what}");
    }
}

#[test]
fn a_sound_safetensors_head_is_read_with_its_metadata() {
    let bytes = st(
        r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,2],"data_offsets":[4,12]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#,
        12,
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    let head = safetensors::read_head(file.path()).unwrap();
    assert_eq!(head.tensors["b"].shape, [2, 2]);
    assert_eq!(head.metadata["format"], "pt");
    assert_eq!(head.data_start as usize, bytes.len() - 12);
}

/// A writer of GGUF files that lies where it is told to.
#[derive(Default)]
struct Gguf(Vec<u8>);

impl Gguf {
    fn head(version: u32, tensors: u64, pairs: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(pairs)
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }
    fn text(self, text: &str) -> Self {
        let mut with = self.u64(text.len() as u64);
        with.0.extend(text.as_bytes());
        with
    }
    fn tensor(self, name: &str, sizes: &[u64], kind: u32, offset: u64) -> Self {
        let start = self.text(name).u32(sizes.len() as u32);
        sizes
            .iter()
            .fold(start, |out, size| out.u64(*size))
            .u32(kind)
            .u64(offset)
    }
    fn data(mut self, bytes: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32), 0);
        self.0.resize(self.0.len() + bytes, 0);
        self.0
    }
}

fn sound_gguf() -> Vec<u8> {
    Gguf::head(3, 2, 3)
        .text("general.architecture")
        .u32(8)
        .text("llama")
        .text("llama.context_length")
        .u32(4)
        .u32(2048)
        .text("tokenizer.ggml.tokens")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("a")
        .text("b")
        .tensor("a", &[64, 2], 2, 0)
        .tensor("b", &[3], 0, 96)
        .data(108)
}

#[test]
fn a_sound_gguf_head_is_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), sound_gguf()).unwrap();
    let head = gguf::read_head(file.path()).unwrap();
    assert_eq!(head.architecture.as_deref(), Some("llama"));
    assert_eq!(
        (head.context_length, head.tensors, head.parameters, head.tensor_bytes),
        (Some(2048), 2, 131, 84)
    );
}

#[test]
fn bombs_and_lies_in_gguf_heads_are_refused() {
    for (what, bytes) in [
        ("empty", vec![]),
        ("another magic", b"GGML\x03\0\0\0".to_vec()),
        ("version 1", Gguf::head(1, 0, 0).0),
        ("2^63 pairs", Gguf::head(3, 0, 1 << 63).0),
        ("2^63 tensors", Gguf::head(3, 1 << 63, 0).0),
        ("a key of 2^62 bytes", Gguf::head(3, 0, 1).u64(1 << 62).0),
        (
            "a text of 2^62 bytes",
            Gguf::head(3, 0, 1).text("k").u32(8).u64(1 << 62).0,
        ),
        (
            "an array of 2^62",
            Gguf::head(3, 0, 1).text("k").u32(9).u32(0).u64(1 << 62).0,
        ),
        (
            "an array of arrays",
            Gguf::head(3, 0, 1).text("k").u32(9).u32(9).u64(1).0,
        ),
        ("an unknown value type", Gguf::head(3, 0, 1).text("k").u32(77).0),
        (
            "a key twice",
            Gguf::head(3, 0, 2)
                .text("k")
                .u32(4)
                .u32(1)
                .text("k")
                .u32(4)
                .u32(1)
                .data(0),
        ),
        (
            "an impossible alignment",
            Gguf::head(3, 0, 1).text("general.alignment").u32(4).u32(3).data(0),
        ),
        (
            "five dimensions",
            Gguf::head(3, 1, 0).tensor("a", &[1; 5], 0, 0).data(64),
        ),
        (
            "dimensions that overflow",
            Gguf::head(3, 1, 0).tensor("a", &[1 << 62, 1 << 62], 0, 0).data(64),
        ),
        (
            "an unknown tensor type",
            Gguf::head(3, 1, 0).tensor("a", &[1], 99, 0).data(64),
        ),
        ("half a block", Gguf::head(3, 1, 0).tensor("a", &[33], 2, 0).data(64)),
        ("not aligned", Gguf::head(3, 1, 0).tensor("a", &[1], 0, 1).data(64)),
        (
            "an offset that overflows",
            Gguf::head(3, 1, 0).tensor("a", &[1], 0, u64::MAX - 31).data(64),
        ),
        ("behind the file", Gguf::head(3, 1, 0).tensor("a", &[64], 0, 0).data(64)),
        (
            "overlap",
            Gguf::head(3, 2, 0)
                .tensor("a", &[16], 0, 0)
                .tensor("b", &[1], 0, 32)
                .data(64),
        ),
        (
            "a name twice",
            Gguf::head(3, 2, 0)
                .tensor("a", &[1], 0, 0)
                .tensor("a", &[1], 0, 32)
                .data(64),
        ),
        (
            "a name of 100 bytes",
            Gguf::head(3, 1, 0).tensor(&"n".repeat(100), &[1], 0, 0).data(64),
        ),
    ] {
        let refusal = refuse(Format::Gguf, &bytes);
        assert!(!refusal.to_string().is_empty(), "{what}");
    }
    let sound = sound_gguf();
    for cut in 0..sound.len() {
        refuse(Format::Gguf, &sound[..cut]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_mutated_head_makes_the_checks_panic(at in 0usize..200, byte: u8, at2 in 0usize..200, byte2: u8) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let st = st(r#"{"b":{"dtype":"F16","shape":[2,2],"data_offsets":[4,12]},"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#, 12);
        for (format, sound) in [(Format::Gguf, sound_gguf()), (Format::Safetensors, st)] {
            let mut bytes = sound;
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes[at2 % length] = byte2;
            std::fs::write(file.path(), &bytes).unwrap();
            let _ = format.precheck(file.path());
        }
    }
}
