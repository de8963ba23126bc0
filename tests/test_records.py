"""Records refuse bad input in one line and survive a trip through JSON."""

import json

import pytest

from pvchat.dataset_builder import QA, Clip, ConsentRecord, SubjectSpec, normalise_name
from pvchat.errors import PVChatError


@pytest.mark.parametrize("given", ["Nz", "<Nz>", " <Nz> ", " Nz"])
def test_a_name_comes_back_in_one_pair_of_brackets(given):
    assert normalise_name(given) == "<Nz>"


@pytest.mark.parametrize("given", ["", "<>", "123", "<12>", "!!", "a<b", "N\nz", "_x", "x" * 41, "<sks>"])
def test_a_name_without_a_letter_first_or_with_brackets_is_refused_in_one_line(given):
    with pytest.raises(PVChatError) as caught:
        normalise_name(given)
    assert "\n" not in str(caught.value)


def test_names_of_any_alphabet_are_welcome():
    assert normalise_name("Zoë") == "<Zoë>" and normalise_name("李雷") == "<李雷>"


def test_a_subject_survives_json_with_its_consent():
    spec = SubjectSpec(
        "Nz", "clip.mp4", ConsentRecord("N. Z.", "2026-01-31", "train a model for me"), "woman", ("she",)
    )
    assert SubjectSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_clip_survives_json():
    clip = Clip(
        "v", "a.mp4", "00", "scene", True, ("p",), "composite@1", 1, 12.0, 16, 64, 64, True, 0.9, ("x",), {"a": 1}
    )
    assert Clip.from_json(json.loads(json.dumps(clip.to_json()))) == clip


def test_unknown_fields_origins_and_categories_are_named():
    with pytest.raises(PVChatError, match="colour"):
        ConsentRecord.from_json({"given_by": "a", "date": "2026-01-01", "scope": "b", "colour": 1})
    with pytest.raises(PVChatError, match="incomplete"):
        ConsentRecord.from_json({"given_by": "a"})
    with pytest.raises(PVChatError, match="dream"):
        Clip("v", "a.mp4", "00", "dream", True, (), "b", 1, 12.0, 16, 64, 64, True)
    with pytest.raises(PVChatError, match="mood"):
        QA("q", "a", "mood", "template")


def test_only_existence_and_appearance_can_be_answered_from_a_still():
    still = [c for c in ("existence", "appearance", "action", "location") if QA("q", "a", c, "template").still_ok]
    assert still == ["existence", "appearance"]
