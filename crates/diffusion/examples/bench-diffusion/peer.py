"""One stage of one peer in a process of its own: peer.py torch|sdcpp STAGE THREADS CHECKPOINT.

The last line is a JSON object: cpu_s and wall_s of the fastest repeat, peak_bytes of the process. torch builds its networks
from diffusers' and transformers' configurations with random numbers of its own; sd.cpp reads the checkpoint.
"""

import json
import os
import sys
import time

peer, stage, threads, checkpoint = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
os.environ["OMP_NUM_THREADS"] = str(threads)
os.environ["MKL_NUM_THREADS"] = str(threads)


def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def report(cpu_s, wall_s):
    # A plain exit would spend seconds on freeing memory and, in sd.cpp, on decoding.
    print(json.dumps({"cpu_s": cpu_s, "wall_s": wall_s, "peak_bytes": peak_bytes()}), flush=True)
    os._exit(0)


def run_torch():
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    for name in ["kaiming_uniform_", "uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "kaiming_normal_"]:
        setattr(torch.nn.init, name, lambda tensor, *a, **k: tensor)

    def randomised(model):
        for parameter in model.parameters():
            fan = max(1, parameter[0].numel()) if parameter.dim() > 1 else 2500
            parameter.data.uniform_(-(fan**-0.5), fan**-0.5)
        for module in model.modules():
            if isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm)):
                module.weight.data.add_(1.0)
        return model.eval()

    if stage == "unet-sd15":
        from diffusers import UNet2DConditionModel

        cross, plain = "CrossAttn{}Block2D", "{}Block2D"
        model = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            down_block_types=[b.format("Down") for b in (cross, cross, cross, plain)],
            up_block_types=[b.format("Up") for b in (plain, cross, cross, cross)],
            cross_attention_dim=768,
            attention_head_dim=8,
        )
        randomised(model)
        x, context = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
        work = lambda: model(x, 500, context)
    elif stage == "unet-sdxl":
        from diffusers import UNet2DConditionModel

        model = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280),
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=[1, 2, 2],
            cross_attention_dim=2048,
            attention_head_dim=[5, 10, 20],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        randomised(model)
        x, context = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 2048)
        extra = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.full((2, 6), 512.0)}
        work = lambda: model(x, 500, context, added_cond_kwargs=extra)
    elif stage == "vae":
        from diffusers import AutoencoderKL

        model = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        del model.encoder
        randomised(model)
        x = torch.randn(1, 4, 64, 64)
        work = lambda: model.decode(x)
    else:
        from transformers import CLIPTextConfig, CLIPTextModel

        sizes = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        model = randomised(CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_act="quick_gelu", **sizes)))
        ids = torch.randint(0, 49407, (2, 77))
        work = lambda: model(ids)

    times = []
    for _ in range(6 if stage == "text" else 2):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    report(min(t[0] for t in times), min(t[1] for t in times))


def run_sdcpp():
    from cyllama import sd

    # The times between the lines it logs; a step with guidance is two passes through the network.
    marks = {}

    def log(_level, text):
        now = (time.process_time(), time.perf_counter())
        if os.environ.get("PEER_LOG"):
            print(now, text.rstrip(), file=sys.stderr)
        for key, words in {
            "text": "get_learned_condition completed",
            "sampled": "sampling completed",
            "decoded": "computing vae",
            "decode": "decoding",
        }.items():
            if words in text and key not in marks:
                marks[key] = now
        if stage == "unet-sd15" and "sampled" in marks:
            start, end = marks["text"], marks["sampled"]
            report(end[0] - start[0], end[1] - start[1])
        if stage == "vae-small" and "decoded" in marks:
            start, end = marks["decode"], marks["decoded"]
            report(end[0] - start[0], end[1] - start[1])

    sd.set_log_callback(log)
    parameters = sd.SDContextParams(model_path=checkpoint, n_threads=threads)
    size = 512 if stage == "unet-sd15" else 256
    with sd.SDContext(parameters) as context:
        context.generate("a lighthouse", negative_prompt="blurred", width=size, height=size, sample_steps=1, cfg_scale=7.0)
    raise SystemExit("its log told no times")


run_torch() if peer == "torch" else run_sdcpp()
