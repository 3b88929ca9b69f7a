//! Where the real model lies.

use std::path::PathBuf;

/// SmolLM2-135M-Instruct; fails where it is missing.
pub fn smollm2() -> PathBuf {
    let folder = std::env::var_os("HORDE_WORKERS_MODELS")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let home = std::env::var_os("HOME").expect("HOME is set");
            PathBuf::from(home).join(".cache/horde-workers/models")
        });
    let path = folder.join("text/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        path.exists(),
        "`{}` is missing; hint: `./x models smollm2-135m-instruct` fetches it",
        path.display()
    );
    path
}
