"""Random weights under which numbers keep their size from layer to layer, so that each part of a network tells in its answer."""
import torch


def fill(net, seed=1, gain=1.0):
    """Fills a network's floating tensors: matrices by their inputs' number, norms near 1, everything else small."""
    random = torch.Generator().manual_seed(seed)
    normal = lambda like: torch.randn(like.shape, generator=random)
    for name, value in net.state_dict().items():
        if not value.is_floating_point() or follows(name):
            continue
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=random))
        elif value.ndim > 1:
            value.copy_(normal(value) * gain / max(value[0].numel(), 1) ** 0.5)
        elif name.endswith("weight") and value.numel() > 1:
            value.copy_(1.0 + 0.1 * normal(value))
        else:
            value.copy_(0.1 * normal(value))
    return net.eval()


def follows(name):
    """DAT's relative places and masks, and CLIP's numbered places, follow from sizes."""
    return "rpe_biases" in name or "attn_mask" in name or "position_ids" in name


def settle(net, *given):
    """Gives batch norms the statistics of their own inputs, as training would: a deep network explodes with others."""
    norms = [part for part in net.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0
    net.train()
    net(*given)
    for norm in norms:
        # One place alone has no spread.
        norm.running_var.clamp_(min=1e-2)
    return net.eval()


def kept(net):
    return {name: value.clone().contiguous() for name, value in net.state_dict().items()}


def renamed(tensors, *pairs):
    """Keys with each pair's first text (a pattern) replaced by its second."""
    import re

    def name(key):
        for pattern, text in pairs:
            key = re.sub(pattern, text, key)
        return key

    return {name(key): value for key, value in tensors.items()}


def wrapped(tensors, wrapper):
    """Below a name, as training scripts save their networks."""
    return {f"{wrapper}.{key}": value for key, value in tensors.items()} if wrapper else tensors
