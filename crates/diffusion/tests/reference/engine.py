"""Pictures with torch, diffusers' networks and k-diffusion's samplers, by ComfyUI's published rules (fixtures/README.md).

An implementation of its own, to judge the Rust one by: nothing here is shared with it but the rules.
"""
import json, math, os, sys
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

torch.set_grad_enabled(False)
KD = os.environ.get("K_DIFFUSION")  # pip install --no-deps --target "$K_DIFFUSION" k-diffusion torchsde trampoline scipy torchdiffeq boltons
sys.path.append(KD or ".")


def sampling():
    """k_diffusion.sampling without the package's other modules, which want many more packages."""
    import importlib.util, types
    base = os.path.join(KD, "k_diffusion")
    package = types.ModuleType("k_diffusion"); package.__path__ = [base]; sys.modules["k_diffusion"] = package
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    sys.modules["k_diffusion.utils"] = utils; package.utils = utils
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", os.path.join(base, "sampling.py"))
    module = importlib.util.module_from_spec(spec); sys.modules["k_diffusion.sampling"] = module
    spec.loader.exec_module(module)
    return module


class Levels:
    def __init__(self):
        betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, 0)
        exact = ((1 - alphas) / alphas).sqrt()
        self.sigmas, self.logs = exact.float(), exact.log().float()
        self.nudge = 0.0

    def index(self, sigma):
        return (self.logs - (torch.as_tensor(sigma).float().log() + self.nudge)).abs().argmin().item()

    def at(self, t):
        t = torch.clamp(torch.as_tensor(t).float(), 0, 999)
        low, high, w = t.floor().long(), t.ceil().long(), t.frac()
        return ((1 - w) * self.logs[low] + w * self.logs[high]).exp()

    def plan(self, name, n, kd):
        lo, hi = self.sigmas[0].item(), self.sigmas[-1].item()
        if name == "karras":
            return kd.get_sigmas_karras(n, lo, hi)
        if name == "exponential":
            return kd.get_sigmas_exponential(n, lo, hi)
        if name == "simple":
            s = [self.sigmas[-(1 + int(x * 1000 / n))] for x in range(n)]
        elif name == "sgm_uniform":
            s = [self.at(t) for t in torch.linspace(999, 0, n + 1)[:-1]]
        else:
            s = [self.at(t) for t in torch.linspace(999, 0, n)]
        return torch.tensor([float(x) for x in s] + [0.0])

    def run(self, name, steps, denoise, skip, kd):
        def plan(n):
            s = self.plan(name, n + (1 if skip else 0), kd)
            return torch.cat([s[:-2], s[-1:]]) if skip else s
        if denoise > 0.9999:
            return plan(steps)
        return plan(int(steps / denoise))[-(steps + 1):]


class Stack:
    """One model: diffusers' U-Net and VAE, transformers' text encoders."""

    def __init__(self, folder, unet=None, tokenizer=None):
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection
        from tokenizers import Tokenizer
        self.vae = AutoencoderKL.from_pretrained(f"{folder}/vae", torch_dtype=torch.float32).eval()
        self.unet = unet or UNet2DConditionModel.from_pretrained(f"{folder}/unet", torch_dtype=torch.float32).eval()
        self.xl = os.path.isdir(f"{folder}/text_encoder_2")
        self.clip = CLIPTextModel.from_pretrained(f"{folder}/text_encoder", torch_dtype=torch.float32).eval()
        if self.xl:
            self.clip2 = CLIPTextModelWithProjection.from_pretrained(f"{folder}/text_encoder_2", torch_dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.from_file(tokenizer)
        self.scale = 0.13025 if self.xl else 0.18215
        self.levels, self.stretch = Levels(), 1.0
        self.kd = sampling()

    def ids(self, text, pad):
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        assert len(ids) <= 75
        return torch.tensor([[49406] + ids + [49407] + [pad] * (75 - len(ids))])

    def encode(self, text, skip):
        out = self.clip(self.ids(text, 49407), output_hidden_states=True)
        if not self.xl:
            norm = getattr(self.clip, "text_model", self.clip).final_layer_norm
            return norm(out.hidden_states[-skip]), None
        ids = self.ids(text, 0)
        big = self.clip2(ids, output_hidden_states=True)
        # The pooled state is that of the end token; id 0 fills up, so the library's own argmax would do, too.
        return torch.cat([out.hidden_states[-skip], big.hidden_states[-skip]], -1), big.text_embeds

    def circular(self, on):
        for part in (self.unet, self.vae):
            for m in part.modules():
                if isinstance(m, torch.nn.Conv2d):
                    m.padding_mode = "circular" if on else "zeros"

    def picture(self, path):
        x = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).float() / 255
        return x.permute(2, 0, 1)[None]

    def generate(self, case, root):
        """-> dict of tensors, 8-bit picture"""
        kd, size = self.kd, (case["height"] // 8, case["width"] // 8)
        self.circular(bool(case.get("tiling")))
        batch, seed = case.get("batch", 1), case["seed"]
        positive, _, negative = case["prompt"].partition("###")
        cond, pooled = self.encode(positive, case["clip_skip"])
        uncond, uncond_pooled = self.encode(negative, case["clip_skip"])
        name = case["sampler_name"]
        skip = name in ("k_dpm_2", "k_dpm_2_a")
        denoise = case.get("denoising_strength", 1.0) if "source_image" in case else 1.0
        schedule = case.get("scheduler") or ("karras" if case["karras"] else "normal")
        sigmas = self.levels.run(schedule, case["ddim_steps"], denoise, skip, kd)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn((batch, 4, *size), generator=generator) * self.stretch
        latent, mask, extra = torch.zeros_like(noise), None, None
        out = {"cond": cond, "uncond": uncond, "noise": noise, "sigmas": sigmas}
        if "source_image" in case:
            pixels = self.picture(f"{root}/inputs/{case['source_image']}")
            if "source_mask" in case:
                m = np.array(Image.open(f"{root}/inputs/{case['source_mask']}").convert("L"))
                mask = torch.from_numpy(m).float()[None, None] / 255
            if case["source_processing"] != "img2img":
                rounded = mask.round()
                pixels = (pixels - 0.5) * (1 - rounded) + 0.5
                grown = F.conv2d(rounded, torch.ones(1, 1, 6, 6), padding=3).clamp(0, 1)
                mask = grown[:, :, : mask.shape[2], : mask.shape[3]].round()
            init = self.vae.encode(pixels * 2 - 1).latent_dist.mean
            out["init_latent"] = init
            latent = (init * self.scale).expand(batch, -1, -1, -1).clone()
        if mask is not None:
            mask = F.interpolate(mask, size=size, mode="bilinear")
        if self.unet.config.in_channels == 9:
            if mask is None:
                blank = torch.tensor([0.8223, -0.6876, 0.6364, 0.1380])[None, :, None, None]
                extra = torch.cat([torch.ones(batch, 1, *size), blank.expand(batch, 4, *size)], 1)
            else:
                extra = torch.cat([mask.round().expand(batch, -1, -1, -1), latent], 1)
        full = math.isclose(sigmas[0].item(), self.levels.sigmas[-1].item(), rel_tol=1e-5) or sigmas[0] > self.levels.sigmas[-1]
        x = latent + noise * (torch.sqrt(1 + sigmas[0] ** 2) if full else sigmas[0])
        v = self.unet.config.get("_prediction") == "v"
        hold_noise = noise
        if name == "DDIM":
            hold_noise = torch.randn(noise.shape, generator=torch.Generator().manual_seed(seed + 1))

        def network(x, sigma, context, pooled):
            t = torch.tensor([self.levels.index(sigma)]).expand(batch)
            inner = x / (sigma ** 2 + 1).sqrt()
            if extra is not None:
                inner = torch.cat([inner, extra], 1)
            added = None
            if self.xl:
                h, w = case["height"], case["width"]
                added = {"text_embeds": pooled.expand(batch, -1), "time_ids": torch.tensor([[h, w, 0, 0, h, w]]).float().expand(batch, -1)}
            eps = self.unet(inner, t, context.expand(batch, -1, -1), added_cond_kwargs=added).sample
            return x / (sigma ** 2 + 1) - eps * sigma / (sigma ** 2 + 1).sqrt() if v else x - eps * sigma

        def model(x, sigma, **_):
            sigma = sigma.reshape(-1)[0]
            if mask is not None:
                x = x * mask + (latent + hold_noise * sigma) * (1 - mask)
            guess = network(x, sigma, cond, pooled)
            if case["cfg_scale"] != 1:
                without = network(x, sigma, uncond, uncond_pooled)
                guess = without + (guess - without) * case["cfg_scale"]
            return guess if mask is None else guess * mask + latent * (1 - mask)

        step_noise = torch.Generator().manual_seed(seed + 1)
        draw = lambda *_: torch.randn(x.shape, generator=step_noise)
        plain = {"k_euler": kd.sample_euler, "DDIM": kd.sample_euler, "k_heun": kd.sample_heun, "k_dpm_2": kd.sample_dpm_2, "k_dpmpp_2m": kd.sample_dpmpp_2m, "dpmsolver": kd.sample_dpmpp_2m}
        noisy = {"k_euler_a": kd.sample_euler_ancestral, "k_dpm_2_a": kd.sample_dpm_2_ancestral, "k_dpmpp_2s_a": kd.sample_dpmpp_2s_ancestral}
        low = sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
        if name in plain:
            x = plain[name](model, x, sigmas, disable=True)
        elif name in noisy:
            x = noisy[name](model, x, sigmas, disable=True, noise_sampler=draw)
        elif name == "k_dpmpp_sde":
            tree = kd.BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seed)
            x = kd.sample_dpmpp_sde(model, x, sigmas, disable=True, noise_sampler=tree)
        elif name == "k_dpm_fast":
            x = kd.sample_dpm_fast(model, x, low, sigmas[0], len(sigmas) - 1, disable=True)
        elif name == "k_dpm_adaptive":
            x = kd.sample_dpm_adaptive(model, x, low, sigmas[0], disable=True)
        elif name == "lcm":
            for i in range(len(sigmas) - 1):
                x = model(x, sigmas[i])
                if sigmas[i + 1] > 0:
                    x = x + sigmas[i + 1] * draw()
        elif name == "k_lms":
            history = []
            for i in range(len(sigmas) - 1):
                guess = model(x, sigmas[i])
                history = ([(x - guess) / sigmas[i]] + history)[:4]
                if sigmas[i + 1] <= 0:
                    x = guess
                    continue
                for j, d in enumerate(history):
                    x = x + kd.linear_multistep_coeff(len(history), sigmas.numpy().astype(np.float64), i, j) * d
        else:
            raise SystemExit(f"no sampler {name}")
        x = x / self.scale
        decoded = torch.cat([self.vae.decode(row[None]).sample for row in x])
        picture = (255 * ((decoded + 1) / 2).clamp(0, 1)).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        self.circular(False)
        out["latent"] = x
        return out, picture
