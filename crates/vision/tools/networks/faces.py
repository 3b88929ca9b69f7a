"""Face networks: GFPGAN and RestoreFormer through spandrel, CodeFormer through spandrel_extra_arches, the rest through facexlib."""
import torch
from facexlib.detection.retinaface import RetinaFace
from facexlib.parsing.parsenet import ParseNet
from spandrel.architectures.GFPGAN import GFPGAN
from spandrel.architectures.RestoreFormer import RestoreFormer
from spandrel_extra_arches.architectures.CodeFormer import CodeFormer
from case import Case, cut, planes, sized, twice
from weights import fill, kept, settle, wrapped


def face(side=512):
    return sized(cut("astronaut", 140, 20, 180, 180), side, side)


def gfpgan_net():
    net = GFPGAN(
        out_size=512, num_style_feat=512, channel_multiplier=2, decoder_load_path=None, fix_decoder=False, num_mlp=8,
        input_is_latent=True, different_w=True, narrow=1, sft_half=True,
    )  # fmt: skip
    return fill(net)


def gfpgan():
    net = gfpgan_net()
    x = planes(face(), signed=True)
    # v1.3 and v1.4 carry their noise; the reference draws fresh noise unless told otherwise.
    run = lambda net, x: {"y": net(x, return_rgb=False, randomize_noise=False)[0]}
    return Case("restorer", wrapped(kept(net), "params_ema"), {"x": x}, *twice(net, run, x))


def codeformer():
    net = fill(CodeFormer())
    x = planes(face(), signed=True)
    return Case("restorer", wrapped(kept(net), "params_ema"), {"x": x}, *twice(net, lambda net, x: {"y": net(x, weight=0.5)[0]}, x))


def restoreformer():
    net = RestoreFormer(
        n_embed=1024, embed_dim=256, ch=64, out_ch=3, ch_mult=(1, 2, 2, 4, 4, 8), num_res_blocks=2, attn_resolutions=(16,),
        in_channels=3, resolution=512, z_channels=256, double_z=False, enable_mid=True, head_size=8,
    )  # fmt: skip
    fill(net)
    x = planes(face(), signed=True)
    return Case("restorer", wrapped(kept(net), "params"), {"x": x}, *twice(net, lambda net, x: {"y": net(x)[0]}, x))


def parsenet():
    net = fill(ParseNet(in_size=512, out_size=512, parsing_ch=19))
    x = planes(face(), signed=True)
    settle(net, x)
    return Case("parser", kept(net), {"x": x}, *twice(net, lambda net, x: {"y": net(x)[0]}, x))


def retinaface(name):
    net = RetinaFace(network_name=name)
    fill(net)
    picture = cut("astronaut", 90, 0, 333, 250)
    x = picture.flip(-1).float().permute(2, 0, 1)[None] - torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
    settle(net, x)

    def run(net, x):
        bounds, scores, landmarks = net(x)
        # Of two outcomes the second's share.
        return {"bounds": bounds[0], "scores": scores[0, :, 1].contiguous(), "landmarks": landmarks[0]}

    return Case("detector", wrapped(kept(net), "module"), {"picture": picture}, *twice(net, run, x))


CASES = {
    "GFPGAN v1.3/v1.4, 512": gfpgan,
    "CodeFormer, 512": codeformer,
    "RestoreFormer, 512": restoreformer,
    "ParseNet, 512": parsenet,
    "RetinaFace, ResNet-50": lambda: retinaface("resnet50"),
    "RetinaFace, MobileNet 0.25": lambda: retinaface("mobile0.25"),
}
