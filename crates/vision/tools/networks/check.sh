#!/usr/bin/env bash
# Installs the packages of the references once, beside BENCH_PYTHON's own, and runs check.py: check.sh PROGRAM [WORD]..
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
[ -n "${BENCH_PYTHON:-}" ] || { echo "there is no Python with torch: the references cannot be run" >&2; exit 1; }
folder="${HORDE_WORKERS_CACHE:-$HOME/.cache/horde-workers}/venvs/networks"
wanted="spandrel_extra_arches==0.2.0 facexlib==0.3.0 opencv-python-headless==5.0.0.93 backgroundremover==0.4.5 dis-inference==1.1.3 codeformer-pip==0.0.4"
if [ "$(cat "$folder/wanted.txt" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$folder"
  # Without what they depend on: only their networks' code is run. (dis-inference is AGPL and
  # codeformer-pip is for research only: they are run to compare, nothing here is made of them.)
  # shellcheck disable=SC2086
  "$BENCH_PYTHON" -m pip install -q --disable-pip-version-check --no-deps --target "$folder" $wanted
  echo "$wanted" >"$folder/wanted.txt"
fi
PYTHONPATH="$folder" exec nice "$BENCH_PYTHON" -W ignore "$here/check.py" "$@"
