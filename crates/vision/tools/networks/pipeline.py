"""Faces of a photograph found, turned upright, repaired, parsed and laid back, through CodeFormer's facelib as the Horde's image workers call it.

RetinaFace has its real weights, GFPGAN and ParseNet random ones, the same in both programs.
"""
import os
import sys
import types

import cv2
import numpy as np
import torch
from facexlib.parsing.parsenet import ParseNet
from safetensors.torch import load_file
from case import cut, planes, sized
from faces import gfpgan_net
from weights import fill, kept, settle

# What facelib's package imports and never calls here.
for name in ("lpips", "torchvision.transforms.functional_tensor"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torchvision.transforms.functional_tensor"].rgb_to_grayscale = None
import codeformer.facelib.utils.face_restoration_helper as facelib  # noqa: E402
from codeformer.facelib.detection.retinaface.retinaface import RetinaFace  # noqa: E402

#: Pictures, and the most that a byte may differ by within the squares that faces were laid in, on average and at most. The
#: reference enlarges a small picture and shrinks it again, which blurs it; ours leaves what is no face as it was.
PICTURES = {
    "one face": (lambda: portrait(512), 0.4, 12),
    "two faces in a large picture": (lambda: torch.cat([portrait(700), turned(portrait(700), -15)], dim=1), 0.4, 12),
    "cut off, turned, small": (lambda: turned(cut("astronaut", 120, 0, 260, 260), 25)[40:, :160].contiguous(), 2.5, 70),
}


def portrait(side):
    return sized(cut("astronaut", 0, 0, 512, 512), side, side)


def turned(picture, degrees):
    height, width, _ = picture.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return torch.from_numpy(cv2.warpAffine(picture.numpy(), turn, (width, height), borderMode=cv2.BORDER_REFLECT))


def detector():
    """The network with its real weights, whose batch norms are folded into the convolutions."""
    folded = load_file(os.path.join(os.environ["HORDE_WORKERS_MODELS"], "gfpgan", "retinaface_mobilenet0.25.safetensors"))
    net = RetinaFace(network_name="mobile0.25")
    state = net.state_dict()
    for key in state:
        part, _, end = key.rpartition(".")
        if end in ("running_mean", "num_batches_tracked"):
            state[key] = torch.zeros_like(state[key])
        elif end == "running_var":
            state[key] = torch.full_like(state[key], 1.0 - 1e-5)
        elif f"{part}.running_var" in state:
            before = part.rpartition(".")
            state[key] = torch.ones_like(state[key]) if end == "weight" else folded[f"{before[0]}.{int(before[2]) - 1}.bias"]
        elif key in folded:
            state[key] = folded[key]
    net.load_state_dict(state)
    return net.eval(), folded


def networks():
    face = planes(sized(cut("astronaut", 140, 20, 180, 180), 512, 512), signed=True)
    restorer = gfpgan_net()
    # Colours between black and white.
    for name, value in restorer.state_dict().items():
        if "to_rgb" in name and "modulation" not in name:
            value.div_(16)
    parser = fill(ParseNet(in_size=512, out_size=512, parsing_ch=19))
    settle(parser, face)
    return detector(), restorer, parser


def reference(picture, finder, restorer, parser):
    """The picture as facelib gives it, and where its faces were laid."""
    facelib.init_detection_model = lambda *_, **__: finder
    facelib.init_parsing_model = lambda **_: parser
    # The image workers' copy takes grey pictures as all others.
    facelib.is_gray = lambda *_, **__: False
    helper = facelib.FaceRestoreHelper(1, face_size=512, crop_ratio=(1, 1), det_model="retinaface", save_ext="png", use_parse=True, device="cpu")
    helper.read_image(picture.numpy()[:, :, ::-1].astype(np.float32))
    helper.get_face_landmarks_5(only_center_face=False, resize=640, eye_dist_threshold=5)
    helper.align_warp_face()
    for face in helper.cropped_faces:
        x = torch.from_numpy((face / 255.0)[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() * 2 - 1
        y = restorer(x, return_rgb=False, randomize_noise=False)[0][0].clamp(-1, 1)
        made = ((y + 1) / 2).permute(1, 2, 0).numpy()[:, :, ::-1]
        helper.add_restored_face((made * 255.0).round().astype("uint8"))
    helper.get_inverse_affine(None)
    with np.errstate(all="ignore"):
        pasted = helper.paste_faces_to_input_image()[:, :, ::-1]
    height, width, _ = picture.shape
    if pasted.shape[:2] != (height, width):
        pasted = cv2.resize(pasted, (width, height), interpolation=cv2.INTER_LINEAR)
    inside = np.zeros((height, width), np.float32)
    for matrix in helper.inverse_affine_matrices:
        matrix = matrix * (min(height, width) / min(helper.input_img.shape[:2]))
        inside = np.maximum(inside, cv2.warpAffine(np.ones((512, 512), np.float32), matrix, (width, height)))
    return torch.from_numpy(np.ascontiguousarray(pasted)), torch.from_numpy(inside > 0), len(helper.cropped_faces)


def weights_of(folded, restorer, parser):
    parts = {"detector": folded, "restorer": kept(restorer), "parser": kept(parser)}
    return {f"{part}.{key}": value for part, tensors in parts.items() for key, value in tensors.items()}
