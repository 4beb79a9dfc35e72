"""Runs Cellpose 3 on one array; needs an interpreter that has torch and cellpose.

    python cellpose_runner.py TORCHSCRIPT IMAGE.npy REGIONS.json RESULT.npz

`IMAGE` is a 2-D image, normalised over the whole of it; `REGIONS` maps a key to (start, stop) and
``RESULT`` holds the labels of each region under its key. The network is a TorchScript file that
maps (n, 2, y, x) to flows and style.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from cellpose.models import CellposeModel

DIAMETER = 17
"""The diameter that the network was trained at, pixels: so nothing is rescaled."""


class Network(torch.nn.Module):
    """A TorchScript network with what Cellpose asks of its own."""

    def __init__(self, path):
        super().__init__()
        self.net = torch.jit.load(path, map_location="cpu").float().eval()
        self.device = torch.device("cpu")
        self.diam_mean = torch.nn.Parameter(torch.tensor([float(DIAMETER)]), False)
        self.diam_labels = torch.nn.Parameter(torch.tensor([float(DIAMETER)]), False)
        self.mkldnn = False
        self.nout = 3

    def forward(self, x):
        """Return flows and style."""
        y, style = self.net(x)
        return y, style


def main(weights, image, regions, result):
    """Segment every region."""
    torch.set_num_threads(1)
    if not Path(weights).is_file():
        raise SystemExit(f"no weights at {weights}")
    model = CellposeModel(gpu=False, pretrained_model=False, diam_mean=DIAMETER)
    model.net, model.net_ortho = Network(weights), None
    pixels, labels = np.load(image), {}
    for key, (start, stop) in json.loads(Path(regions).read_text()).items():
        tile = pixels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        labels[key] = segment(model, tile)
    np.savez_compressed(result, **labels)


def segment(model, tile):
    """Return the labels of one tile; nothing is normalised or filtered per tile."""
    found = model.eval(
        tile,
        channels=[0, 0],
        diameter=DIAMETER,
        normalize=False,
        min_size=-1,
        max_size_fraction=1,
    )
    return found[0].astype(np.int32)


if __name__ == "__main__":
    main(*sys.argv[1:])
