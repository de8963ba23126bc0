"""The command that compares the face and animation networks with a folder of golden cases."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import golden_faces
from tests.golden_faces import SHARED, kind_of, main

needs_golden = pytest.mark.skipif(not SHARED.is_dir(), reason="the golden vectors are not at ../shared/golden_faces")


@pytest.mark.parametrize(
    ("stem", "case", "kind"),
    [
        ("lp_small", "lp_small", "lp_small"),
        ("a", "seed7_lp_small", "lp_small"),
        ("photomaker_v1_full", "photomaker_v1_full", "photomaker_v1_full"),
        ("photomaker_v1-seed3", None, "photomaker_v1"),
        ("lp_smaller", None, None),
        ("notes", "notes", None),
    ],
)
def test_a_case_is_known_by_what_its_file_says_or_else_by_its_name(tmp_path, stem, case, kind):
    (tmp_path / f"{stem}.json").write_text(json.dumps({} if case is None else {"case": case}))
    assert kind_of(tmp_path / f"{stem}.json") == kind


def test_a_folder_without_cases_is_said_and_exits_with_two(tmp_path, capsys):
    (tmp_path / "notes.json").write_text("{}")
    assert main([str(tmp_path)]) == 2
    assert "no golden cases (lp_appearance" in capsys.readouterr().err


def with_other_seeds(folder):
    """The case `photomaker_parts` with weights and inputs of other seeds, and what this package makes of them."""
    from tests.test_photomaker import FuseModule, PhotoMakerCase, QFormerPerceiver, build

    case = PhotoMakerCase("photomaker_parts")
    for recipe in case.meta["weights"].values():
        recipe["salt"] += "another/"
    for name, info in case.meta["inputs"].items():
        if "generated" in info:
            made = info["generated"]
            made["seed_string"] += "/another"
            drawn = made["offset"] + made["scale"] * golden_faces.draw(made["seed_string"], info["shape"])
            info["first_values"] = drawn.flatten()[:4].tolist()
        elif info["dtype"] == "float32":
            case.tensors[f"input.{name}"] = torch.randn(info["shape"], generator=torch.Generator().manual_seed(9))
    fuse = build(lambda: FuseModule(case.meta["config"]["fuse_embed_dim"]), case.weights("fuse"))
    sizes = case.meta["config"]["qformer"]
    names = ("id_embeddings_dim", "cross_attention_dim", "num_tokens", "embedding_dim")
    perceiver = build(lambda: QFormerPerceiver(*(sizes[name] for name in names)), case.weights("qformer"))
    made = {
        "fused": fuse(case.input("prompt_embeds"), case.input("id_embeds"), case.input("mask")),
        "id_tokens": perceiver(case.input("face_embedding"), case.input("patch_tokens")),
    }
    for name, tensor in made.items():
        assert "index" not in case.meta["outputs"][name]
        case.tensors[f"output.{name}"] = tensor.detach().contiguous()
    case.meta["case"] = "photomaker_parts_seed9"
    (folder / "seed9.json").write_text(json.dumps(case.meta))
    save_file(case.tensors, folder / "seed9.safetensors")


@needs_golden
@pytest.mark.slow
def test_any_folder_is_compared_and_a_miss_exits_with_one_and_is_named(tmp_path, capfd):
    for name in ("photomaker_tokens.json", "photomaker_parts.json", "photomaker_parts.safetensors"):
        shutil.copyfile(SHARED / name, tmp_path / name)
    with_other_seeds(tmp_path)
    (tmp_path / "notes.json").write_text("{}")
    assert main([str(tmp_path)]) == 0
    said = capfd.readouterr().out
    assert "3 cases: within tolerance" in said and "skip notes" in said and "photomaker_parts_seed9 fused" in said

    tensors = load_file(tmp_path / "seed9.safetensors")
    save_file(tensors | {"output.id_tokens": 1.01 * tensors["output.id_tokens"]}, tmp_path / "seed9.safetensors")
    assert main([str(tmp_path)]) == 1
    said = capfd.readouterr().out
    assert "3 cases: FAILED" in said and "id_tokens" in said and "[seed9]" in said
