use candle_core::Device;
use vision::upscale::Upscaler;
use vision::{VisionError, Weights};

use crate::fidelity::root;

#[test]
fn keys_of_something_else_are_named_not_guessed() {
    let path = root().join("models/alchemy/blip_tiny.safetensors");
    let weights = Weights::open(&path, &Device::Cpu).unwrap();
    let error = Upscaler::load(&weights).err().unwrap();
    assert!(
        matches!(error, VisionError::UnknownArchitecture { kind: "upscaler", .. }),
        "{error}"
    );
}

#[test]
fn a_file_that_lies_about_its_header_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    for bytes in [
        &b"short"[..],
        &[0xff; 64],
        &[0x40, 0, 0, 0, 0, 0, 0, 0, b'{'],
        b"\x02\0\0\0\0\0\0\0[]",
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = Weights::open(&path, &Device::Cpu).err().unwrap();
        assert!(matches!(error, VisionError::Unreadable { .. }), "{error}");
    }
    // A header that is sound but for its length is not read at all.
    let header = [b"{}".as_slice(), &vec![b' '; (17 << 20) - 2]].concat();
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header].concat()).unwrap();
    let error = Weights::open(&path, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("a header of 17825792 bytes"), "{error}");
}

#[test]
fn a_missing_tensor_is_told_by_its_key() {
    let path = root().join("models/alchemy/compact_x4.safetensors");
    let mut tensors: std::collections::BTreeMap<_, _> = candle_core::safetensors::load(&path, &Device::Cpu)
        .unwrap()
        .into_iter()
        .collect();
    tensors.remove("body.4.weight");
    let error = Upscaler::load(&Weights::from_tensors(tensors, &Device::Cpu))
        .err()
        .unwrap();
    assert!(error.to_string().contains("body."), "{error}");
}
