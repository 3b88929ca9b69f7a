//! Models that are broken on purpose: a picture that is none is decoded once more and then handed back, never handed in.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use image_worker::checked::Gate;
use image_worker::work::{LoraFile, Work};
use serde_json::Value;
use worker_runtime::backend::{Engine, Fault, JobContext};

use crate::tiny::{CHECKPOINT, Quiet, engine_of, served, work};

/// What a job on the broken model is called by.
const BROKEN: &str = "broken";
/// The VAE's last layer.
const LAST_OF_VAE: [&str; 2] = [
    "first_stage_model.decoder.conv_out.weight",
    "first_stage_model.decoder.conv_out.bias",
];
/// The U-Net's last layer.
const LAST_OF_UNET: [&str; 1] = ["model.diffusion_model.out.2.weight"];

/// A kind of number of two bytes and one of it: zero, and the largest of its kind, with which sums are no numbers.
type Number = (&'static str, [u8; 2]);
const ZERO: Number = ("F16", [0, 0]);
const HUGE: Number = ("BF16", [0x7f, 0x7f]);

/// The tiny model's header and data.
fn tiny() -> (Value, Vec<u8>) {
    let file = std::fs::read(CHECKPOINT).unwrap();
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    (
        serde_json::from_slice(&file[8..8 + length]).unwrap(),
        file[8 + length..].to_vec(),
    )
}

/// Where a tensor lies in the data.
fn place(header: &Value, name: &str) -> std::ops::Range<usize> {
    let at = |end: usize| header[name]["data_offsets"][end].as_u64().unwrap() as usize;
    at(0)..at(1)
}

fn write(path: &Path, header: &Value, data: &[u8]) {
    let mut head = header.to_string().into_bytes();
    head.resize(head.len().next_multiple_of(8), b' ');
    std::fs::write(path, [&(head.len() as u64).to_le_bytes()[..], &head, data].concat()).unwrap();
}

/// The tiny model with every number of these tensors replaced.
fn broken(folder: &Path, names: &[&str], (kind, number): Number) -> PathBuf {
    let (mut header, mut data) = tiny();
    for name in names {
        assert_eq!(header[*name]["dtype"], "F16", "{name}");
        header[*name]["dtype"] = kind.into();
        data[place(&header, name)].as_chunks_mut::<2>().0.fill(number);
    }
    let path = folder.join("broken.safetensors");
    write(&path, &header, &data);
    path
}

/// What the engine makes of a job on a model with this file, and of one on the sound model after it.
fn made(path: &Path, work: Work, job: &dyn JobContext) -> Result<usize, Fault> {
    let sound = || crate::tiny::work("tiny", 64);
    let mut models = vec![served("tiny"), served(BROKEN)];
    models[1].checkpoint = path.to_owned();
    let engine = engine_of(models, None, Gate::UncheckedOnLoopback).expect("the first model is sound");
    let outputs = engine
        .run(work, job)
        .map(|outputs| outputs.iter().filter(|one| one.is_ok()).count());
    assert!(engine.run(sound(), &Quiet).expect("it is not touched")[0].is_ok());
    outputs
}

#[test]
fn a_model_that_gives_no_picture_costs_its_job_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    for (names, number, said) in [
        (&LAST_OF_VAE[..], HUGE, "not-a-number"),
        (&LAST_OF_VAE[..], ZERO, "one flat colour"),
        (&LAST_OF_UNET[..], HUGE, "not-a-number"),
    ] {
        let path = broken(folder.path(), names, number);
        let fault = made(&path, work(BROKEN, 64), &Quiet).unwrap_err();
        assert!(fault.ours && fault.reason.contains(said), "{names:?}: {fault:?}");
    }
}

#[test]
fn with_a_stranger_s_weights_on_it_is_the_job_s_own_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = broken(folder.path(), &LAST_OF_VAE, HUGE);
    let mut work = work(BROKEN, 64);
    work.loras.push(LoraFile {
        name: "7".into(),
        words: Vec::new(),
        path: lora(folder.path()),
        model: 1.0,
        clip: 1.0,
    });
    let fault = made(&path, work, &Quiet).unwrap_err();
    assert!(!fault.ours, "{fault:?}");
}

/// A LoRA for one layer of the tiny model that changes nothing.
fn lora(folder: &Path) -> PathBuf {
    let (header, _) = tiny();
    let mut tensors = header.as_object().unwrap().iter();
    let (key, tensor) = tensors
        .find(|(key, _)| key.starts_with("model.diffusion_model.") && key.ends_with("attn2.to_v.weight"))
        .unwrap();
    let layer = key
        .trim_start_matches("model.diffusion_model.")
        .trim_end_matches(".weight")
        .replace('.', "_");
    let [rows, columns] = [0, 1].map(|axis| tensor["shape"][axis].as_u64().unwrap());
    let header = serde_json::json!({
        format!("lora_unet_{layer}.lora_up.weight"): { "dtype": "F16", "shape": [rows, 1], "data_offsets": [0, 2 * rows] },
        format!("lora_unet_{layer}.lora_down.weight"):
            { "dtype": "F16", "shape": [1, columns], "data_offsets": [2 * rows, 2 * (rows + columns)] },
    });
    let path = folder.join("lora.safetensors");
    write(&path, &header, &vec![0; 2 * (rows + columns) as usize]);
    path
}

/// Mends the file while the job samples: what was read before is broken, what is read anew is sound.
struct Mending {
    path: PathBuf,
    phases: Mutex<Vec<String>>,
}

impl JobContext for Mending {
    fn progress(&self, _: u32, _: u32, phase: &str) {
        self.phases.lock().unwrap().push(phase.to_owned());
        if phase == "sample" {
            let (header, sound) = tiny();
            let file = std::fs::File::options().write(true).open(&self.path).unwrap();
            let begin = file.metadata().unwrap().len() - sound.len() as u64;
            for name in LAST_OF_VAE {
                let place = place(&header, name);
                file.write_all_at(&sound[place.clone()], begin + place.start as u64)
                    .unwrap();
            }
        }
    }
    fn is_cancelled(&self) -> bool {
        false
    }
}

#[test]
fn a_vae_that_broke_in_memory_is_read_anew_and_the_picture_is_handed_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = broken(folder.path(), &LAST_OF_VAE, ZERO);
    let job = Mending {
        path: path.clone(),
        phases: Mutex::default(),
    };
    assert_eq!(made(&path, work(BROKEN, 64), &job), Ok(1));
    assert_eq!(job.phases.lock().unwrap().first().map(String::as_str), Some("load"));
}
