#!/usr/bin/env python3
"""Further cases in the layout of the fixtures: python cases.py FIXTURES OUT, then `just fidelity OUT`.

Needs torch, diffusers, transformers, tokenizers, safetensors, Pillow and K_DIFFUSION (see engine.py).
"""
import json, os, shutil, sys
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
import engine

root, out = sys.argv[1:3]
only = sys.argv[3] if len(sys.argv) > 3 else ""
os.makedirs(f"{out}/inputs", exist_ok=True)
if not os.path.exists(f"{out}/models"):
    os.symlink(f"{root}/models", f"{out}/models")
shutil.copy(f"{root}/compare.py", out)
manifest = json.load(open(f"{root}/manifest.json"))
rng = np.random.default_rng(7)
for w, h in [(104, 72), (96, 64), (64, 64), (128, 128)]:
    y, x = np.mgrid[0:h, 0:w]
    waves = [127 + 120 * np.sin(x / (5 + 3 * c) + c) * np.cos(y / (7 - c)) for c in range(3)]
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(f"{out}/inputs/waves_{w}x{h}.png")
    soft = 255 / (1 + np.exp((np.hypot(x - w * 0.45, y - h * 0.6) - min(w, h) * 0.3) / 3))
    Image.fromarray(soft.astype(np.uint8)).save(f"{out}/inputs/soft_{w}x{h}.png")

stacks = {}


def stack(name):
    if name not in stacks:
        folder, unet = f"{root}/diffusers_layouts/{name.removesuffix('_inpaint')}", None
        if name.endswith("_inpaint"):
            from diffusers import UNet2DConditionModel
            from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
            config = {**json.load(open(f"{folder}/unet/config.json")), "in_channels": 9}
            unet = UNet2DConditionModel.from_config(config).eval()
            weights = load_file(f"{root}/{manifest['models'][name]['file']}")
            weights = {k if k.startswith("model.diffusion_model.") else f"model.diffusion_model.{k}": v.float() for k, v in weights.items()}
            unet.load_state_dict(convert_ldm_unet_checkpoint(weights, config))
        stacks[name] = engine.Stack(folder, unet, f"{root}/tokenizers/clip_tokenizer.json")
    return stacks[name]


BASE = dict(prompt="a lighthouse on a cliff at dawn, thick paint ### people, text", width=64, height=64, ddim_steps=7, cfg_scale=6.5, seed=77, sampler_name="k_euler", karras=True, clip_skip=1)
cases = []


def case(group, id, model="sd15", **inputs):
    if only not in f"{group}/{id}":
        return
    inputs = {**BASE, **inputs}
    torch.manual_seed(0)
    tensors, pictures = stack(model).generate(inputs, out)
    # Samplers that ask between two levels can meet two equally near timesteps; then the last digit of a logarithm decides,
    # or the last digits of the sample where they choose the steps. No other implementation need share those, so the limit
    # is what they do to this case, or a five-hundredth of the spread.
    this, moved = stack(model), 0.0
    if inputs["sampler_name"] in ("k_dpmpp_2s_a", "k_dpm_adaptive"):
        for nudge, stretch in [(-3e-7, 1), (3e-7, 1), (0, 1 + 1e-6), (0, 1 - 1e-6), (0, 1 + 3e-6), (0, 1 - 3e-6)]:
            this.levels.nudge, this.stretch = nudge, stretch
            moved = max(moved, (this.generate(inputs, out)[0]["latent"] - tensors["latent"]).abs().max().item())
        this.levels.nudge, this.stretch = 0.0, 1.0
    folder = f"{out}/cases/{group}"
    os.makedirs(folder, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, f"{folder}/{id}.safetensors")
    Image.fromarray(pictures[0]).save(f"{folder}/{id}.png")
    limit = max(2e-3, 2e-3 * float(tensors["latent"].std()), 1.5 * moved)
    image = {"max_abs": 3, "psnr": 60.0} if moved < 0.01 else {"max_abs": 8, "psnr": 48.0}
    expect = [{"tensor": "latent", "max_abs": limit}, {"image": True, "ssim": 0.999, **image}, {"tensor": "cond", "max_abs": 2e-4}, {"tensor": "sigmas", "max_abs": 2e-5, "rel": 2e-6}]
    cases.append(dict(id=id, group=group, model=model, inputs=inputs, files=dict(tensors=f"cases/{group}/{id}.safetensors", image=f"cases/{group}/{id}.png"), expect=expect, notes="diffusers + k-diffusion", measured={"last_digit": moved}, tensor_names=sorted(tensors)))


SAMPLERS = ["k_lms", "k_heun", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a", "k_dpm_fast", "k_dpm_adaptive", "k_dpmpp_2s_a", "k_dpmpp_2m", "k_dpmpp_sde", "DDIM", "dpmsolver", "lcm"]
for i, sampler in enumerate(SAMPLERS):
    for j, schedule in enumerate(["normal", "karras", "simple", "exponential", "sgm_uniform"]):
        case("grid", f"{sampler.lower()}_{schedule}", sampler_name=sampler, scheduler=schedule, seed=1000 + 10 * i + j)
for w, h in [(104, 72), (72, 136), (200, 88)]:
    case("odd", f"sd15_{w}x{h}", width=w, height=h, seed=w, sampler_name="k_dpmpp_2m")
    case("odd", f"sdxl_{w}x{h}", model="sdxl", width=w, height=h, seed=h, sampler_name="k_heun", clip_skip=2)
for seed in [0, 2**32 - 1, 2**40 + 42, 2**62 + 1]:
    case("seeds", f"s{seed}", seed=seed, sampler_name="k_euler_a")
case("batches", "b3_euler_a", batch=3, sampler_name="k_euler_a")
case("batches", "b3_sde_xl", model="sdxl", batch=3, sampler_name="k_dpmpp_sde", clip_skip=2)
case("skips", "sd15_2", clip_skip=2)
case("skips", "sdxl_1", model="sdxl", clip_skip=1)
case("skips", "sdxl_3", model="sdxl", clip_skip=3)
for model in ["sd15", "sdxl"]:
    case("tiles", f"{model}_96x64", model=model, width=96, tiling=True, clip_skip=2)
    case("tiles", f"{model}_source", model=model, tiling=True, clip_skip=2, source_image="waves_64x64.png", source_processing="img2img", denoising_strength=0.5)
for denoise in [0.05, 0.25, 0.5, 0.77, 0.99, 1.0]:
    case("source", f"d{denoise}", width=104, height=72, source_image="waves_104x72.png", source_processing="img2img", denoising_strength=denoise, sampler_name="k_dpmpp_2m")
    case("source", f"xl_d{denoise}", model="sdxl", clip_skip=2, source_image="waves_64x64.png", source_processing="img2img", denoising_strength=denoise, sampler_name="k_euler_a", batch=2)
for model in ["sd15", "sd15_inpaint"]:
    for sampler in ["k_euler", "DDIM", "k_dpmpp_sde", "k_euler_a"]:
        for denoise in [1.0, 0.6]:
            case("masks", f"{model}_{sampler.lower()}_{denoise}", model=model, width=104, height=72, source_image="waves_104x72.png", source_mask="soft_104x72.png", source_processing="inpainting", denoising_strength=denoise, sampler_name=sampler, batch=2)
case("masks", "sd15_soft", width=96, source_image="waves_96x64.png", source_mask="soft_96x64.png", source_processing="img2img", denoising_strength=0.8)
case("masks", "sdxl_soft", model="sdxl", clip_skip=2, source_image="waves_64x64.png", source_mask="soft_64x64.png", source_processing="img2img", denoising_strength=0.8)
case("masks", "inpaint_model_alone", model="sd15_inpaint")
case("guidance", "one", cfg_scale=1)
case("guidance", "high", cfg_scale=25)
case("steps", "one", ddim_steps=1)
case("steps", "two_2m", ddim_steps=2, sampler_name="k_dpmpp_2m")
case("steps", "forty", ddim_steps=40, sampler_name="k_heun")
manifest["cases"] = cases
manifest["reference"] = "diffusers networks, k-diffusion samplers"
json.dump(manifest, open(f"{out}/manifest.json", "w"))
print(len(cases), "cases")
