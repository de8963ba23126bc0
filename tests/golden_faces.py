"""Golden vectors of the face and animation networks: their cases, and the weights by the recipe of their README.

    python -m tests.golden_faces FOLDER

compares the package with the cases in any such folder (CASE.json, CASE.safetensors, state_dicts/), whatever their
seeds and inputs, and exits with 0 when all are within tolerance, 1 on a miss, and 2 without a case. The comparisons
are the tests of tests/test_{liveportrait,photomaker,faces}.py that take `golden`; in the test suite they read
../shared/golden_faces.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "golden_faces"
GOLDEN = Path(os.environ.get("PVCHAT_GOLDEN_FACES", SHARED))
TESTS = [f"tests/test_{name}.py" for name in ("liveportrait", "photomaker", "faces")]
KINDS = (
    "lp_appearance", "lp_motion", "lp_warping", "lp_generator", "lp_stitching", "lp_keypoints", "lp_crop", "lp_chain",
    "lp_small", "facenet", "mtcnn", "face_quality", "photomaker_v1", "photomaker_v2", "photomaker_v1_full",
    "photomaker_v2_full", "photomaker_parts", "photomaker_preprocess", "photomaker_tokens", "photomaker_pipeline",
)  # fmt: skip


def kind_of(file):
    """The kind of case in a json file, by what it says of itself or else by its name; None for anything else. More may
    stand before and after the kind: "lp_small_seed7"."""
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["case"]
    except (OSError, ValueError, KeyError, TypeError):
        name = file.stem
    found = [kind for kind in KINDS if re.search(rf"(?<![a-z0-9]){kind}(?![a-z0-9])", name)]
    return max(found, key=len, default=None)


FILES = {file.stem: kind_of(file) for file in sorted(GOLDEN.glob("*.json"))}  # name -> kind


def golden_cases(*kinds):
    """Gives a test every case of these kinds in the folder, by name, as `golden`; skipped when there is none."""
    return pytest.mark.parametrize("golden", [name for name, kind in FILES.items() if kind in kinds])


def golden_listings(*nets):
    """The same for listings of state dicts."""
    there = [net for net in nets if (GOLDEN / "state_dicts" / f"{net}.json").is_file()]
    return pytest.mark.parametrize("golden", there)


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
        """name -> tensor by the recipe; first values and sums must be those of the listing, where it was made by the
        same recipe."""
        recipe = self.meta["weights"][net]
        listing, listed = read_listing(recipe["state_dict"]), read_json(recipe["state_dict"]).get("recipe")
        filled = {name: fill(name, shape, recipe) for name, shape, *_ in listing}
        for name, u in filled.items():
            if name.endswith("weight_u"):
                stem = name.removesuffix("weight_u")
                v = filled[f"{stem}weight_orig"].flatten(1).T @ u
                filled[f"{stem}weight_v"] = v / v.norm()
        same = listed is None or all(listed[key] == recipe[key] for key in ("salt", "gain", "overrides"))
        for name, _, _, _, first_values, total, _ in listing if same else ():
            given = torch.tensor(first_values, dtype=torch.float64)
            torch.testing.assert_close(filled[name].flatten()[: len(first_values)].double(), given)
            assert math.isclose(filled[name].double().sum().item(), total, rel_tol=1e-4, abs_tol=1e-3), name
        return filled


def read_json(file):
    """A file of the folder; listings that it does not have are those of the shared one."""
    path = GOLDEN / file if (GOLDEN / file).is_file() else SHARED / file
    return json.loads(path.read_text(encoding="utf-8"))


def read_listing(file):
    """Rows (name, shape, dtype, ..., first values, sum, ...) of a state dict's listing."""
    return read_json(file)["tensors"]


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


# -- the command ------------------------------------------------------------------------------------------------------


def pytest_collection_modifyitems(config, items):
    """Where pytest runs with this module as a plugin: only what compares with golden cases."""
    chosen = [item for item in items if "golden" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden_faces", description="Compares the package with golden vectors of other networks."
    )
    parser.add_argument("folder", type=Path, help="folder of golden cases (CASE.json, CASE.safetensors, state_dicts/)")
    folder = parser.parse_args(arguments).folder.resolve()
    kinds = {file.stem: kind_of(file) for file in sorted(folder.glob("*.json"))}
    if not any(kinds.values()):
        print(f"{folder} holds no golden cases ({', '.join(KINDS)}).", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "pytest", "-q", "-rP", "--tb=short", "--no-header", "-p", "tests.golden_faces"]
    command += ["-p", "no:cacheprovider", "-o", "timeout=0", *TESTS]
    environment = os.environ | {"PVCHAT_GOLDEN_FACES": str(folder), "PVCHAT_FULL": "1"}
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    for name in (name for name, kind in kinds.items() if kind is None):
        print(f"skip {name}: of no known kind")
    print(f"{sum(kind is not None for kind in kinds.values())} cases: {'within tolerance' if code == 0 else 'FAILED'}")
    return min(code, 1)


if __name__ == "__main__":
    sys.exit(main())
