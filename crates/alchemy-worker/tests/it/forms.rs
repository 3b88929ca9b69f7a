use alchemy_worker::forms::task;
use horde_client::alchemy::Form;

/// Which of the files `there` serves a form where all are there; each is removed after it did, and the next one serves.
fn serve_in_turn(form: &Form, there: &[&str], beside: &[&str]) {
    let models = tempfile::tempdir().unwrap();
    for file in there.iter().chain(beside) {
        let path = models.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"word\n").unwrap();
    }
    for best in there {
        let path = models.path().join(best);
        let found = task(form, models.path()).unwrap();
        assert!(found.weights().contains(&path), "{form:?}: {found:?} and not {best}");
        std::fs::remove_file(&path).unwrap();
    }
    // What is missing is told by the best one's place, or its detector's.
    let missing = task(form, models.path()).unwrap_err();
    assert!(missing.starts_with(models.path()), "{form:?}: {}", missing.display());
}

#[test]
fn of_several_installed_networks_the_best_serves() {
    let blip = ["blip/large/tokenizer.json", "blip/base/tokenizer.json"];
    serve_in_turn(
        &Form::Caption,
        &["blip/large/model.safetensors", "blip/base/model.safetensors"],
        &blip,
    );
    // ViT-L/14 is what requesters expect, B/32 is for weak machines.
    serve_in_turn(
        &Form::Interrogation,
        &["clip/model.safetensors", "clip/vit-b-32/model.safetensors"],
        &["clip/words/tags.txt"],
    );
    serve_in_turn(
        &Form::Nsfw,
        &["nsfw/safety_checker.safetensors", "nsfw/open_nsfw.safetensors"],
        &[],
    );
    serve_in_turn(
        &Form::StripBackground,
        &[
            "rembg/u2net.safetensors",
            "rembg/isnet.safetensors",
            "rembg/u2netp.safetensors",
        ],
        &[],
    );
    serve_in_turn(
        &Form::Gfpgan,
        &[
            "gfpgan/detection_Resnet50_Final.safetensors",
            "gfpgan/retinaface_mobilenet0.25.safetensors",
        ],
        &["gfpgan/GFPGANv1.4.safetensors"],
    );
}
