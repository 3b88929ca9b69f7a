#!/usr/bin/env python3
"""Holds our networks against the reference's in their published sizes, with random weights: check.py PROGRAM [WORD]..

PROGRAM is the example `check-network`; with WORDs only networks whose names have one of them are looked at. Prints network,
difference, limit and OK or FAIL, and exits with 1 if any failed. Weights are written to a temporary folder, one file at a time.
"""
import gc
import os
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
torch.set_grad_enabled(False)

#: How many times farther from the reference in f64 ours may be than the reference's own f32: Winograd's convolutions round more.
FACTOR = 10

import cutouts, faces, pipeline, tiles, upscalers, words  # noqa: E402


def main():
    program, wanted = sys.argv[1], [word.lower() for word in sys.argv[2:]]
    failed = []
    for module in (upscalers, tiles, faces, cutouts, words):
        for name, make in module.CASES.items():
            if wanted and not any(word in name.lower() for word in wanted):
                continue
            if not (check_tiles if module is tiles else check)(program, name, make):
                failed.append(name)
            gc.collect()
    if not wanted or any(word in "face pipeline" for word in wanted):
        failed += check_pipeline(program)
    print(f"{len(failed)} failed" + "".join(f"\n  {name}" for name in failed))
    return 1 if failed else 0


def run(program, kind, weights, given):
    """What ours makes, or nothing where it fails."""
    with tempfile.TemporaryDirectory(prefix="check-network-") as folder:
        path = lambda end: os.path.join(folder, end + ".safetensors")
        save_file(weights, path("weights"))
        save_file({key: value.contiguous() for key, value in given.items()}, path("given"))
        ran = subprocess.run([program, kind, path("weights"), path("given"), path("result")], capture_output=True, text=True)
        if ran.returncode == 0:
            return load_file(path("result"))
        print(f"{kind} FAIL {ran.stderr.strip()}")
    return None


def check(program, name, make):
    start = time.process_time()
    torch.manual_seed(1)
    case = make()
    theirs = time.process_time() - start
    made = run(program, case.kind, case.weights, case.given)
    if made is None:
        return False
    is_right = True
    for key, expected in case.expected.items():
        label = name if len(case.expected) == 1 else f"{name}: {key}"
        apart, spread = difference(made[key], expected)
        if key in case.limits:
            limit = case.limits[key]
        elif key in case.rounded:
            # The reference's own rounding, or what one rounding per number makes where that is luckily small.
            rounding, _ = difference(case.rounded[key], expected)
            apart, limit = apart / spread, FACTOR * max(rounding / spread, 2.0**-22)
        else:
            limit = 0.0
        ok = apart <= limit
        is_right &= ok
        print(f"{label:52} {apart:8.1e} <= {limit:7.1e}  {'OK' if ok else 'FAIL'}", flush=True)
    print(f"  ({theirs:.1f} s of the reference with weights)", flush=True)
    return is_right


def check_tiles(program, name, make):
    weights, picture, most_mean, most = make()
    made = run(program, "tiles", weights, {"picture": picture, "tilings": torch.tensor([tiles.TILING])})
    if made is None:
        return False
    apart = made["tiled0"].float() - made["whole"].float()
    mean, largest = float(apart.abs().mean()), int(apart.abs().max())
    in_fades, elsewhere = tiles.roughness(apart, apart.shape[1] // picture.shape[1])
    most_rough = max(tiles.SEAM * elsewhere, tiles.SEEN)
    ok = mean <= most_mean and largest <= most and in_fades <= most_rough
    within = f"mean {mean:.4f} <= {most_mean}, largest {largest} <= {most} of 255"
    print(f"{name:52} {within}, steps where tiles fade {in_fades:.2f} <= {most_rough:.2f}  {'OK' if ok else 'FAIL'}", flush=True)
    return ok


def check_pipeline(program):
    """Names of pictures whose repaired faces differ; with CHECK_PICTURES the pictures are left in that folder."""
    failed = []
    (finder, folded), restorer, parser = pipeline.networks()
    weights = pipeline.weights_of(folded, restorer, parser)
    for name, (make, most_mean, most) in pipeline.PICTURES.items():
        picture = make()
        expected, inside, n_faces = pipeline.reference(picture, finder, restorer, parser)
        made = run(program, "repair", weights, {"picture": picture})
        label = f"face pipeline, {name}"
        if made is None:
            failed.append(label)
            continue
        apart = (made["picture"].float() - expected.float()).abs()
        untouched = (made["picture"].float() - picture.float()).abs()[~inside]
        changed = float((expected.float() - picture.float()).abs()[inside].mean())
        mean, largest, outside = float(apart[inside].mean()), int(apart[inside].max()), int(untouched.max())
        ok = n_faces == int(made["faces"]) and mean <= most_mean and largest <= most and outside == 0
        within = f"mean {mean:.2f} <= {most_mean}, largest {largest} <= {most} of 255 (where {changed:.0f} changed)"
        print(f"{label:52} {n_faces} laid back: {within}, outside {outside} <= 0  {'OK' if ok else 'FAIL'}", flush=True)
        if not ok:
            failed.append(label)
        if folder := os.environ.get("CHECK_PICTURES"):
            from PIL import Image

            for end, shown in (("before", picture), ("reference", expected), ("ours", made["picture"])):
                Image.fromarray(shown.numpy()).save(os.path.join(folder, f"{name} {end}.png"))
    return failed


def difference(got, expected):
    """The largest difference of a number, and the expected numbers' standard deviation."""
    got, expected = got.reshape(-1).double(), expected.reshape(-1).double()
    if got.numel() != expected.numel():
        return float("inf"), 1.0
    return float((got - expected).abs().max()), max(float(expected.std(correction=0)), 1e-30)


if __name__ == "__main__":
    sys.exit(main())
