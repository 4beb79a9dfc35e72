"""Networks that stand in for Cellpose's own in tests, because its weights are too large for them.

The genuine `CellposeModel` of the installed Cellpose builds and loads them: only the class that it
takes its network from is another. So all that it does before and after the network is the real
thing. A worker process that imports this module and calls `blurred_cellpose` gets the same.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from patchworks_core.plugins.cellpose import cellpose
from patchworks_core.plugins.cellpose_package import check_installed, import_models, major_of
from patchworks_core.plugins.segmentation import declare

BLUR, BLURRIER = 1.5, 4.0
"""Sigmas of `blurred`'s two copies, pixels; objects are about five times as wide."""


def major() -> int:
    return major_of(check_installed())


def _gaussian(sigma):
    import torch

    reach = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
    weights = np.exp(-(reach**2) / (2 * sigma**2))
    return torch.tensor(weights / weights.sum(), dtype=torch.float32)


def blurred(**attributes):
    """A network without weights: blurred intensity, and the slope of a blurrier copy."""
    import torch
    from torch.nn import functional

    class Blurred(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.diam_mean = torch.nn.Parameter(torch.tensor([30.0]), requires_grad=False)
            self.diam_labels = torch.nn.Parameter(torch.tensor([30.0]), requires_grad=False)
            self.mkldnn, self.dtype, self.nout, self.seen = False, torch.float32, 3, []
            for name, value in attributes.items():
                setattr(self, name, value)

        @property
        def device(self):
            return self.diam_mean.device

        def load_model(self, path, device=None):
            assert Path(path).is_file()

        def blur(self, x, sigma):
            kernel = _gaussian(sigma)
            pad = len(kernel) // 2
            x = functional.pad(x, (pad,) * 4, mode="replicate")
            return functional.conv2d(
                functional.conv2d(x, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1)
            )

        def forward(self, x):
            self.seen.append(x[:, 1:].abs().max().item() if x.shape[1] > 1 else 0.0)
            x = x[:, :1].float()
            slopes = torch.gradient(self.blur(x, BLURRIER)[:, 0], dim=(1, 2))
            flows = torch.stack(slopes, dim=1)
            flows = 5 * flows / flows.norm(dim=1, keepdim=True).clamp(min=1e-4)
            inside = 20 * (self.blur(x, BLUR) - 0.5)
            return torch.cat([flows, inside], dim=1), torch.ones(len(x), 256)

    return Blurred()


def use_network(make):
    """Let `CellposeModel` of this process take its network from `make`; returns its undoing."""
    models = import_models()
    names = ("CPnet",) if major() == 3 else ("CPSAM", "get_backbone")
    kept = {name: getattr(models, name) for name in names}
    setattr(models, names[0], lambda *args, **kwargs: make())
    if major() == 4:
        models.get_backbone = lambda path: "sam_vitl"

    def undo():
        for name, value in kept.items():
            setattr(models, name, value)

    return undo


@declare(merge="overlap", version="1")
def blurred_cellpose(tile, *, statistics=None, model, diameter=30.0):
    """Cellpose in a worker process, on the network without weights."""
    undo = use_network(blurred)
    try:
        return cellpose(tile, statistics=statistics, model=model, diameter=diameter)
    finally:
        undo()


def small_network_of_cellpose_3():
    """The layers of `cp3_small_f16`, a quarter of the stock size in every width."""
    import torch
    from cellpose.resnet_torch import CPnet

    class Small(CPnet):
        def __init__(self, *args, **kwargs):
            super().__init__([2, 16, 32, 64, 128], 3, 3, mkldnn=False, diam_mean=17.0)

        def forward(self, data):
            y, style, *rest = super().forward(data)
            # Cellpose keeps the styles of patches in an array 256 wide
            return (y, torch.nn.functional.pad(style, (0, 256 - style.shape[1])), *rest)

    return Small()


def register_tiny_encoder():
    """Let Cellpose 4 build its network around the encoder of `cp4_tiny`; returns its undoing."""
    import_models()  # mends torchvision, which segment_anything imports
    import torch
    from segment_anything import sam_model_registry
    from segment_anything.modeling import ImageEncoderViT

    class Sam:
        def __init__(self, checkpoint=None):
            self.image_encoder = ImageEncoderViT(
                depth=4,
                embed_dim=96,
                img_size=1024,
                mlp_ratio=4,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                num_heads=4,
                patch_size=16,
                qkv_bias=True,
                use_rel_pos=True,
                global_attn_indexes=(),
                window_size=14,
                out_chans=64,
            )

    kept = sam_model_registry["vit_l"]
    sam_model_registry["vit_l"] = Sam
    return partial(sam_model_registry.__setitem__, "vit_l", kept)
