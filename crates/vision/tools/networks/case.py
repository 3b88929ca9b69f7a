"""What a case is, and the photographs that cases look at."""
import dataclasses
import os
import unittest.mock

import numpy as np
import torch
from PIL import Image

PHOTOS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../../tests/photos")


@dataclasses.dataclass
class Case:
    """A network of one `kind` of ours with its `weights`, and what it is `given`.

    `expected` are the reference's answers in f64, `rounded` the same in f32: how far the two are apart says how much the numbers
    depend on rounding, and with it how far ours may be. Answers without a rounded twin (tokens, decisions) must be equal, those
    with an entry in `limits` may differ by that.
    """

    kind: str
    weights: dict
    given: dict
    expected: dict
    rounded: dict
    limits: dict = dataclasses.field(default_factory=dict)


def twice(net, run, *given):
    """The answers of `run(net, *given)` in f64 and in f32, as `expected` and `rounded` of a case."""
    rounded = run(net, *given)
    # Where the reference asks for f32 by name it gets f64 too.
    with unittest.mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        exact = run(net.double(), *(x.double() if x.is_floating_point() else x for x in given))
    return exact, rounded


def cut(name, left, top, width, height):
    """A piece of a photograph as (height, width, 3) bytes."""
    photo = np.asarray(Image.open(os.path.join(PHOTOS, name + ".png")).convert("RGB"))
    piece = photo[top : top + height, left : left + width]
    assert piece.shape[:2] == (height, width), (name, photo.shape)
    return torch.from_numpy(piece.copy())


def sized(picture, width, height):
    return torch.from_numpy(np.asarray(Image.fromarray(picture.numpy()).resize((width, height), Image.BICUBIC)).copy())


def planes(picture, signed=False):
    """(h, w, 3) bytes to (1, 3, h, w) from 0 to 1, or from -1 to 1."""
    x = (picture.float() / 255).permute(2, 0, 1)[None].contiguous()
    return x * 2 - 1 if signed else x
