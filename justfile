# The real recipes behind ./x. `just` alone lists them.

set shell := ["bash", "-euo", "pipefail", "-c"]

export LLAMA_LIB_PROFILE := "Release"
export CMAKE_BUILD_PARALLEL_LEVEL := `nproc 2>/dev/null || echo 2`
target := absolute_path(env("CARGO_TARGET_DIR", "target"))
programs := target / "debug"
export HORDE_WORKERS_MODELS := env("HORDE_WORKERS_MODELS", env("HOME") / ".cache/horde-workers/models")

_default:
    @just --list --unsorted

# Show every worker at work against a Horde on this machine: `just demo`, `just demo scribe --json`
demo worker="scribe" *args:
    just _demo-{{ worker }} {{ args }}

_demo-scribe *args:
    cargo build -p scribe -p local-horde -p model-store -p e2e --bins
    {{ programs }}/model-store pull smollm2-135m-instruct --to "$HORDE_WORKERS_MODELS"
    {{ programs }}/demo scribe {{ args }}

_demo-dreamer *args:
    cargo build -p dreamer -p local-horde -p e2e --bins
    {{ programs }}/demo dreamer {{ args }}

_demo-alchemist *args:
    cargo build -p alchemist -p local-horde -p model-store -p e2e --bins
    {{ programs }}/model-store pull realesrgan-x4plus realesrgan-x4plus-anime-6b u2netp open-nsfw retinaface-mobilenet0.25 \
        --to "$HORDE_WORKERS_MODELS"
    cargo build -p vision --example look
    {{ programs }}/demo alchemist {{ args }}

# Everything CI checks
test: fmt lint compile _test-model unit doc check-cards deny

# Runtime figures with a stub engine beside their targets: `just bench-runtime --json`
bench-runtime *args:
    cargo run -q -p worker-runtime --example bench-runtime -- {{ args }}

# Scribe's batching in tokens per CPU second, and beside two Python packages' llama.cpp: `just bench-scribe --peer --json`
bench-scribe *args: (models "smollm2-135m-instruct")
    cargo run -q -p textgen --example bench-scribe -- "$HORDE_WORKERS_MODELS/text/SmolLM2-135M-Instruct.Q4_1.gguf" {{ args }}

# Ten greedy texts beside a Python package's llama.cpp, ours built without contracted operations as that one is: all must be identical
check-greedy: (models "smollm2-135m-instruct")
    CFLAGS=-ffp-contract=off CXXFLAGS=-ffp-contract=off CARGO_TARGET_DIR="{{ target }}/uncontracted" \
        cargo run -q -p textgen --example bench-scribe -- "$HORDE_WORKERS_MODELS/text/SmolLM2-135M-Instruct.Q4_1.gguf" --greedy

# Scribe's jobs an hour beside a serial loop, 300 ms from the Horde (`just bench-scribe --peer` once before it installs the loop's llama.cpp)
bench-jobs: (models "smollm2-135m-instruct")
    cargo build -q -p scribe -p local-horde
    "$HOME/.cache/horde-workers/venvs/xllamacpp/bin/python" tests/tools/bench_jobs.py {{ programs }} \
        "$HORDE_WORKERS_MODELS/text/SmolLM2-135M-Instruct.Q4_1.gguf"

# Scribe's chat jobs, every recorded pop and submit held against horde-sdk's own models (Python 3.12 or newer)
check-chat: (models "smollm2-135m-instruct")
    cargo build -q -p scribe -p local-horde
    python3 tests/tools/chat_sdk.py {{ programs }} "$HORDE_WORKERS_MODELS"

# The bridge and scribe before a real KoboldCpp (docs/OPERATING.md): `just check-kobold PATH/koboldcpp.py`
check-kobold path: (models "smollm2-135m-instruct")
    cargo build -q -p scribe -p local-horde
    KOBOLDCPP="$(realpath {{ path }})" cargo nextest run -p textgen -p e2e --run-ignored only -E 'test(real_kobold)' --test-threads 1

# Our CPU kernels beside candle's own operations: `just bench-kernels --json`
bench-kernels *args:
    cargo run -q -p tensor-ops --example bench-kernels -- {{ args }}

# Diffusion stages beside torch with diffusers and stable-diffusion.cpp, fetched into environments of their own: `just bench-diffusion --json`
bench-diffusion *args:
    BENCH_DIR="${BENCH_DIR:-$HOME/.cache/horde-workers/bench}" crates/diffusion/examples/bench-diffusion/peers.sh \
        cargo run -q -p diffusion --example bench-diffusion -- {{ args }}

# Vision networks beside torch, ncnn and onnxruntime, their numbers compared: `just bench-vision --json`
bench-vision *args: (models "realesrgan-x4plus" "realesr-animevideov3" "u2netp" "open-nsfw" "retinaface-mobilenet0.25")
    export BENCH_DIR="${BENCH_DIR:-$HOME/.cache/horde-workers/bench}"; \
        crates/diffusion/examples/bench-diffusion/peers.sh crates/vision/tools/peer_wheels.sh "$BENCH_DIR/wheels" \
        cargo run -q -p vision --example bench-vision -- {{ args }}

# Vision networks in their published sizes against the reference packages, with random weights (ten minutes): `just check-networks dat blip`
check-networks *words: (models "realesrgan-x4plus" "realesrgan-x4plus-anime-6b" "realesr-animevideov3" "retinaface-mobilenet0.25")
    cargo build -q -p vision --example check-network
    crates/diffusion/examples/bench-diffusion/peers.sh crates/vision/tools/networks/check.sh {{ programs }}/examples/check-network {{ words }}

# Diffusion against a manifest of reference cases (needs Python with numpy and Pillow): `just fidelity PATH`
fidelity path *args:
    cargo run -q -p diffusion --bin fidelity -- {{ path }} {{ args }}

# Tune the thresholds of the content check on a labelled set (docs/SAFETY.md): `just safety-calibrate report --clip FILE --set SET`
safety-calibrate *args:
    cargo run -q -p vision --bin safety-calibrate -- {{ args }}

# Downloads beside aria2c (apt-get install aria2): `just bench-download --json`
bench-download *args:
    cargo run -q -p model-store --example bench-download -- {{ args }}

# Formatting
fmt:
    cargo fmt --all --check

# Lints, warnings denied
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Every test and the programs they start, in one set of features: a second set would build the engines twice
compile:
    cargo nextest run --workspace --no-run

# The model that tests read, fetched by the program that was just built
_test-model:
    {{ programs }}/model-store pull smollm2-135m-instruct realesrgan-x4plus realesrgan-x4plus-anime-6b realesr-animevideov3 \
        u2netp open-nsfw --to "$HORDE_WORKERS_MODELS"

# All tests, end-to-end ones included
unit *args:
    cargo nextest run --workspace {{ args }}

# Examples in the documentation
doc:
    cargo test --workspace --doc -q

# The code for NVIDIA's cards, type-checked without a toolkit (stand-ins answer for nvcc and git)
check-cards:
    PATH="$PWD/tests/no-toolkit:$PATH" NVCC="$PWD/tests/no-toolkit/nvcc" CUDA_HOME="$PWD/tests/no-toolkit" CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=12090 \
        CUDAFORGE_HOME="{{ target }}/cards/cudaforge" CARGO_TARGET_DIR="{{ target }}/cards" \
        cargo check -q -p dreamer -p alchemist --features dreamer/cuda,dreamer/cudnn,dreamer/flash-attn,alchemist/cuda,alchemist/cudnn,alchemist/flash-attn

# Licences, bans and sources of dependencies
deny:
    cargo deny --all-features check --hide-inclusion-graph licenses bans sources

# Known vulnerabilities (needs the advisory database from the network)
audit:
    cargo deny check advisories

# Fetch models for tests and demos: progress, resume, sha256
models *names:
    cargo run -q -p model-store --bin model-store -- pull {{ names }} --to "$HORDE_WORKERS_MODELS"
