"""Pictures enlarged in tiles against the same as a whole, in ours alone: real weights where a package carries them."""
from case import cut
from upscalers import dat2, fill, kept, real, real_plksr

#: Side of a tile, what neighbours share, and what each leaves out of it: the last two are the workers' own.
TILING = [96, 48, 18]

#: Weights, picture, and the mean and largest difference of 255 that docs/PERFORMANCE.md states.
CASES = {
    "x4plus in tiles (real weights)": lambda: (real("RealESRGAN_x4plus"), cut("astronaut", 140, 20, 144, 96), 0.25, 20),
    "RealPLKSR in tiles": lambda: (kept(fill(real_plksr())), cut("astronaut", 140, 20, 144, 96), 8, 255),
    "DAT-2 in tiles": lambda: (kept(fill(dat2())), cut("astronaut", 140, 20, 144, 96), 16, 255),
}
