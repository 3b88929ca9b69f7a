#!/usr/bin/env bash
# Makes the Python environments of the benches' peers once, then runs its arguments with BENCH_PYTHON and
# BENCH_SDCPP_PYTHON set. Either can be set beforehand; a peer that cannot be had is left out with a word.
set -euo pipefail
cache="${HORDE_WORKERS_CACHE:-$HOME/.cache/horde-workers}/venvs"
mkdir -p "$cache"

# environment NAME PYTHON PACKAGES..: prints its Python, or nothing.
environment() {
  local folder="$cache/$1" python="$2"
  shift 2
  local wanted="$*"
  if [ "$(cat "$folder/bench.txt" 2>/dev/null)" != "$wanted" ]; then
    command -v "$python" >/dev/null || { echo "$python is not there: a peer is left out" >&2; return 0; }
    "$python" -m venv "$folder" >&2
    "$folder/bin/python" -m pip install -q --disable-pip-version-check "$@" >&2 || { echo "a peer is left out" >&2; return 0; }
    echo "$wanted" >"$folder/bench.txt"
  fi
  echo "$folder/bin/python"
}

[ -n "${BENCH_PYTHON:-}" ] || BENCH_PYTHON="$(environment bench-torch python3 torch==2.15.0 diffusers==0.42.1 transformers numpy Pillow safetensors spandrel onnxruntime onnx onnx2torch ncnn)"
[ -n "${BENCH_SDCPP_PYTHON:-}" ] || BENCH_SDCPP_PYTHON="$(environment bench-sdcpp python3 cyllama==0.2.18)"
for name in BENCH_PYTHON BENCH_SDCPP_PYTHON; do
  if [ -n "${!name}" ]; then export "${name?}"; else unset "$name"; fi
done
exec "$@"
