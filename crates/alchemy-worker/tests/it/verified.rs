use std::path::Path;

use alchemy_worker::forms::Wanted;
use alchemy_worker::verified::{Verified, verified};
use model_store::digest::Sha256Sum;
use model_store::reference::local;
use model_store::trust::Trust;

use crate::models;

/// What a start of the program finds. `models_toml` is the owner's.
fn start(models: &Path, state: &Path, models_toml: &str) -> Verified {
    let mut catalogue = local::builtin();
    catalogue.merge(local::parse(models_toml).unwrap());
    let mut trust = Trust::open(state.join("verified.json"));
    let all = verified(&Wanted::default(), models, &catalogue, &mut trust);
    trust.save().unwrap();
    all
}

fn served(found: &Verified) -> Vec<&str> {
    found.served.iter().map(|(form, _)| form.as_str()).collect()
}

fn own(kind: &str, name: &str, path: &Path) -> String {
    let sum = Sha256Sum::of_file(path).unwrap();
    let (file, place) = (path.file_name().unwrap().to_str().unwrap(), path.display());
    format!(
        "[[model]]\nname = \"{name}\"\nkind = \"{kind}\"\n[[model.file]]\npath = \"{file}\"\nsha256 = \"{sum}\"\n\
         local_path = \"{place}\"\n"
    )
}

#[test]
fn a_file_that_is_not_what_the_catalogue_says_takes_its_form_away_with_a_hint() {
    let (models, state) = (models::some(), tempfile::tempdir().unwrap());
    let found = start(models.path(), state.path(), "");
    // Tiny networks stand under the names of real ones; nobody knows a sum for a captioner in this place.
    assert_eq!(served(&found), ["caption", "vectorize"]);
    let refused: Vec<&str> = found.refused.iter().map(|refused| refused.form.as_str()).collect();
    assert_eq!(refused, ["interrogation", "strip_background", "RealESRGAN_x4plus"]);
    for refused in &found.refused {
        let why = refused.why.to_string();
        assert!(
            why.contains("has sha256") && refused.hint.contains("alchemist models pull"),
            "{refused:?}"
        );
    }
    // With their sums in models.toml they are the owner's own.
    let toml = [
        own(
            "clip",
            "clip-vit-large-patch14",
            &models.path().join("clip/model.safetensors"),
        ),
        own("background", "u2netp", &models.path().join("rembg/u2netp.safetensors")),
        own(
            "esrgan",
            "realesrgan-x4plus",
            &models.path().join("esrgan/RealESRGAN_x4plus.safetensors"),
        ),
    ]
    .concat();
    let found = start(models.path(), state.path(), &toml);
    assert_eq!(
        served(&found),
        [
            "caption",
            "interrogation",
            "strip_background",
            "RealESRGAN_x4plus",
            "vectorize"
        ]
    );
    assert_eq!(
        found.first_used.len(),
        0,
        "the captioner was first used at the first start"
    );
    // One bit of one file flips.
    let path = models.path().join("rembg/u2netp.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let found = start(models.path(), state.path(), &toml);
    assert!(!served(&found).contains(&"strip_background") && served(&found).contains(&"RealESRGAN_x4plus"));
    assert_eq!(found.refused[0].path, path);
}

#[test]
fn what_nobody_knows_is_trusted_once_and_refused_when_it_changes() {
    let (models, state) = (models::some(), tempfile::tempdir().unwrap());
    let path = models.path().join("blip/model.safetensors");
    let found = start(models.path(), state.path(), "");
    assert!(found.first_used.contains(&path) && served(&found).contains(&"caption"));
    assert!(start(models.path(), state.path(), "").first_used.is_empty());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.push(0);
    std::fs::write(&path, bytes).unwrap();
    let found = start(models.path(), state.path(), "");
    assert!(!served(&found).contains(&"caption"));
    let refused = found
        .refused
        .iter()
        .find(|refused| refused.form.as_str() == "caption")
        .unwrap();
    assert!(
        refused.why.to_string().contains("has changed since it was first used"),
        "{}",
        refused.why
    );
    // The owner's own words may change as he likes.
    std::fs::write(models.path().join("clip/words/tags.txt"), "one\ntwo\n").unwrap();
    assert!(
        start(models.path(), state.path(), "")
            .refused
            .iter()
            .all(|refused| refused.path != models.path().join("clip/words/tags.txt"))
    );
}

#[test]
fn a_second_start_reads_nothing_again() {
    let (models, state) = (models::some(), tempfile::tempdir().unwrap());
    let path = models.path().join("blip/model.safetensors");
    start(models.path(), state.path(), "");
    // Only reading could tell: size, time and inode stay.
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(time)
        .unwrap();
    assert!(served(&start(models.path(), state.path(), "")).contains(&"caption"));
    // A stranger's note beside the file is no reading either, but another time is.
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    assert!(!served(&start(models.path(), state.path(), "")).contains(&"caption"));
}
