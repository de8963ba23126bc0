"""Golden vectors of the face and animation networks: their cases, and the weights by the recipe of their README."""

import json
import math
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden_faces"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden vectors are not at ../shared/golden_faces")


class Golden:
    """One case: its description (`meta`), its tensors, its inputs, and the weights of its nets."""

    def __init__(self, name):
        self.meta = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
        self.tensors = load_file(GOLDEN / f"{name}.safetensors")

    def input(self, name):
        info = self.meta["inputs"][name]
        if "generated" not in info:
            return self.tensors[f"input.{name}"]
        made = info["generated"]
        tensor = made["offset"] + made["scale"] * draw(made["seed_string"], info["shape"])
        torch.testing.assert_close(tensor.flatten()[:4], torch.tensor(info["first_values"]))
        return tensor

    def weights(self, net):
        """name -> tensor by the recipe; first values and sums must be those of the listing."""
        recipe = self.meta["weights"][net]
        listing = read_listing(recipe["state_dict"])
        filled = {name: fill(name, shape, recipe) for name, shape, *_ in listing}
        for name, u in filled.items():
            if name.endswith("weight_u"):
                stem = name.removesuffix("weight_u")
                v = filled[f"{stem}weight_orig"].flatten(1).T @ u
                filled[f"{stem}weight_v"] = v / v.norm()
        for name, _, _, _, first_values, total, _ in listing:
            given = torch.tensor(first_values, dtype=torch.float64)
            torch.testing.assert_close(filled[name].flatten()[: len(first_values)].double(), given)
            assert math.isclose(filled[name].double().sum().item(), total, rel_tol=1e-4, abs_tol=1e-3), name
        return filled


def read_listing(file):
    """Rows (name, shape, dtype, ..., first values, sum, ...) of a state dict's listing."""
    return json.loads((GOLDEN / file).read_text(encoding="utf-8"))["tensors"]


def stored_part(text):
    """ "[:, :24, ::16]" -> the slices it means"""
    bounds = [
        [int(number) if number else None for number in part.strip().split(":")]
        for part in text.strip("[] ").split(",")
    ]
    return tuple(slice(*part) for part in bounds)


def draw(seed_string, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(seed_string.encode())))


def fill(name, shape, recipe):
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    x = draw(recipe["salt"] + name, shape)
    if name in recipe["overrides"]:
        offset, scale = recipe["overrides"][name]
        return offset + scale * x
    if last in ("running_mean", "bias", "beta"):
        return 0.05 * x
    if last == "running_var":
        return 1 + 0.1 * x.abs()
    if last == "gamma":
        return 0.5 * x
    if last in ("weight_u", "weight_v"):
        return x / x.norm()
    if len(shape) >= 2:
        return x * (2 if last == "weight_orig" else recipe["gain"]) / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * x if last == "weight" else 0.5 * x
