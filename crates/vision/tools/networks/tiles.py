"""Pictures enlarged in tiles against the same as a whole, in ours alone: real weights where a package carries them."""
import torch
from case import cut, planes
from upscalers import dat2, dysampled, fill, kept, real, real_plksr

#: Side of a tile, what neighbours share, and what each leaves out of it: the last two are the workers' own.
TILING = [96, 48, 18]
#: How much rougher the difference may be where tiles fade into each other than elsewhere, and from how many of 255 a column's
#: step on average counts at all: beyond both there is a seam.
SEAM, SEEN = 1.25, 1.0


def in_range(net, last, x):
    """The weights, the last convolution made so weak that the result stays between black and white, as trained networks' does."""
    state = net.state_dict()
    y = net(x)
    state[last + ".weight"].mul_(0.15 / float(y.std()))
    state[last + ".bias"].mul_(0.15 / float(y.std()))
    y = net(x)
    state[last + ".bias"].add_(0.5 - float(y.mean()))
    return kept(net)


def small():
    return planes(cut("astronaut", 140, 40, 64, 48))


#: Weights, picture, and the mean and largest difference of 255 that docs/PERFORMANCE.md states.
CASES = {
    "x4plus in tiles (real weights)": lambda: (real("RealESRGAN_x4plus"), cut("astronaut", 140, 20, 144, 96), 0.25, 20),
    "RealPLKSR in tiles": lambda: (in_range(fill(real_plksr()), "feats.30", small()), cut("astronaut", 140, 20, 144, 96), 3.5, 35),
    "RealPLKSR with DySample in tiles": lambda: (in_range(dysampled(), "to_img.end_conv", small()), cut("astronaut", 140, 20, 144, 96), 3.5, 35),
    "DAT-2 in tiles": lambda: (in_range(fill(dat2()), "conv_last", small()), cut("astronaut", 140, 20, 144, 96), 1.2, 12),
}


def roughness(apart, scale):
    """How far the difference (h, w, 3) steps from one column to the next on average: where tiles fade, and elsewhere."""
    tile, shared, left_out = TILING
    steps = (apart[:, 1:] - apart[:, :-1]).abs().mean((0, 2))
    fades = torch.zeros(steps.shape, dtype=torch.bool)
    width = apart.shape[1] // scale
    for begin in range(tile - shared, width - shared, tile - shared):
        fades[scale * (begin + left_out) : scale * (begin + shared - left_out)] = True
    return float(steps[fades].mean()), float(steps[~fades].mean())
