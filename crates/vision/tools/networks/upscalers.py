"""Upscalers through spandrel (MIT): architecture, sizes and scale as the published files have them."""
import os

from safetensors.torch import load_file
from spandrel import ModelLoader
from spandrel.architectures.Compact import Compact
from spandrel.architectures.DAT import DAT
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.PLKSR import RealPLKSR
from spandrel.architectures.SPAN import SPAN
from case import Case, cut, planes, twice
from weights import fill, kept, renamed, wrapped


def real(name):
    """Weights that a package carries, as the workers have them."""
    tensors = load_file(os.path.join(os.environ["HORDE_WORKERS_MODELS"], "esrgan", name + ".safetensors"))
    return {key: value.float() for key, value in tensors.items()}


NEW_KEYS = (
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),
    (r"^model\.1\.sub\.\d+\.", "conv_body."),
    (r"^model\.0\.", "conv_first."),
    (r"^model\.3\.", "conv_up1."),
    (r"^model\.6\.", "conv_up2."),
    (r"^model\.8\.", "conv_hr."),
    (r"^model\.10\.", "conv_last."),
)
MIDDLE_KEYS = (
    (r"^body\.(\d+)\.rdb(\d)\.", r"RRDB_trunk.\1.RDB\2."),
    (r"^conv_body\.", "trunk_conv."),
    (r"^conv_up", "upconv"),
    (r"^conv_hr\.", "HRconv."),
)


def case(tensors, architecture, picture, wrapper=""):
    """spandrel finds the architecture by the keys of the file, as we do."""
    found = ModelLoader().load_from_state_dict(dict(tensors))
    assert found.architecture.id == architecture, found.architecture.id
    x = planes(picture)
    return Case("upscaler", wrapped(tensors, wrapper), {"x": x}, *twice(found.model.eval(), lambda net, x: {"y": net(x)}, x))


def rrdb(n_blocks, fold=1, names=(), seed=1):
    net = ESRGAN(in_nc=3 * fold * fold, out_nc=3, num_filters=64, num_blocks=n_blocks, scale=4, shuffle_factor=fold if fold > 1 else None)
    return renamed(kept(fill(net, seed)), *names)


def real_plksr(**more):
    return RealPLKSR(dim=64, n_blocks=28, upscaling_factor=4, kernel_size=17, split_ratio=0.25, **more)


def dysampled():
    net = real_plksr(dysample=True)
    start = net.to_img.init_pos.clone()
    fill(net)
    # Where to sample: the places themselves are no weights, and offsets reach a pixel or two.
    net.to_img.init_pos.copy_(start)
    net.to_img.offset.weight.mul_(0.2)
    return net


def span():
    net = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=48, upscale=4)
    fill(net)
    # Bytes come in, and each block multiplies by a share of at most a half.
    net.conv_1.sk.weight.div_(64)
    net.conv_1.conv[0].weight.div_(64)
    for n in range(1, 7):
        getattr(net, f"block_{n}").c3_r.conv[2].weight.mul_(3)
    return kept(net)


def dat2():
    return DAT(img_size=64, embed_dim=180, split_size=[8, 32], depth=[6] * 6, num_heads=[6] * 6, expansion_factor=2.0, upscale=4)


CASES = {
    "RealESRGAN_x4plus, real weights": lambda: case(real("RealESRGAN_x4plus"), "ESRGAN", cut("astronaut", 180, 60, 64, 56)),
    "RealESRGAN_x4plus_anime_6B, real weights": lambda: case(real("RealESRGAN_x4plus_anime_6B"), "ESRGAN", cut("astronaut", 180, 60, 96, 80)),
    "realesr-animevideov3, real weights": lambda: case(real("realesr-animevideov3"), "Compact", cut("astronaut", 180, 60, 128, 96)),
    "RealESRGAN_x4plus (23 blocks)": lambda: case(rrdb(23, names=NEW_KEYS), "ESRGAN", cut("astronaut", 180, 60, 64, 56)),
    "RealESRGAN_x2plus (folded)": lambda: case(rrdb(23, 2, NEW_KEYS), "ESRGAN", cut("astronaut", 180, 60, 96, 80), "params_ema"),
    "RealESRGAN_x4plus_anime_6B": lambda: case(rrdb(6, names=NEW_KEYS), "ESRGAN", cut("chelsea", 100, 60, 96, 64)),
    "ESRGAN, old keys (NMKD, UltraSharp)": lambda: case(rrdb(23), "ESRGAN", cut("chelsea", 100, 60, 48, 64)),
    "ESRGAN, RRDB_trunk keys (BSRGAN)": lambda: case(rrdb(23, names=NEW_KEYS + MIDDLE_KEYS), "ESRGAN", cut("coffee", 200, 60, 48, 48)),
    "realesr-animevideov3 (16)": lambda: case(kept(fill(Compact(num_feat=64, num_conv=16, upscale=4))), "Compact", cut("chelsea", 100, 60, 128, 96)),
    "realesr-general-x4v3 (32)": lambda: case(kept(fill(Compact(num_feat=64, num_conv=32, upscale=4))), "Compact", cut("chelsea", 100, 60, 96, 96)),
    "RealPLKSR (28 blocks, kernel 17)": lambda: case(kept(fill(real_plksr())), "PLKSR", cut("astronaut", 180, 60, 80, 64)),
    "RealPLKSR with DySample": lambda: case(kept(dysampled()), "PLKSR", cut("astronaut", 180, 60, 80, 64)),
    "SPAN (48)": lambda: case(span(), "SPAN", cut("astronaut", 180, 60, 96, 80)),
    "DAT-2 (36 blocks, windows 8x32)": lambda: case(kept(fill(dat2())), "DAT", cut("astronaut", 180, 60, 70, 50)),
}
