//! Where the real model lies.

use std::path::PathBuf;

/// SmolLM2-135M-Instruct; fails where it is missing.
pub fn smollm2() -> PathBuf {
    let path = test_support::models_dir().join("text/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        path.exists(),
        "`{}` is missing; hint: `./x models smollm2-135m-instruct` fetches it",
        path.display()
    );
    path
}
