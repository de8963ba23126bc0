"""Large models say who they are by a file of settings, and are loaded only when something has to be asked of them."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import transformers
from huggingface_hub import close_session, constants

from pvchat.dataset_builder import RECIPES, Backends, load_local
from pvchat.dataset_builder.backends.common import model_revision, weights_id
from pvchat.dataset_builder.backends.galleries import ClipEncoder
from pvchat.dataset_builder.backends.vlm import ChatWriter, InternVideo2Writer, LocalLLM, refine, writer
from pvchat.dataset_builder.catalogue import CATALOGUE
from tests.loopback_hub import LoopbackHub, Repo
from tests.test_assemble import build, world  # noqa: F401  (fixture)
from tests.test_build_people import FaceColours, face_recipe  # noqa: F401  (fixture)
from tests.test_galleries import tiny_clip_encoder
from tests.vlm_models import TEXT, tiny_llava, tokenizer

BACKENDS = {
    "writer": ChatWriter, "internvideo2": InternVideo2Writer, "refiner": LocalLLM, "gallery": ClipEncoder,
}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine, with a cache of its own."""
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        address = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        close_session()
        yield hub
        close_session()


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_of_a_model_on_the_hub_only_the_settings_are_fetched_and_its_commit_is_in_the_id(hub, backend):
    files = {"config.json": b'{"model_type": "clip"}', "model.safetensors": b"weights"}
    repo = hub.models["ada/model"] = Repo(private=False, files=files)
    repo.commit()
    assert f"ada/model@{repo.sha[:12]}" in backend.from_pretrained("ada/model").id
    assert {path for _, path in hub.log if "/resolve/" in path} == {"/ada/model/resolve/main/config.json"}


def test_another_commit_on_the_hub_is_another_id(hub):
    repo = hub.models["ada/model"] = Repo(private=False, files={"config.json": b"{}"})
    before = weights_id("ada/model", model_revision("ada/model"))
    repo.files["config.json"] = b'{"model_type": "clip"}'
    repo.commit()
    assert weights_id("ada/model", model_revision("ada/model")) == f"ada/model@{repo.sha[:12]}" != before


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Role -> folder with a tiny random model."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    text = {key: value for key, value in TEXT.items() if key != "rope_parameters"}
    llm = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**text))
    parts = {"writer": tiny_llava(), "refiner": (llm, tokenizer()), "gallery": tiny_clip_encoder()._load()}
    for role, saved in parts.items():
        for part in saved:
            part.save_pretrained(root / role)
    return {role: str(root / role) for role in parts}


@pytest.fixture
def recipe(models, face_recipe, monkeypatch):  # noqa: F811
    """A small recipe whose writer, refiner and gallery are such models, and attributes are asked of the writer."""
    monkeypatch.setattr(FaceColours, "different", -1.0)
    monkeypatch.setattr(writer, "MAX_NEW_TOKENS", 4)
    monkeypatch.setattr(refine, "MAX_NEW_TOKENS", 4)
    names = {"writer": "chat", "refiner": "local", "gallery": "clip-topk", "strangers": "random-clips"}
    names |= {"attributes": "vlm-json"}
    rows = [row for row in RECIPES["tiny"].rows if row.origin in ("original", "hard_negative", "random_negative")]
    rows = [dataclasses.replace(row, count=2, raw=2) if row.origin != "original" else row for row in rows]
    options = {role: {"name": folder} for role, folder in models.items()}
    return dataclasses.replace(
        face_recipe, name="models", rows=tuple(rows), backends=face_recipe.backends | names, options=options
    )


@pytest.fixture
def loads(monkeypatch):
    """Names of the models that were loaded."""
    loaded = []
    load = transformers.PreTrainedModel.from_pretrained.__func__

    def counted(cls, name, *args, **options):
        loaded.append(name)
        return load(cls, name, *args, **options)

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(counted))
    return loaded


def test_making_every_backend_and_reading_its_id_loads_nothing(recipe, loads):
    made = Backends(recipe)
    made.make_all()
    assert {"writer", "refiner", "gallery", "attributes"} <= set(made.ids()) and loads == []


@pytest.mark.slow
def test_a_build_loads_each_model_once_and_a_second_one_with_all_answers_at_hand_loads_none(
    world, recipe, models, loads, tmp_path  # noqa: F811
):  # fmt: skip
    options = {"recipe": recipe, "writer": None, "test_clips": None, "work": tmp_path / "work"}
    first = build(world, tmp_path / "first", **options)
    assert sorted(loads) == sorted(models.values())
    ids = json.loads((first.root / "dataset.json").read_text(encoding="utf-8"))
    assert ids["writer"].startswith("chat@1:writer@") and ids["backends"]["gallery"].startswith("clip@1:gallery@")
    loads.clear()
    second = build(world, tmp_path / "second", **options)
    assert second.hash == first.hash == load_local(tmp_path / "first").hash and loads == []


def test_every_backend_of_the_catalogue_that_is_loaded_by_name_is_among_these():
    by_name = {
        (role, name) for role, names in CATALOGUE.items() for name, entry in names.items()
        if entry.make is not None and entry.make.__qualname__.startswith(("_pretrained", "_refiner"))
    }  # fmt: skip
    assert by_name == {
        ("writer", "internvideo2"), ("writer", "chat"), ("refiner", "local"), ("refiner", "openai"),
        ("gallery", "clip-topk"),
    }  # fmt: skip
