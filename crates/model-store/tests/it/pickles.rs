//! Checkpoints through the sandboxed child: real layouts are converted exactly, everything else is refused.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use model_store::formats::sandbox::Converter;
use model_store::formats::{Refusal, safetensors};
use proptest::prelude::*;

fn converter() -> Converter {
    Converter {
        command: vec![
            OsString::from(env!("CARGO_BIN_EXE_model-store")),
            "convert-pickle".into(),
        ],
    }
}

fn convert(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("a.ckpt"), dir.path().join("a.safetensors"));
    std::fs::write(&from, bytes).unwrap();
    converter().run(&from, &to).map(|()| std::fs::read(&to).unwrap())
}

/// Writes pickles of protocol 2 as PyTorch does.
#[derive(Clone, Default)]
pub struct Pickle(Vec<u8>);

impl Pickle {
    pub fn new() -> Self {
        Self(vec![0x80, 2])
    }
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn text(self, text: &str) -> Self {
        self.raw(b"X")
            .raw(&(text.len() as u32).to_le_bytes())
            .raw(text.as_bytes())
    }
    fn int(self, int: i32) -> Self {
        self.raw(b"J").raw(&int.to_le_bytes())
    }
    fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }
    fn tuple(self, ints: &[i32]) -> Self {
        ints.iter().fold(self.raw(b"("), |out, int| out.int(*int)).raw(b"t")
    }
    fn tensor(self, (class, key): (&str, &str), elements: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"((")
            .text("storage")
            .global("torch", class)
            .text(key)
            .text("cpu")
            .int(elements)
            .raw(b"tQ")
            .int(offset)
            .tuple(shape)
            .tuple(strides)
            .raw(b"\x89")
            .global("collections", "OrderedDict")
            .raw(b")RtR")
    }
    fn end(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// Two weights, one of them transposed, inside the wrapper of a trainer.
fn checkpoint() -> Vec<u8> {
    Pickle::new()
        .raw(b"}(")
        .text("epoch")
        .int(3)
        .text("state_dict")
        .raw(b"}(")
        .text("layer.weight")
        .tensor(("FloatStorage", "0"), 6, 0, &[2, 3], &[3, 1])
        .text("layer.turned")
        .tensor(("FloatStorage", "0"), 6, 0, &[3, 2], &[1, 3])
        .text("layer.half")
        .tensor(("HalfStorage", "1"), 4, 1, &[2], &[1])
        .raw(b"uu")
        .end()
}

fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, body) in members {
        let mut crc = flate2::Crc::new();
        crc.update(body);
        let at = out.len() as u32;
        let mut common = Vec::new();
        common.extend([20, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        common.extend(crc.sum().to_le_bytes());
        common.extend((body.len() as u32).to_le_bytes());
        common.extend((body.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(*body);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((members.len() as u16).to_le_bytes());
    out.extend((members.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn floats() -> Vec<u8> {
    (1..=6u8).flat_map(|n| f32::from(n).to_le_bytes()).collect()
}

pub fn zipped(pickle: &[u8]) -> Vec<u8> {
    zip(&[
        ("m/data.pkl", pickle),
        ("m/byteorder", b"little"),
        ("m/data/0", &floats()),
        ("m/data/1", &[1, 2, 3, 4, 5, 6, 7, 8]),
    ])
}

pub fn sound_checkpoint() -> Vec<u8> {
    zipped(&checkpoint())
}

fn legacy(pickle: &[u8]) -> Vec<u8> {
    let mut out = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    out.extend(Pickle::new().int(1001).end());
    out.extend(Pickle::new().raw(b"}(").text("little_endian").raw(b"\x88u").end());
    out.extend(pickle);
    out.extend(Pickle::new().raw(b"](").text("0").text("1").raw(b"e").end());
    out.extend(6u64.to_le_bytes());
    out.extend(floats());
    out.extend(4u64.to_le_bytes());
    out.extend([1, 2, 3, 4, 5, 6, 7, 8]);
    out
}

fn assert_exact(file: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    std::fs::write(&path, file).unwrap();
    let head = safetensors::read_head(&path).unwrap();
    let bytes = |name: &str| {
        let (start, end) = head.tensors[name].range;
        &file[(head.data_start + start) as usize..(head.data_start + end) as usize]
    };
    let floats = |values: &[u8]| {
        values
            .iter()
            .flat_map(|n| f32::from(*n).to_le_bytes())
            .collect::<Vec<u8>>()
    };
    assert_eq!(head.tensors.len(), 3);
    assert_eq!(bytes("layer.weight"), floats(&[1, 2, 3, 4, 5, 6]));
    assert_eq!(bytes("layer.turned"), floats(&[1, 4, 2, 5, 3, 6]));
    assert_eq!(bytes("layer.half"), [3, 4, 5, 6]);
    assert_eq!(head.tensors["layer.turned"].shape, [3, 2]);
    // The crate's own reader, which engines use, agrees.
    assert_eq!(::safetensors::SafeTensors::deserialize(file).unwrap().len(), 3);
}

#[test]
fn both_layouts_of_checkpoints_are_converted_exactly_and_always_alike() {
    let from_zip = convert(&zipped(&checkpoint())).unwrap();
    assert_exact(&from_zip);
    assert_eq!(convert(&legacy(&checkpoint())).unwrap(), from_zip);
}

/// The fixtures were written and read back by torch itself, see `fixtures/torch/make.py`.
#[test]
fn every_tensor_of_torchs_own_files_has_torchs_type_shape_and_bytes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch");
    let expected = std::fs::read(dir.join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Expected>> = serde_json::from_slice(&expected).unwrap();
    assert_eq!(expected.len(), 5);
    for (file, tensors) in &expected {
        let converted = convert(&std::fs::read(dir.join(file)).unwrap()).unwrap_or_else(|e| panic!("{file}: {e}"));
        let converted = ::safetensors::SafeTensors::deserialize(&converted).unwrap();
        let mut names = converted.names();
        names.sort();
        assert!(names.iter().copied().eq(tensors.keys()), "{file}: {names:?}");
        for (name, expected) in tensors {
            let found = converted.tensor(name).unwrap();
            let found = Expected {
                dtype: format!("{:?}", found.dtype()),
                shape: found.shape().to_vec(),
                hex: hex::encode(found.data()),
            };
            assert_eq!(&found, expected, "{file}: {name}");
        }
    }
}

#[derive(Debug, PartialEq, serde::Deserialize)]
struct Expected {
    dtype: String,
    shape: Vec<usize>,
    hex: String,
}

#[test]
fn code_bombs_and_lies_in_pickles_are_refused() {
    let mut memo_bomb = Pickle::new().raw(b"]q\x00");
    for _ in 0..40 {
        memo_bomb = memo_bomb.raw(b"](h\x00h\x00h\x00h\x00eq\x00");
    }
    let marks = Pickle::new().raw(&vec![b'('; 3_000_000]).end();
    let lists = Pickle::new().raw(&vec![b']'; 3_000_000]).end();
    let alone = |tensor: Pickle| zipped(&tensor.end());
    let tensor = |elements, offset, shape: &[i32], strides: &[i32]| {
        Pickle::new().tensor(("FloatStorage", "0"), elements, offset, shape, strides)
    };
    for (what, word, bytes) in [
        (
            "a call of the shell",
            "os.system",
            zipped(
                &Pickle::new()
                    .global("os", "system")
                    .raw(b"(")
                    .text("touch /tmp/x")
                    .raw(b"tR")
                    .end(),
            ),
        ),
        (
            "eval",
            "builtins.eval",
            zipped(&Pickle::new().global("builtins", "eval").end()),
        ),
        (
            "another class of torch",
            "torch.load",
            zipped(&Pickle::new().global("torch", "load").end()),
        ),
        (
            "an instance by the old opcode",
            "opcode",
            zipped(&Pickle::new().raw(b"(ios\nsystem\n").end()),
        ),
        ("a memo that doubles", "no tensor", zipped(&memo_bomb.end())),
        ("three million marks", "", zipped(&marks)),
        ("three million lists", "number of values", zipped(&lists)),
        (
            "a text of 4 GB",
            "text",
            zipped(&Pickle::new().raw(b"X\xff\xff\xff\xff").end()),
        ),
        (
            "a tensor of 2^62 elements",
            "larger",
            alone(tensor(6, 0, &[i32::MAX, i32::MAX], &[1, 1])),
        ),
        (
            "a tensor of steps of zero",
            "larger",
            alone(tensor(6, 0, &[i32::MAX], &[0])),
        ),
        ("a tensor behind its storage", "larger", alone(tensor(6, 5, &[2], &[1]))),
        (
            "a tensor before its storage",
            "impossible",
            alone(tensor(6, -1, &[2], &[1])),
        ),
        (
            "a storage that is smaller than it says",
            "another size",
            alone(tensor(60, 0, &[60], &[1])),
        ),
        (
            "a storage that is not there",
            "holds no",
            alone(Pickle::new().tensor(("FloatStorage", "../../etc/passwd"), 6, 0, &[6], &[1])),
        ),
        ("an empty stack", "stack", zipped(&Pickle::new().raw(b"tR").end())),
        ("no pickle", "data.pkl", zip(&[("m/other", b"x")])),
        (
            "big-endian numbers",
            "big-endian",
            zip(&[("m/data.pkl", &checkpoint()), ("m/byteorder", b"big")]),
        ),
        ("no checkpoint", "no PyTorch", vec![7; 1000]),
        ("numbers only", "no tensor", zipped(&Pickle::new().int(3).end())),
    ] {
        let refusal = convert(&bytes).expect_err(what).to_string();
        assert!(refusal.contains(word), "{what}: {refusal}");
    }
}

#[test]
fn a_checkpoint_torn_anywhere_is_refused() {
    for whole in [zipped(&checkpoint()), legacy(&checkpoint())] {
        for len in (0..50).map(|part| whole.len() * part / 50).chain([whole.len() - 1]) {
            let refusal = convert(&whole[..len]).expect_err("a part is no checkpoint").to_string();
            // "code 2" would be a panic of the reader.
            assert!(
                !refusal.contains("ended with code"),
                "{len} of {}: {refusal}",
                whole.len()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_mutated_checkpoint_ends_in_a_file_or_a_refusal(at in 0usize..400, byte: u8, from_zip: bool) {
        let mut bytes = if from_zip { zipped(&checkpoint()) } else { legacy(&checkpoint()) };
        let length = bytes.len();
        bytes[at % length] = byte;
        match convert(&bytes) {
            Ok(file) => prop_assert!(safetensors_is_sound(&file)),
            // "code 2" would be a panic of the reader.
            Err(refusal) => prop_assert!(!refusal.to_string().contains("ended with code"), "{}", refusal),
        }
    }
}

fn safetensors_is_sound(file: &[u8]) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.safetensors");
    std::fs::write(&path, file).unwrap();
    safetensors::read_head(Path::new(&path)).is_ok()
}

#[test]
fn a_converter_that_is_no_program_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a"), b"x").unwrap();
    let broken = Converter {
        command: vec!["/nonexistent/program".into()],
    };
    assert!(broken.run(&dir.path().join("a"), &dir.path().join("b")).is_err());
    let failing = Converter {
        command: vec!["false".into()],
    };
    assert!(failing.run(&dir.path().join("a"), &dir.path().join("b")).is_err());
}
