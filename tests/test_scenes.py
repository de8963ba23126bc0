"""The scene bank: what a generator is asked for, and what is then known about its clip."""

import json
import re
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvchat.dataset_builder import scenes
from pvchat.dataset_builder.consent import MINORS
from pvchat.dataset_builder.recipe import DRIVERS
from pvchat.dataset_builder.scenes import SLOTS, Scene, draw_scene, driver_truth, find_scene, prompt_and_truth
from pvchat.errors import PVChatError

BANK = json.loads(Path(scenes.__file__).with_name("scenes.json").read_text(encoding="utf-8"))
GENDERED = set(
    "he she his her hers him himself herself man men woman women boy girl male female lady ladies gentleman guy sir "
    "madam mother father wife husband daughter son sister brother king queen waitress waiter actress actor beard "
    "moustache lipstick bra blouse skirt".split()
)
SEEDS = st.integers(0, 2**31 - 1)
some = settings(max_examples=50, deadline=None)


def words(text):
    return set(re.findall(r"[a-z]+", text.lower()))


@some
@given(SEEDS, st.sampled_from(["person", "woman", "man", "actor", "elder"]))
def test_the_same_seed_gives_the_same_prompt_and_the_prompt_gives_back_its_scene(seed, noun):
    scene = draw_scene(seed, noun)
    assert draw_scene(seed, noun) == scene
    assert find_scene(scene.prompt) == scene


@some
@given(SEEDS)
def test_the_truth_is_said_in_words_of_the_prompt(seed):
    scene = draw_scene(seed)
    assert set(scene.truth) == {"appearance", "action", "location"}
    for answer in scene.truth.values():
        assert answer.startswith("{name} is ") and answer.endswith(".")
        assert words(answer.removeprefix("{name}")) <= words(scene.prompt)
    assert scene.attire in scene.truth["appearance"]
    assert scene.action in scene.truth["action"]
    assert scene.place in scene.truth["location"]


@some
@given(SEEDS, st.sampled_from(["person", "woman", "man"]))
def test_only_the_noun_says_anything_about_gender(seed, noun):
    prompt = draw_scene(seed, noun).prompt
    assert words(prompt) & GENDERED <= {noun}
    assert len(re.findall(rf"\b{noun}\b", prompt)) == 1


def test_the_bank_speaks_of_no_minors_and_of_no_gender():
    phrases = [phrase for setting in BANK["settings"] for slot in SLOTS for phrase in setting[slot]]
    found = set(chain.from_iterable(words(phrase) for phrase in [*phrases, BANK["prompt"]]))
    assert found & (GENDERED | MINORS | {"young", "playground"}) == set()


def test_the_bank_is_large_and_says_nothing_twice():
    places = [place for setting in BANK["settings"] for place in setting["place"]]
    assert len(places) == len(set(places)) >= 64
    for setting in BANK["settings"]:
        for slot in SLOTS:
            assert len(set(setting[slot])) == len(setting[slot]) >= 3, (setting["kind"], slot)


def test_all_slots_of_a_scene_come_from_one_setting():
    for seed in range(50):
        scene = draw_scene(seed)
        assert any(all(getattr(scene, slot) in setting[slot] for slot in SLOTS) for setting in BANK["settings"])


def test_seeds_spread_over_the_settings():
    drawn = [draw_scene(seed) for seed in range(200)]
    assert len({scene.prompt for scene in drawn}) >= 190
    kinds = {s["kind"] for s in BANK["settings"] for scene in drawn if scene.place in s["place"]}
    assert kinds == {setting["kind"] for setting in BANK["settings"]}


def test_the_noun_gets_its_article():
    assert draw_scene(0, "actor").prompt.startswith("An actor wearing ")
    assert draw_scene(0, "woman").prompt.startswith("A woman wearing ")


def test_a_prompt_that_is_not_from_the_bank_has_no_truth():
    scene = draw_scene(4)
    assert find_scene("A person on the moon.") is None
    assert find_scene(scene.prompt + " It rains.") is None
    assert prompt_and_truth("A person on the moon.", 1) == ("A person on the moon.", None)
    assert prompt_and_truth(scene.prompt, 1) == (scene.prompt, scene.truth)
    assert prompt_and_truth("", 4) == (scene.prompt, scene.truth)


@pytest.mark.parametrize("noun", ["", "Woman", "two men", "<Nz>"])
def test_a_noun_that_is_not_one_word_is_refused(noun):
    with pytest.raises(PVChatError, match="one lower-case word"):
        draw_scene(0, noun)


def test_every_driver_has_its_action():
    assert {driver: driver_truth(driver)["action"] for driver in DRIVERS}["no"] == "{name} is shaking the head."


def test_a_scene_is_a_plain_record():
    scene = Scene("person", "a hat", "on a roof", "waving", "Bright sun")
    assert scene.prompt.startswith("A person wearing a hat is waving on a roof. Bright sun.")
    assert find_scene(scene.prompt) is None
