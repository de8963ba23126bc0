"""Behaviour of the embedded cartoon world: who is in it, how it looks, and what is said about it."""

from __future__ import annotations

import dataclasses
import itertools

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvchat.dataset_builder.cartoon import (
    ACTIONS,
    ATTRIBUTE_VALUES,
    IDENTITY_FEATURES,
    PLACES,
    Identity,
    Scene,
    attributes,
    cast,
    claim_holds,
    description,
    family,
    general_questions,
    identity_question,
    render_clip,
    render_frame,
    render_matte,
    render_video,
    scene_claim_question,
    vocabulary_corpus,
    write_video,
)

PLAIN = Identity("round", "tan", "short", "brown", "brown", "thin", "small", "small", "none", "none")
CALM = Scene("t-shirt", "white", "kitchen", "nodding")
HEAD = (slice(2, 50), slice(10, 54))  # rows, columns at 64 px
VISIBLE = 0.5  # mean absolute difference over HEAD, of 255; the renderer itself has no noise

seeds = st.integers(0, 2**32 - 1)
identities = st.builds(Identity, **{name: st.sampled_from(values) for name, values in IDENTITY_FEATURES.items()})


def head(identity: Identity) -> np.ndarray:
    return render_frame(identity, CALM, 0.0, 64)[HEAD].astype(int)


# People


def test_the_held_out_split_is_the_same_on_every_machine():
    assert PLAIN.is_held_out is False
    assert [member.identity.is_held_out for member in cast(3, seed=5)] == [True] * 3
    rng = np.random.default_rng(0)
    people = [Identity.random(rng) for _ in range(2000)]
    assert 0.1 < np.mean([person.is_held_out for person in people]) < 0.15


@settings(deadline=None)
@given(identities, seeds, st.integers(0, len(IDENTITY_FEATURES)))
def test_a_look_alike_differs_in_exactly_the_asked_number_of_features(identity, seed, changes):
    assert identity.distance(identity.look_alike(np.random.default_rng(seed), changes)) == changes


@settings(deadline=None)
@given(identities)
def test_an_identity_survives_a_dictionary(identity):
    assert Identity.from_dict(identity.to_dict()) == identity


@settings(deadline=None)
@given(seeds)
def test_a_scene_survives_a_dictionary_and_keeps_fixed_fields(seed):
    scene = Scene.random(np.random.default_rng(seed), place="beach")
    assert scene.place == "beach"
    assert Scene.from_dict(scene.to_dict()) == scene


def test_an_unknown_value_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="hair_color must be one of black.*not 'pink'"):
        dataclasses.replace(PLAIN, hair_color="pink")
    with pytest.raises(ValueError, match="place must be one of"):
        dataclasses.replace(CALM, place="moon")


@pytest.mark.parametrize("held_out", [True, False])
def test_a_cast_is_reproducible_named_and_far_apart(held_out):
    members = cast(40, seed=3, held_out=held_out)
    assert members == cast(40, seed=3, held_out=held_out)
    assert len({member.name for member in members}) == 40
    assert all(member.identity.is_held_out == held_out for member in members)
    assert min(a.identity.distance(b.identity) for a, b in itertools.combinations(members, 2)) >= 4


def test_a_family_is_distinct_look_alikes():
    members = family(PLAIN, 20, np.random.default_rng(1))
    assert len(set(members)) == 20
    assert {PLAIN.distance(member) for member in members} == {1, 2}


def test_an_impossible_family_is_refused():
    with pytest.raises(ValueError, match="no 2 distinct look-alikes"):
        family(PLAIN, 2, np.random.default_rng(0), changes=(0,))


# Pictures


@pytest.mark.parametrize("feature", IDENTITY_FEATURES)
def test_every_single_feature_change_is_visible_at_64_pixels(feature):
    rng = np.random.default_rng(7)
    for person in (PLAIN, *(Identity.random(rng) for _ in range(8))):
        heads = {value: head(dataclasses.replace(person, **{feature: value})) for value in IDENTITY_FEATURES[feature]}
        for first, second in itertools.combinations(heads, 2):
            difference = np.abs(heads[first] - heads[second]).mean()
            assert difference > VISIBLE, f"{first} and {second} look alike on {person}"


def test_hair_colour_shows_on_a_bald_person_without_beard():
    bald = dataclasses.replace(PLAIN, hair_style="bald")
    heads = [head(dataclasses.replace(bald, hair_color=color)) for color in IDENTITY_FEATURES["hair_color"]]
    assert min(np.abs(a - b).mean() for a, b in itertools.combinations(heads, 2)) > VISIBLE


@settings(max_examples=20, deadline=None)
@given(identities, seeds)
def test_clips_are_deterministic(identity, seed):
    scene = Scene.random(np.random.default_rng(seed))
    clip = render_clip(identity, scene, num_frames=3, size=48)
    assert clip.shape == (3, 48, 48, 3)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip, render_clip(identity, scene, num_frames=3, size=48))


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_moves_the_picture(action):
    clip = render_clip(PLAIN, dataclasses.replace(CALM, action=action, phase=0.1)).astype(int)
    assert np.abs(np.diff(clip, axis=0)).mean(axis=(1, 2, 3)).max() > 1.0


def test_places_differ_where_the_person_does_not_stand():
    scenes = [dataclasses.replace(CALM, place=place) for place in PLACES]
    borders = [render_frame(PLAIN, scene, 0.0, 64)[:, :8].astype(int) for scene in scenes]
    assert min(np.abs(a - b).mean() for a, b in itertools.combinations(borders, 2)) > 15


def test_the_matte_separates_the_person_from_any_place():
    matte = render_matte(PLAIN, CALM, 0.3, 64)
    frames = [render_frame(PLAIN, dataclasses.replace(CALM, place=place), 0.3, 64).astype(int) for place in PLACES]
    spread = np.ptp(np.stack(frames), axis=0).max(axis=-1)
    assert matte.dtype == bool
    assert 0.3 < matte.mean() < 0.8
    assert (spread[matte] > 128).mean() == 0
    assert spread[~matte].mean() > 64


def test_a_written_video_reads_back_with_all_its_frames(tmp_path):
    path = tmp_path / "clip.mp4"
    render_video(path, PLAIN, CALM, seconds=1.5, fps=12, size=64)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate)) == ("h264", "yuv420p", 12.0)
    assert len(frames) == 18
    assert np.abs(frames[0].astype(int) - render_frame(PLAIN, CALM, 0.0, 64)).mean() < 8
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError):
        write_video(tmp_path / "clip.mp4", [np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)], 12)
    assert list(tmp_path.iterdir()) == []


# Words


def test_a_description_names_what_is_there_and_nothing_else():
    full = dataclasses.replace(PLAIN, hair_color="red", eye_color="blue", glasses="round", beard="full", ears="large")
    assert description(full) == (
        "The person has a round face, tan skin, short red hair, blue eyes, thin brows, a small nose, large ears, "
        "round glasses and a full beard."
    )
    assert "glasses" not in description(PLAIN)
    assert "beard" not in description(PLAIN)
    assert "a bald head with brown sides" in description(dataclasses.replace(PLAIN, hair_style="bald"))


@settings(deadline=None)
@given(identities, identities)
def test_different_people_have_different_descriptions(first, second):
    assert (first == second) == (description(first) == description(second))


@settings(deadline=None)
@given(identities, seeds)
def test_the_same_seed_asks_the_same_questions(identity, seed):
    scene = Scene.random(np.random.default_rng(seed))
    first, second = (general_questions(identity, scene, np.random.default_rng(seed), 5) for _ in range(2))
    assert first == second


@settings(deadline=None)
@given(identities, seeds)
def test_yes_and_no_agree_with_the_attributes(identity, seed):
    rng = np.random.default_rng(seed)
    scene = Scene.random(rng)
    truth = attributes(identity, scene)
    for item in (identity_question(identity, rng), scene_claim_question(identity, scene, rng)):
        assert item.kind == "yes_no"
        assert item.claim
        assert item.answer.split(",")[0] == ("Yes" if claim_holds(truth, item.claim) else "No")


def test_questions_cover_all_kinds_and_yes_is_as_frequent_as_no():
    rng = np.random.default_rng(0)
    items = [item for _ in range(200) for item in general_questions(Identity.random(rng), Scene.random(rng), rng, 20)]
    assert {item.kind for item in items} == {"appearance", "clothing", "action", "place", "yes_no"}
    claims = [item for item in items if item.kind == "yes_no"]
    assert 0.45 < np.mean([item.answer.startswith("Yes") for item in claims]) < 0.55
    about_people = [item for item in claims if item.claim.keys() <= IDENTITY_FEATURES.keys()]
    assert 0.36 < len(about_people) / len(items) < 0.46


def test_half_of_the_false_claims_about_a_person_are_near_misses():
    rng = np.random.default_rng(0)
    truth = PLAIN.to_dict()
    wrong = [
        sum(truth[name] != value for name, value in item.claim.items())
        for item in (identity_question(PLAIN, rng) for _ in range(2000))
        if len(item.claim) == 8 and item.answer.startswith("No")
    ]
    assert 0.4 < np.mean(np.array(wrong) <= 2) < 0.6


def test_an_open_question_always_gets_the_answer_of_its_group():
    rng = np.random.default_rng(2)
    answers: dict[str, set[str]] = {}
    for item in general_questions(PLAIN, CALM, rng, 2000):
        if item.kind != "yes_no":
            answers.setdefault(item.question, set()).add(item.answer)
    assert all(len(given_answers) == 1 for given_answers in answers.values())
    assert answers["What is the person doing?"] == {"The person is nodding."}
    assert answers["What colour is the person's hair?"] == {"Brown."}


def test_the_corpus_holds_every_word_of_every_question():
    def words(text: str) -> set[str]:
        return {word.strip("?.,").lower() for word in text.split()}

    known = set().union(*(words(line) for line in vocabulary_corpus(clips=0)))
    rng = np.random.default_rng(9)
    for _ in range(200):
        for item in general_questions(Identity.random(rng), Scene.random(rng), rng, 5):
            assert words(f"{item.question} {item.answer}") <= known


def test_attributes_are_values_a_head_can_classify():
    truth = attributes(PLAIN, CALM)
    assert truth.keys() == ATTRIBUTE_VALUES.keys()
    assert all(value in ATTRIBUTE_VALUES[name] for name, value in truth.items())
