"""Which backends a recipe may use: their licences, what is not installed, what they cost, how they are made."""

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from pvchat.cli import main
from pvchat.dataset_builder import (
    RECIPES,
    Recipe,
    check_backends,
    check_licences,
    costs,
    write_video,
)
from pvchat.dataset_builder import catalogue as catalogue_module
from pvchat.dataset_builder.catalogue import CATALOGUE, PERMISSIVE, Backends, chosen, entry
from pvchat.errors import MissingBackendError, PVChatError
from tests.test_assemble import Writer, build, refused, world  # noqa: F401  (fixture)
from tests.test_build import command
from tests.test_build_people import HalvesDetector

# -- recipes, licences, missing packages, cost ------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_names_backends_that_exist_and_can_be_told_the_cost_of(name):
    recipe = RECIPES[name]
    assert {role: entry(role, backend) for role, backend in chosen(recipe).items()}
    needed = {(cost.stage, cost.backend): cost for cost in costs(recipe)}
    assert needed["scenes", recipe.backends["scene"]].items >= 2
    assert all(cost.source for cost in needed.values())


def test_where_nobody_has_measured_the_cost_is_unknown():
    modern = {cost.backend: cost for cost in costs(RECIPES["modern"])}
    assert modern["wan-vace"].seconds is None and modern["wan-vace"].memory_gb == 16
    assert all(cost.seconds is not None for cost in costs(RECIPES["light"]))


def test_the_permissive_policy_refuses_what_is_not_for_any_use_and_names_it():
    with pytest.raises(
        PVChatError, match=r"facenet \(VGGFace2-research\); consisid \(CogVideoX, InsightFace-NC\)"
    ) as caught:
        check_licences(RECIPES["paper"], "permissive")
    assert "photomaker-v2" in str(caught.value) and "\n" not in str(caught.value)
    for name in ("modern", "light", "tiny"):
        check_licences(RECIPES[name], "permissive")
    for name in RECIPES:
        check_licences(RECIPES[name], "research")
    with pytest.raises(PVChatError, match="research, permissive"):
        check_licences(RECIPES["light"], "lax")


def test_what_is_not_installed_is_named_with_its_pip_line(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(catalogue_module, "find_spec", lambda name: None if name in ("diffusers", "cv2") else True)
    out = tmp_path / "out"
    message = (
        r'yunet needs cv2: pip install "pvchat\[faces\]" \(licence: .*wan-vace needs diffusers.*pvchat\[generate\]'
    )
    refused(out, message, lambda: build(world, out, recipe=RECIPES["modern"]))
    with pytest.raises(MissingBackendError, match="choose one of: .*composite"):
        check_backends(dataclasses.replace(RECIPES["light"], backends={"scene": "dream"}))
    with pytest.raises(PVChatError, match="no role"):
        check_backends(dataclasses.replace(RECIPES["light"], backends={"sound": "dream"}))


CLASSES = {
    "faces.lbp": {"lbp": "LbpDetector"},
    "faces.mtcnn": {"mtcnn": "MTCNN"},
    "faces.yunet": {"yunet": "YuNet"},
    "faces.facenet": {"facenet": "FaceNet"},
    "faces.sface": {"sface": "SFace"},
    "faces.auraface": {"auraface": "AuraFace"},
    "faces.hog": {"face-hog": "FaceHog"},
    "diffusion.consisid": {"consisid": "ConsisIDScenes"},
    "diffusion.wan_vace": {"wan-vace": "WanVACEScenes"},
    "diffusion.edit": {"qwen-edit": "QwenEditPortraits", "flux2-klein": "KleinPortraits"},
    "diffusion.wan_animate": {"wan-animate-2": "WanAnimator"},
    "liveportrait.animator": {"liveportrait": "LivePortraitAnimator"},
    "vlm.internvideo2": {"internvideo2": "InternVideo2Writer"},
}


@pytest.mark.parametrize("module", CLASSES)
def test_the_catalogue_says_the_licences_that_the_backends_say(module):
    entries = {name: found for names in CATALOGUE.values() for name, found in names.items()}
    backends = import_module(f"pvchat.dataset_builder.backends.{module}")
    for name, cls in CLASSES[module].items():
        assert set(getattr(backends, cls).licences) == set(entries[name].licences), name


TABLE = Path(__file__).parents[1] / "docs" / "backends.md"


def rows_of(name):
    """The rows of the table in the docs that speak of a backend."""
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [row for row in rows if f"`{name}`" in row.split("|")[2]]


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in CATALOGUE.items() for name in names])
def test_one_table_has_every_backend_with_its_ids_licences_and_memory(role, name):
    found = entry(role, name)
    (row,) = [row for row in rows_of(name) if len(row.split("|")) == 9]
    _, _, _, ids, licence, memory, time, extra, _ = (cell.strip() for cell in row.split("|"))
    for one in re.findall(r"[\w-]+/[\w.-]+", found.weights):
        assert one in ids
    words = {"CogVideoX": "CogVideoX", "InsightFace-NC": "non-commercial", "VGGFace2-research": "VGGFace2"}
    for tag in found.licences:
        assert words.get(tag, "yours" if tag == "user" else tag) in licence or "that of the embedder" in licence
    if found.memory_gb is not None:
        assert re.search(rf"\b{found.memory_gb:g}\b", memory)
    assert memory and time and extra


def test_what_the_quality_filter_of_the_paper_needs_is_said_with_the_way_to_give_it():
    backends = Backends(RECIPES["paper"])
    backends._made["detector"] = HalvesDetector()
    with pytest.raises(MissingBackendError, match=r"face_landmarker.task .*https://.*landmarks: PATH"):
        _ = backends.quality


def test_generators_of_the_modern_and_the_paper_recipe_are_made_without_their_weights(tmp_path):
    """So that what they lack shows early, and nothing is loaded before it is needed."""
    for motion in ("yes", "no", "query", "smile", "angry"):
        write_video(tmp_path / f"{motion}.mp4", np.zeros((4, 32, 32, 3), np.uint8), 8.0)
    modern = Backends(RECIPES["modern"].with_drivers(tmp_path))
    paper = Backends(RECIPES["paper"])
    paper._made["detector"] = HalvesDetector()
    made = [getattr(b, role) for b in (modern, paper) for role in ("scene", "portrait", "animate")]
    assert [one.id.split("@")[0] for one in made] == [
        "wan-vace", "flux2-klein", "wan-animate-2", "consisid", "photomaker-v2", "liveportrait",
    ]  # fmt: skip
    assert paper.licences_of("portrait") == ("MIT", "Apache-2.0", "OpenRAIL++-M", "InsightFace-NC")
    assert set(modern.licences_of("portrait")) <= PERMISSIVE and modern.licences_of("found") == ("user",)


def test_driving_clips_are_for_the_animators_that_take_them(tmp_path):
    with pytest.raises(PVChatError, match="--drivers FOLDER"):
        _ = Backends(RECIPES["modern"]).animate
    with pytest.raises(PVChatError, match="takes no driving clips"):
        RECIPES["light"].with_drivers(tmp_path)
    with pytest.raises(PVChatError, match="yes.mp4"):
        RECIPES["modern"].with_drivers(tmp_path)


def test_options_of_a_recipe_reach_the_backend_and_unknown_ones_are_refused():
    recipe = Recipe.from_json({"base": "modern", "name": "mine", "options": {"scene": {"steps": 7}}})
    assert Backends(recipe).scene.steps == 7
    recipe = Recipe.from_json({"base": "light", "name": "mine", "options": {"scene": {"colour": "red"}}})
    with pytest.raises(PVChatError, match="colour"):
        _ = Backends(recipe).scene


def test_what_a_role_needs_and_lacks_is_one_line():
    light = RECIPES["light"]
    with pytest.raises(PVChatError, match="url: https://.*model: gpt-4o") as error:
        Backends(dataclasses.replace(light, backends=light.backends | {"refiner": "openai"})).make_all()
    assert "\n" not in str(error.value)
    with pytest.raises(PVChatError, match="asked of the recipe's writer"):
        Backends(dataclasses.replace(light, backends=light.backends | {"attributes": "vlm"})).make_all()


def test_a_finished_writer_takes_the_place_of_the_recipe_s():
    writer = Writer()
    assert Backends(RECIPES["paper"], writer).writer is writer
    assert Backends(RECIPES["light"]).writer is None


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_costs_and_writes_nothing(world, capsys, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    plan = command(capsys, world / "ref.mp4", "--name", "Nz", "--recipe", "modern", "--dry-run")
    assert (plan["clips"], plan["questions"]) == (81, 1455) and "wan-vace" in plan["not_measured"]
    assert plan["memory_gb"] == 80 and list(tmp_path.iterdir()) == []
    assert main(["build", str(world / "ref.mp4"), "--name", "Nz", "--recipe", "paper", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "consisid" in text and "unknown" in text and "A100" in text


def test_the_command_refuses_by_policy_and_by_missing_backends_before_it_writes(world, capsys, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(catalogue_module, "find_spec", lambda name: None)
    words = ["build", str(world / "ref.mp4"), "--name", "Nz", "--i-have-consent", "--out", str(tmp_path / "a" / "out")]
    words += ["--gallery", str(world / "gallery")]
    assert main([*words, "--recipe", "paper", "--licence-policy", "permissive"]) == 1
    assert "InsightFace-NC" in capsys.readouterr().err
    assert main([*words, "--recipe", "paper"]) == 1
    assert "pip install" in capsys.readouterr().err and not (tmp_path / "a").exists()


def test_a_recipe_file_is_a_recipe(world, capsys, tmp_path):  # noqa: F811
    (tmp_path / "mine.yaml").write_text(
        "{base: light, rows: [{origin: original, count: 1, questions: {existence: 4}}]}"
    )
    plan = command(capsys, world / "ref.mp4", "--name", "Nz", "--recipe", tmp_path / "mine.yaml", "--dry-run")
    assert (plan["recipe"], plan["clips"], plan["questions"]) == ("mine", 1, 4)
