#!/usr/bin/env python3
"""A U-Net with another number of heads on each level and diffusers' answer to one call: python heads.py OUT

All levels are equally wide, so the numbers cannot be told from the widths. Random weights; their queries are large, so
that the split into heads matters.
"""
import json, os, sys
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

out = sys.argv[1]
os.makedirs(f"{out}/unet", exist_ok=True)
torch.manual_seed(11)
torch.set_grad_enabled(False)
config = dict(
    block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16, sample_size=16,
    attention_head_dim=(2, 8, 4), down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3,
)
net = UNet2DConditionModel(**config).eval()
for name, weight in net.named_parameters():
    if name.endswith(("to_q.weight", "to_k.weight")):
        weight *= 4
    weight.copy_(weight.half().float())
save_file({name: value.half().contiguous() for name, value in net.state_dict().items()}, f"{out}/unet/diffusion_pytorch_model.safetensors")
kept = {"attention_head_dim", "block_out_channels", "norm_num_groups"}
json.dump({name: value for name, value in config.items() if name in kept}, open(f"{out}/unet/config.json", "w"))
case = {"x": torch.randn(1, 4, 16, 16), "t": torch.tensor([321.0]), "context": torch.randn(1, 7, 16)}
case["out"] = net(case["x"], case["t"], case["context"]).sample
save_file({name: value.contiguous() for name, value in case.items()}, f"{out}/case.safetensors")
for wrong in [(4, 4, 4), (2, 8, 8), (2, 4, 4), (8, 8, 4)]:
    other = UNet2DConditionModel(**{**config, "attention_head_dim": wrong}).eval()
    other.load_state_dict(net.state_dict())
    apart = (other(case["x"], case["t"], case["context"]).sample - case["out"]).abs().max()
    print(f"with {wrong}: {apart:.4f}")
