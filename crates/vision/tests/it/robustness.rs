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

/// A header and so many bytes of values behind it.
fn file(header: &str, n_bytes: usize) -> Vec<u8> {
    let len = (header.len() as u64).to_le_bytes();
    [&len[..], header.as_bytes(), &vec![0; n_bytes]].concat()
}

fn refused(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let error = Weights::open(&path, &Device::Cpu).err().unwrap();
    assert!(matches!(error, VisionError::Unreadable { .. }), "{error}");
    error.to_string()
}

#[test]
fn a_file_that_lies_about_its_header_is_refused() {
    let mut huge = file("{}", 56);
    for length in [u64::MAX, 1 << 63, 1 << 60, (1 << 20) + 1, 59] {
        huge[..8].copy_from_slice(&length.to_le_bytes());
        let error = refused(&huge);
        assert!(
            error.contains(&format!("a header of {length} bytes in a file of 66")),
            "{error}"
        );
    }
    for bytes in [
        &b"short"[..],
        &[0xff; 64],
        b"",
        &file("{", 0),
        &file("[]", 0),
        &file("{}", 8),
    ] {
        refused(bytes);
    }
    // A header that is sound but for its length is not read at all.
    let error = refused(&file(&format!("{{{}}}", " ".repeat((2 << 20) - 2)), 0));
    assert!(error.contains("a header of 2097152 bytes"), "{error}");
}

#[test]
fn tensors_that_overlap_leave_holes_or_claim_more_than_there_is_are_refused() {
    let one = |shape: &str, offsets: &str| format!(r#""a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}"#);
    let two = |first: &str, second: &str| {
        let second = second.replacen("\"a\"", "\"b\"", 1);
        file(&format!("{{{first},{second}}}"), 16)
    };
    let single = |shape: &str, offsets: &str| file(&format!("{{{}}}", one(shape, offsets)), 16);
    for (what, bytes) in [
        ("overlap", two(&one("[3]", "[0,12]"), &one("[2]", "[8,16]"))),
        ("the same place", two(&one("[4]", "[0,16]"), &one("[4]", "[0,16]"))),
        ("a hole", two(&one("[1]", "[0,4]"), &one("[2]", "[8,16]"))),
        ("less than there is", single("[2]", "[0,8]")),
        ("more than there is", single("[8]", "[0,32]")),
        ("a shape for other offsets", single("[5]", "[0,16]")),
        ("backwards", single("[4]", "[16,0]")),
        (
            "a size beyond all numbers",
            single("[4294967296,4294967296,4]", "[0,16]"),
        ),
        (
            "a size that comes round to 16 bytes",
            single("[4611686018427387905,4]", "[0,16]"),
        ),
        ("below zero", single("[-4]", "[0,16]")),
        ("a fraction", single("[4.0]", "[0,16]")),
        (
            "a type nobody knows",
            file(r#"{"a":{"dtype":"F31","shape":[4],"data_offsets":[0,16]}}"#, 16),
        ),
        ("depth", file(&"[".repeat(100_000), 0)),
    ] {
        let error = refused(&bytes);
        assert!(error.contains("bad.safetensors"), "{what}: {error}");
    }
    let sound = single("[2,2]", "[0,16]");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sound.safetensors");
    std::fs::write(&path, sound).unwrap();
    assert_eq!(Weights::open(&path, &Device::Cpu).unwrap().dims("a").unwrap(), [2, 2]);
}

#[test]
fn a_file_torn_anywhere_is_refused() {
    let whole = std::fs::read(root().join("models/alchemy/compact_x4.safetensors")).unwrap();
    for part in 0..50 {
        refused(&whole[..whole.len() * part / 50]);
    }
    refused(&whole[..whole.len() - 1]);
    refused(&[&whole[..], &[0]].concat());
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

#[test]
fn a_layer_of_a_number_beyond_all_networks_costs_nothing() {
    let path = root().join("models/alchemy/esrgan_x4.safetensors");
    let weights = Weights::open(&path, &Device::Cpu).unwrap();
    let tensor = weights.get("conv_last.weight").unwrap();
    for number in [3_000_000_004u64, u64::MAX] {
        let names = [
            "model.0.weight".to_owned(),
            "model.1.sub.0.RDB1.conv1.0.weight".to_owned(),
            format!("model.{number}.weight"),
        ];
        let tensors = names.map(|name| (name, tensor.clone()));
        let error = Upscaler::load(&Weights::from_tensors(tensors.into_iter().collect(), &Device::Cpu)).err();
        assert!(matches!(error, Some(VisionError::Missing { .. })), "{error:?}");
    }
}
