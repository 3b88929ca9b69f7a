#!/usr/bin/env python3
"""LoRA files of every kind for the tiny SD 1 model and the weights that come of them: python loras.py MODEL OUT

Written from the papers and the file formats alone (LoRA, LyCORIS's LoCon, LoHa, LoKr and Tucker forms, DoRA), in f64.
Each OUT/KIND.safetensors is a LoRA; OUT/expected.safetensors holds `KIND/our name of the weight` at strength 0.7 on the
U-Net and -0.4 on the text encoder.
"""
import os, sys
import numpy as np
from safetensors.numpy import load_file, save_file as save

model, out = load_file(sys.argv[1]), sys.argv[2]
os.makedirs(out, exist_ok=True)
rng = np.random.default_rng(42)
LDM = {"unet.": "model.diffusion_model.", "clip_l.": "cond_stage_model.transformer."}
Q = ("unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
O = ("unet.input_blocks.2.1.transformer_blocks.0.attn1.to_out.0", "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0")
K = ("unet.middle_block.1.transformer_blocks.0.attn2.to_k", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
CONV = ("unet.out.2", "conv_out")
NORM = ("unet.out.0", "conv_norm_out")
TEXT = ("clip_l.text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.0.self_attn.q_proj")
expected = {}


def save_file(tensors, path):
    save({name: np.ascontiguousarray(value) if np.ndim(value) else np.array(value) for name, value in tensors.items()}, path)


def weight(ours, kind="weight"):
    for mine, theirs in LDM.items():
        if ours.startswith(mine):
            return model[theirs + ours[len(mine):] + "." + kind].astype(np.float64)


def strength(ours):
    return 0.7 if ours.startswith("unet.") else -0.4


def draw(*shape, spread=0.3):
    return rng.normal(0, spread, shape).astype(np.float32)


def keep(kind, ours, difference, what="weight", magnitude=None):
    w = weight(ours, what)
    difference = difference.reshape(w.shape)
    if magnitude is not None:
        v = w + difference
        # ComfyUI divides by the lengths of the changed weight's inputs, but by those of the plain weight's outputs.
        measured = w if magnitude.shape[0] == w.shape[0] else v
        axes = tuple(i for i in range(v.ndim) if magnitude.shape[i] == 1)
        difference = magnitude * v / np.sqrt((measured**2).sum(axis=axes, keepdims=True)) - w
    expected[f"{kind}/{ours}.{what}"] = (w + strength(ours) * difference).astype(np.float32)


def linear(ours, rank):
    o, i = weight(ours).shape[:2]
    return draw(o, rank), draw(rank, i)


def f64(*arrays):
    return [a.astype(np.float64) for a in arrays]


def prod(up, down, alpha=None):
    up, down = f64(up, down)
    return up @ down * (1 if alpha is None else alpha / down.shape[0])


# kohya: alpha in the file; a linear layer, LoCon on a convolution, a text encoder's layer
files, kind = {}, "kohya"
up, down = linear(Q[0], 4)
n = "lora_unet_" + Q[1].replace(".", "_")
files |= {f"{n}.lora_up.weight": up, f"{n}.lora_down.weight": down, f"{n}.alpha": np.float32(2)}
keep(kind, Q[0], prod(up, down, 2))
up, down = draw(4, 3, 1, 1), draw(3, 32, 3, 3)
files |= {"lora_unet_conv_out.lora_up.weight": up, "lora_unet_conv_out.lora_down.weight": down, "lora_unet_conv_out.alpha": np.array([1.5], np.float32)}
keep(kind, CONV[0], np.einsum("or,rikl->oikl", up[:, :, 0, 0].astype(np.float64), down.astype(np.float64)) * 0.5)
up, down = linear(TEXT[0], 2)
n = "lora_te_" + TEXT[1].replace(".", "_")
files |= {f"{n}.lora_up.weight": up.astype(np.float16), f"{n}.lora_down.weight": down.astype(np.float16), f"{n}.alpha": np.float16(1)}
keep(kind, TEXT[0], prod(up.astype(np.float16), down.astype(np.float16), 1))
save_file(files, f"{out}/{kind}.safetensors")

# kohya's scripts for larger models: names of the single-file layout; a core between the factors (Tucker)
files, kind = {}, "kohya_ldm"
up, down = linear(K[0], 4)
n = "lora_unet_" + K[0].removeprefix("unet.").replace(".", "_")
files |= {f"{n}.lora_up.weight": up, f"{n}.lora_down.weight": down, f"{n}.alpha": np.float32(4)}
keep(kind, K[0], prod(up, down, 4))
up, down, core = draw(4, 4, 1, 1), draw(4, 32, 1, 1), draw(4, 4, 3, 3)
n = "lora_unet_out_2"
files |= {f"{n}.lora_up.weight": up, f"{n}.lora_down.weight": down, f"{n}.lora_mid.weight": core, f"{n}.alpha": np.float32(1)}
keep(kind, CONV[0], np.einsum("op,pqkl,qi->oikl", *f64(up[:, :, 0, 0], core, down[:, :, 0, 0])) / 4)
save_file(files, f"{out}/{kind}.safetensors")

# PEFT: A and B, no alpha
files, kind = {}, "peft"
for prefix, (ours, theirs) in [("base_model.model.", Q), ("unet.", O), ("text_encoder.", TEXT)]:
    up, down = linear(ours, 3)
    files |= {f"{prefix}{theirs}.lora_B.weight": up, f"{prefix}{theirs}.lora_A.weight": down}
    keep(kind, ours, prod(up, down))
save_file(files, f"{out}/{kind}.safetensors")

# diffusers before PEFT: attention processors
files, kind = {}, "diffusers"
for ours, name in [(Q[0], "unet." + Q[1].replace("to_q", "processor.to_q")), (O[0], "unet." + O[1].replace("to_out.0", "processor.to_out"))]:
    up, down = linear(ours, 4)
    files |= {f"{name}_lora.up.weight": up, f"{name}_lora.down.weight": down}
    keep(kind, ours, prod(up, down))
up, down = linear(TEXT[0], 4)
files |= {f"text_encoder.{TEXT[1]}.lora_linear_layer.up.weight": up, f"text_encoder.{TEXT[1]}.lora_linear_layer.down.weight": down}
keep(kind, TEXT[0], prod(up, down))
save_file(files, f"{out}/{kind}.safetensors")

# LoHa: a product of two products; with cores, whose first factor is stored as (rank, out), also where rank and out are equal
files, kind = {}, "loha"
(a1, b1), (a2, b2) = linear(Q[0], 4), linear(Q[0], 4)
n = "lora_unet_" + Q[1].replace(".", "_")
files |= {f"{n}.hada_w1_a": a1, f"{n}.hada_w1_b": b1, f"{n}.hada_w2_a": a2, f"{n}.hada_w2_b": b2, f"{n}.alpha": np.float32(1)}
keep(kind, Q[0], prod(a1, b1) * prod(a2, b2) / 4)
parts = {}
for i in "12":
    parts |= {f"hada_w{i}_a": draw(4, 4), f"hada_w{i}_b": draw(4, 32), f"hada_t{i}": draw(4, 4, 3, 3)}
files |= {f"lora_unet_conv_out.{k}": v for k, v in parts.items()} | {"lora_unet_conv_out.alpha": np.float32(2)}
one, two = [np.einsum("pqkl,po,qi->oikl", *f64(parts[f"hada_t{i}"], parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"])) for i in "12"]
keep(kind, CONV[0], one * two * 0.5)
save_file(files, f"{out}/{kind}.safetensors")

# LoKr: Kronecker products of whole or factored parts, with and without a core
files, kind = {}, "lokr"
w1, a, b = draw(4, 4), draw(8, 2), draw(2, 8)
n = "lora_unet_" + Q[1].replace(".", "_")
files |= {f"{n}.lokr_w1": w1, f"{n}.lokr_w2_a": a, f"{n}.lokr_w2_b": b, f"{n}.alpha": np.float32(1)}
keep(kind, Q[0], np.kron(w1.astype(np.float64), prod(a, b)) / 2)
a1, b1, w2 = draw(2, 3), draw(3, 4), draw(8, 8)
n = "lora_te_" + TEXT[1].replace(".", "_")
files |= {f"{n}.lokr_w1_a": a1, f"{n}.lokr_w1_b": b1, f"{n}.lokr_w2": w2[:, :4].copy(), f"{n}.alpha": np.float32(6)}
keep(kind, TEXT[0], np.kron(prod(a1, b1), w2[:, :4].astype(np.float64)) * 2)
w1, a, b, core = draw(2, 4), draw(2, 2), draw(2, 8), draw(2, 2, 3, 3)
files |= {"lora_unet_conv_out.lokr_w1": w1, "lora_unet_conv_out.lokr_w2_a": a, "lora_unet_conv_out.lokr_w2_b": b, "lora_unet_conv_out.lokr_t2": core, "lora_unet_conv_out.alpha": np.float32(2)}
small = np.einsum("pqkl,po,qi->oikl", *f64(core, a, b))
keep(kind, CONV[0], np.einsum("ab,cdkl->acbdkl", w1.astype(np.float64), small))
w1, w2 = draw(4, 2), draw(8, 8)
n = "lora_unet_" + K[1].replace(".", "_")
files |= {f"{n}.lokr_w1": w1, f"{n}.lokr_w2": w2, f"{n}.alpha": np.float32(99)}  # whole parts know no rank, so no alpha
keep(kind, K[0], np.kron(*f64(w1, w2)))
save_file(files, f"{out}/{kind}.safetensors")

# whole differences of weights, biases and norms
files, kind = {}, "whole"
for ours, name, ending, what in [(Q, Q[1], "diff", "weight"), (CONV, CONV[1], "diff", "weight"), (CONV, CONV[1], "diff_b", "bias"), (NORM, NORM[1], "w_norm", "weight"), (NORM, NORM[1], "b_norm", "bias")]:
    d = draw(*weight(ours[0], what).shape)
    files[f"lora_unet_{name.replace('.', '_')}.{ending}"] = d
    keep(kind, ours[0], d.astype(np.float64), what)
save_file(files, f"{out}/{kind}.safetensors")

# DoRA: lengths per input (as first written) or per output
files, kind = {}, "dora"
for ours, shape in [(Q, (1, 32)), (O, (32, 1))]:
    up, down = linear(ours[0], 4)
    m = np.abs(draw(*shape)) + 0.5
    n = "lora_unet_" + ours[1].replace(".", "_")
    files |= {f"{n}.lora_up.weight": up, f"{n}.lora_down.weight": down, f"{n}.alpha": np.float32(2), f"{n}.dora_scale": m.astype(np.float32)}
    keep(kind, ours[0], prod(up, down, 2), magnitude=m.astype(np.float64))
up, down, m = draw(4, 2, 1, 1), draw(2, 32, 3, 3), (np.abs(draw(1, 32, 1, 1)) + 0.5).astype(np.float32)
files |= {"lora_unet_conv_out.lora_up.weight": up, "lora_unet_conv_out.lora_down.weight": down, "lora_unet_conv_out.dora_scale": m}
keep(kind, CONV[0], np.einsum("or,rikl->oikl", *f64(up[:, :, 0, 0], down)), magnitude=m.astype(np.float64))
save_file(files, f"{out}/{kind}.safetensors")
save_file(expected, f"{out}/expected.safetensors")
