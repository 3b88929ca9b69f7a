//! The models directory: list, pull, verify, remove, and what other programs already have.

use std::ffi::OsString;
use std::path::Path;

use model_store::command::{Context, ModelsCommand, Outcome, run};
use model_store::digest::Sha256Sum;
use model_store::fetch::{Control, Downloader, Silent};
use model_store::formats::sandbox::Converter;
use model_store::reference::{Catalogue, Kind, local, record};
use model_store::store::{State, Store};

use crate::fetch_good::settings;
use crate::pickles::sound_checkpoint;
use crate::server::{Reply, Server};

fn big_safetensors(n: u8) -> Vec<u8> {
    let head = r#"{"a":{"dtype":"U8","shape":[200000],"data_offsets":[0,200000]}}"#;
    let mut bytes = (head.len() as u64).to_le_bytes().to_vec();
    bytes.extend(head.as_bytes());
    bytes.extend(vec![n; 200_000]);
    bytes
}

fn store(dir: &Path) -> Store {
    Store::new(dir).with_converter(Converter {
        command: vec![
            OsString::from(env!("CARGO_BIN_EXE_model-store")),
            "convert-pickle".into(),
        ],
    })
}

fn reference(server: &Server, file: &str, bytes: &[u8]) -> Catalogue {
    let text = format!(
        r#"{{"M": {{"name": "M", "baseline": "stable diffusion 1", "config": {{"files": [{{"path": "{file}", "sha256sum": "{}"}}],
        "download": [{{"file_name": "{file}", "file_path": "", "file_url": "{}"}}]}}}}}}"#,
        Sha256Sum::of(bytes),
        server.url("/file")
    );
    record::parse(Kind::Image, text.as_bytes()).unwrap().0
}

async fn command(command: ModelsCommand, store: &Store, catalogue: &Catalogue) -> Outcome {
    let downloader = Downloader::new(settings()).unwrap();
    let context = Context {
        store,
        catalogue,
        downloader: &downloader,
        progress: &Silent,
        control: &Control::default(),
    };
    run(&command, context).await.unwrap()
}

#[tokio::test]
async fn a_model_is_pulled_listed_verified_and_removed() {
    let bytes = big_safetensors(1);
    let served = bytes.clone();
    let server = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let (store, catalogue) = (store(dir.path()), reference(&server, "m.safetensors", &bytes));
    let model = catalogue.find("M").unwrap();
    assert_eq!(store.state(model), State::Missing);
    command(
        ModelsCommand::Pull {
            names: vec!["m".into()],
        },
        &store,
        &catalogue,
    )
    .await;
    assert_eq!(
        store.verified_paths(model).unwrap(),
        [dir.path().join("compvis/m.safetensors")]
    );
    let Outcome::List(lines) = command(ModelsCommand::List { all: false }, &store, &catalogue).await else {
        panic!()
    };
    assert_eq!((lines.len(), lines[0].state), (1, State::Verified));
    // One flipped bit, and no engine gets the file.
    let path = dir.path().join("compvis/m.safetensors");
    let mut flipped = bytes.clone();
    flipped[150_000] ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    assert!(
        store
            .verified_paths(model)
            .unwrap_err()
            .problem
            .unwrap()
            .contains("sha256")
    );
    let Outcome::Verify(reports) = command(ModelsCommand::Verify { names: vec![] }, &store, &catalogue).await else {
        panic!()
    };
    assert_eq!(reports[0].state, State::Corrupt);
    command(
        ModelsCommand::Pull {
            names: vec!["M".into()],
        },
        &store,
        &catalogue,
    )
    .await;
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let Outcome::Remove(freed) = command(
        ModelsCommand::Remove {
            names: vec!["M".into()],
        },
        &store,
        &catalogue,
    )
    .await
    else {
        panic!()
    };
    assert!(freed[0].1 >= 200_000);
    assert_eq!(std::fs::read_dir(dir.path().join("compvis")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_checkpoint_of_the_reference_becomes_safetensors_and_the_pickle_does_not_stay() {
    let bytes = sound_checkpoint();
    let served = bytes.clone();
    let server = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let (store, catalogue) = (store(dir.path()), reference(&server, "m.ckpt", &bytes));
    command(
        ModelsCommand::Pull {
            names: vec!["M".into()],
        },
        &store,
        &catalogue,
    )
    .await;
    let paths = store.verified_paths(catalogue.find("M").unwrap()).unwrap();
    assert_eq!(paths, [dir.path().join("compvis/m.safetensors")]);
    let mut names: Vec<_> = std::fs::read_dir(dir.path().join("compvis"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, [".m.safetensors.sum", "m.safetensors"]);
    command(
        ModelsCommand::Pull {
            names: vec!["M".into()],
        },
        &store,
        &catalogue,
    )
    .await;
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn files_of_other_programs_are_recognised_by_content_and_linked() {
    let server = Server::start(|_| Reply::new(404, "")).await;
    let (bytes, stranger) = (big_safetensors(2), big_safetensors(3));
    let catalogue = reference(&server, "m.safetensors", &bytes);
    let home = tempfile::tempdir().unwrap();
    // ComfyUI's layout, under another name, beside a file nobody knows and one that is broken.
    let folder = home.path().join("ComfyUI/models/checkpoints");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("renamed by me.safetensors"), &bytes).unwrap();
    std::fs::write(folder.join("own.safetensors"), &stranger).unwrap();
    std::fs::write(folder.join("broken.safetensors"), vec![0xff; 150_000]).unwrap();
    std::os::unix::fs::symlink(home.path(), folder.join("loop")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let Outcome::Import(report) = command(
        ModelsCommand::Import {
            dir: home.path().into(),
        },
        &store,
        &catalogue,
    )
    .await
    else {
        panic!()
    };
    assert_eq!(report.linked.len(), 1, "{report:?}");
    assert!(!report.linked[0].converted);
    assert_eq!(store.state(catalogue.find("M").unwrap()), State::Verified);
    assert_eq!(report.unknown.len(), 1);
    // The lines for models.toml are a models.toml.
    let own = local::parse(&report.unknown[0].models_toml).unwrap();
    assert_eq!(
        store.verified_paths(own.find("own").unwrap()).unwrap(),
        [folder.join("own.safetensors")]
    );
    let Outcome::Import(again) = command(
        ModelsCommand::Import {
            dir: home.path().into(),
        },
        &store,
        &catalogue,
    )
    .await
    else {
        panic!()
    };
    assert_eq!((again.linked.len(), again.already_there), (0, vec!["M".to_owned()]));
}

#[tokio::test]
async fn a_checkpoint_in_another_folder_is_converted_and_left_there() {
    let server = Server::start(|_| Reply::new(404, "")).await;
    // Large enough to be looked at.
    let mut bytes = sound_checkpoint();
    let catalogue = reference(&server, "m.ckpt", &padded(&mut bytes));
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("sd.ckpt"), &bytes).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let Outcome::Import(report) = command(
        ModelsCommand::Import {
            dir: home.path().into(),
        },
        &store,
        &catalogue,
    )
    .await
    else {
        panic!()
    };
    assert!(report.linked[0].converted, "{report:?}");
    assert!(home.path().join("sd.ckpt").exists());
    assert_eq!(store.verified_paths(catalogue.find("M").unwrap()).unwrap().len(), 1);
}

/// Bytes between the members and the directory do not belong to anything and may be there.
fn padded(bytes: &mut Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 22;
    let start = u32::from_le_bytes(bytes[end + 16..end + 20].try_into().unwrap());
    let grow = 120_000u32;
    bytes[end + 16..end + 20].copy_from_slice(&(start + grow).to_le_bytes());
    bytes.splice(start as usize..start as usize, vec![0; grow as usize]);
    bytes.clone()
}

#[tokio::test]
async fn ollamas_blobs_are_named_by_its_manifests() {
    let home = tempfile::tempdir().unwrap();
    let mut gguf = b"GGUF\x03\0\0\0".to_vec();
    gguf.extend(1u64.to_le_bytes());
    gguf.extend(0u64.to_le_bytes());
    gguf.extend(1u64.to_le_bytes());
    gguf.extend(b"w\x01\0\0\0");
    gguf.extend(200_000u64.to_le_bytes());
    gguf.extend(24u32.to_le_bytes());
    gguf.extend(0u64.to_le_bytes());
    gguf.resize(gguf.len().next_multiple_of(32) + 200_000, 1);
    let sum = Sha256Sum::of(&gguf);
    let manifests = home.path().join("manifests/registry.ollama.ai/library/tiny");
    std::fs::create_dir_all(&manifests).unwrap();
    std::fs::create_dir_all(home.path().join("blobs")).unwrap();
    std::fs::write(home.path().join(format!("blobs/sha256-{sum}")), &gguf).unwrap();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{{"digest":"sha256:00","size":1}},
        "layers":[{{"mediaType":"application/vnd.ollama.image.template","digest":"sha256:11","size":1}},{{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:{sum}","size":1}}]}}"#
    );
    std::fs::write(manifests.join("1b"), manifest).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let Outcome::Import(report) = command(
        ModelsCommand::Import {
            dir: home.path().into(),
        },
        &store(dir.path()),
        &Catalogue::default(),
    )
    .await
    else {
        panic!()
    };
    assert_eq!(report.unknown.len(), 1, "{report:?}");
    assert_eq!(report.unknown[0].name, "tiny:1b");
    assert_eq!(
        local::parse(&report.unknown[0].models_toml)
            .unwrap()
            .find("tiny:1b")
            .unwrap()
            .kind,
        Kind::Text
    );
}
