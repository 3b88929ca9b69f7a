//! What dreamer refuses to begin with, as its owner sees it: the exit code, the fact, and what to do.

use std::path::Path;
use std::process::Command;

use e2e::demo::dreamer::settings;
use e2e::programs::built;
use local_horde::WORKER_KEY;

/// Exit code and error output of `dreamer run` with these settings beside the tiny model's.
fn refused(models: &Path, more: &[(&str, &str)]) -> (Option<i32>, String) {
    let state = tempfile::tempdir().expect("a folder");
    let output = Command::new(built("dreamer").expect("it is built"))
        .arg("run")
        // Nobody answers there; it must not come to that.
        .env("HORDE_URL", "http://127.0.0.1:9/api")
        .env("HORDE_API_KEY", WORKER_KEY)
        .env("HORDE_WORKER_NAME", "a refused dreamer")
        .env("HORDE_STATE_DIR", state.path())
        .env("XDG_CONFIG_HOME", state.path())
        .env("DREAMER_UNCHECKED_ON_LOOPBACK", "true")
        .envs(settings(models).expect("the tiny model is part of the repository"))
        .envs(more.iter().copied())
        .output()
        .expect("it runs");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn dreamer_claims_nothing_that_build_and_weights_cannot_keep() {
    let models = tempfile::tempdir().expect("a folder");
    let check = |more: &[(&str, &str)], code: i32, said: &[&str]| {
        let (exit, errors) = refused(models.path(), more);
        assert_eq!(exit, Some(code), "{more:?}: {errors}");
        for part in said {
            assert!(errors.contains(part), "{more:?} is missing \"{part}\": {errors}");
        }
    };
    check(
        &[("HORDE_BRIDGE_AGENT", "AI Horde Worker reGen:13.0.0:test")],
        78,
        &["`qr_code`", "hint: `AI Horde Worker reGen:6:"],
    );
    let no_network = [
        "`dreamer.allow_post_processing` is `true`",
        "is not installed",
        "hint: ",
    ];
    check(&[("DREAMER_ALLOW_POST_PROCESSING", "true")], 78, &no_network);
    check(
        &[("DREAMER_MODELS", "tiny-shape")],
        78,
        &["`tiny-shape`", "`tiny-shapes`"],
    );
    let no_check = ["no picture leaves this machine unchecked", "hint: "];
    check(&[("DREAMER_UNCHECKED_ON_LOOPBACK", "false")], 66, &no_check);
}
