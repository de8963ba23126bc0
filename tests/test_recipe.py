"""Recipes are data whose counts are the paper's."""

import pytest

from pvchat.dataset_builder import RECIPES, Questions, Recipe, RecipeRow, get_recipe, oracle_recipe
from pvchat.errors import MissingBackendError, PVChatError


@pytest.mark.parametrize("name", ["paper", "light"])
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
    with pytest.raises(PVChatError, match="paper, light"):
        get_recipe("best")
    with pytest.raises(PVChatError, match="original, scene"):
        RecipeRow("dream", 1)
    with pytest.raises(PVChatError, match="smile"):
        RecipeRow("animated", 1, drivers=("frown",))
    with pytest.raises(PVChatError, match="twice"):
        Recipe("double", (RecipeRow("scene", 1), RecipeRow("scene", 2)))


def test_the_paper_recipe_names_the_backends_that_are_missing():
    from pvchat.dataset_builder.build import resolve_backends

    with pytest.raises(MissingBackendError, match="consisid.*--recipe light"):
        resolve_backends(RECIPES["paper"])
