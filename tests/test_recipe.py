"""Recipes are data whose counts are the paper's."""

import json

import pytest

from pvchat.dataset_builder import RECIPES, Questions, Recipe, RecipeRow, get_recipe, oracle_recipe
from pvchat.errors import PVChatError


@pytest.mark.parametrize("name", ["paper", "modern", "light"])
def test_one_video_becomes_81_clips_and_1455_questions(name):
    recipe = RECIPES[name]
    assert (recipe.num_clips, recipe.num_questions) == (81, 1455)


def test_sixteen_clips_are_described_and_all_others_have_existence_questions_only():
    described = {row.origin: row.count for row in RECIPES["paper"].rows if row.questions.total == 30}
    assert described == {"original": 1, "scene": 10, "animated": 5}
    assert all(row.questions == Questions(15) for row in RECIPES["paper"].rows if row.origin not in described)


def test_stage_one_sees_1295_questions():
    rows = RECIPES["paper"].rows
    assert sum(row.count * (row.questions.existence + row.questions.appearance) for row in rows) == 1295


def test_the_balanced_recipe_refuses_about_negatives_and_balances_the_test():
    recipe = RECIPES["paper-balanced"]
    assert (recipe.num_clips, recipe.num_questions) == (81, 1455 + 3 * 55) and recipe.balanced_test
    negatives = [row for row in recipe.rows if "negative" in row.origin]
    assert {row.questions.descriptive for row in negatives} == {3}
    described = sum(row.count * row.questions.descriptive for row in recipe.rows if "negative" not in row.origin)
    refused = sum(row.count * row.questions.descriptive for row in negatives)
    assert 0.5 < refused / described < 1


def test_the_paper_animates_every_look_alike_with_every_driver_and_shows_strangers_as_they_are():
    paper = RECIPES["paper"]
    hard, strangers = paper.row("hard_negative"), paper.row("random_negative")
    assert {paper.style(hard, index) for index in range(25)} == {"animated"}
    assert {paper.style(strangers, index) for index in range(30)} == {"found"}
    assert hard.people * len(hard.drivers) == hard.count


def test_light_negatives_take_the_styles_of_the_positives_in_their_proportions():
    light = RECIPES["light"]
    styles = [light.style(light.row("hard_negative"), index) for index in range(25)]
    assert {style: styles.count(style) for style in set(styles)} == {"scene": 10, "portrait": 10, "animated": 5}
    assert [light.style(light.row("random_negative"), index) for index in (27, 28, 29)][1:] == ["found", "found"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json_and_a_file(name, tmp_path):
    recipe = RECIPES[name]
    (tmp_path / "r.json").write_text(json.dumps(recipe.to_json()), encoding="utf-8")
    assert Recipe.from_json(recipe.to_json()) == recipe == get_recipe(tmp_path / "r.json")


def test_a_file_changes_what_it_names_and_keeps_the_rest_of_its_base(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "base: modern\nbackends: {portrait: qwen-edit}\noptions: {scene: {steps: 9}}\n"
    )
    mine, modern = get_recipe(tmp_path / "mine.yaml"), RECIPES["modern"]
    assert mine.name == "mine" and mine.rows == modern.rows and mine.options == {"scene": {"steps": 9}}
    assert mine.backends == modern.backends | {"portrait": "qwen-edit"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "mapping"), ("{base: best}", "no recipe 'best'"), ("{colour: 1, rows: []}", "colour"),
        ("{rows: [{origin: scene, count: many}]}", "cannot be read"), ("{name: x}", "no rows"),
        ("{rows: [3]}", "cannot be read"),
        ("{rows: [{origin: scene, count: 1, styles: [oil]}]}", "styles"), ("{base: light, max_side: 1}", "max_side"),
        ("a: [", "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_one_line(tmp_path, text, message):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(PVChatError, match=message) as caught:
        get_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value)


def test_a_limit_keeps_the_shape():
    few = RECIPES["light"].limited(2)
    assert [row.count for row in few.rows] == [1, 2, 2, 2, 2, 2] and few.name == "light-limit-2"
    assert (
        RECIPES["paper"].limited(3).row("random_negative").raw == 3 and RECIPES["light"].limited(None).num_clips == 81
    )
    with pytest.raises(PVChatError, match="at least 1"):
        few.limited(0)


def test_light_negatives_are_as_rarely_unprocessed_as_light_positives():
    light = RECIPES["light"]
    negatives = [light.row("hard_negative"), light.row("random_negative")]
    assert sum(row.raw for row in negatives) / sum(row.count for row in negatives) == pytest.approx(1 / 26, abs=0.005)


def test_an_ablation_drops_rows_and_says_so():
    smaller = RECIPES["light"].without("scene", "hard_negative")
    assert smaller.num_clips == 46 and smaller.row("scene") is None
    assert smaller.name == "light-without-hard_negative-scene"
    with pytest.raises(PVChatError, match="scene"):
        smaller.without("scene")


def test_the_oracle_has_the_same_shape_and_keeps_negatives_as_they_are():
    recipe = oracle_recipe(lambda origin, index, seed: None, "renderer@1")
    assert (recipe.num_clips, recipe.num_questions) == (81, 1455)
    assert all(row.raw == row.count for row in recipe.rows if "negative" in row.origin)
    assert "source" not in recipe.to_json()


def test_unknown_names_origins_and_drivers_are_refused_with_what_is_allowed():
    with pytest.raises(PVChatError, match="paper, .*light"):
        get_recipe("best")
    with pytest.raises(PVChatError, match="original, scene"):
        RecipeRow("dream", 1)
    with pytest.raises(PVChatError, match="smile"):
        RecipeRow("animated", 1, drivers=("frown",))
    with pytest.raises(PVChatError, match="twice"):
        Recipe("double", (RecipeRow("scene", 1), RecipeRow("scene", 2)))
