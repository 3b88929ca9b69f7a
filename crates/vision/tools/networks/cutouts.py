"""U²-Net's family, each from the file of its authors' code in a package; nothing else of the packages is run."""
import importlib.metadata
import importlib.util

import torch
from case import Case, cut, sized, twice
from weights import fill, kept, settle


def module(package, path):
    file = importlib.metadata.distribution(package).locate_file(path)
    spec = importlib.util.spec_from_file_location(path.rpartition("/")[2].removesuffix(".py"), file)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def case(net, side, mean, std):
    fill(net, gain=2**0.5)
    # The photograph has the network's own size and its brightest value is 255, so that nothing is resized or stretched.
    picture = sized(cut("chelsea", 75, 0, 300, 300), side, side)
    picture[0, 0] = 255
    of = lambda values: torch.tensor(values).view(1, 3, 1, 1)
    x = ((picture.float() / 255).permute(2, 0, 1)[None] - of(mean)) / of(std)
    settle(net, x)

    def run(net, x):
        maps = net(x)[0]
        return {"y": maps[0] if isinstance(maps, (list, tuple)) else maps}

    return Case("cutter", kept(net), {"picture": picture}, *twice(net, run, x))


def u2net(small):
    code = module("backgroundremover", "backgroundremover/u2net/u2net.py")
    net = code.U2NETP(3, 1) if small else code.U2NET(3, 1)
    return case(net, 320, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def isnet():
    return case(module("dis_inference", "dis_inference/models/isnet.py").ISNetDIS(), 1024, [0.5] * 3, [1.0] * 3)


CASES = {
    "U2-Net, 320": lambda: u2net(False),
    "U2-Net p, 320": lambda: u2net(True),
    "ISNet, 1024": isnet,
}
