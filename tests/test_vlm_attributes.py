"""Attributes by a language model: what is read from its replies, and who is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pvchat.dataset_builder.backends.vlm import (
    VLMAttributes,
)
from pvchat.dataset_builder.backends.vlm.attributes import parse_json, parse_words
from pvchat.dataset_builder.protocols import AttributeClassifier, Attributes, Person
from pvchat.dataset_builder.video_io import read_video
from pvchat.errors import PVChatError
from tests.vlm_models import make_writer


class Scripted:
    """A writer that gives fixed replies."""

    id, licences = "scripted@1", ("MIT",)

    def __init__(self, *replies):
        self.replies = replies

    def write(self, video, questions):
        assert len(read_video(video)[0]) >= 2
        return list(self.replies[: len(questions)])


PERSON = Person(np.full((3, 33, 40, 3), 90, np.uint8), 5.0)


@pytest.mark.parametrize(
    "reply, expected",
    [
        ('{"gender": "female", "age": "young"}', ("female", "young")),
        ('```json\n{"gender": "male", "age": "middle-aged"}\n```', ("male", "middle-aged")),
        ('{"gender": null, "age": null}', (None, None)),
        ('{"gender": "unknown", "age": "elderly"}', (None, "elderly")),
        ('{"gender": "woman", "age": 41}', ("female", "middle-aged")),
        ('{"gender": "man", "age": "72"}', ("male", "elderly")),
        ('{"age": 34.5}', (None, "young")),
        ('{"gender": "male"}', ("male", None)),
        ("I cannot tell.", (None, None)),
        ("{broken} a young woman", ("female", "young")),
        ('{"gender": "something", "age": "ageless"}', (None, None)),
    ],
)
def test_json_replies_are_read_with_the_freedom_to_abstain(reply, expected):
    assert parse_json(reply) == expected
    classifier = VLMAttributes(Scripted(reply))
    assert isinstance(classifier, AttributeClassifier)
    assert classifier.classify(PERSON) == Attributes(*expected, "scripted@1")


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("Female, young.", ("female", "young")),  # "female" holds "male"
        ("Male, middle aged", ("male", "middle-aged")),
        ("The woman is elderly", ("female", "elderly")),  # "woman" holds "man"
        ("male elderly", ("male", "elderly")),
        ("unknown, young", (None, "young")),
        ("unknown", (None, None)),
        ("A man and a woman, young", (None, "young")),  # two people: not told which
        ("young or middle-aged", (None, None)),
        ("A gentleman of 65 years old", ("male", "elderly")),
        ("Human.", (None, None)),
        ("female, 41", ("female", "middle-aged")),
        ("male; young (18 to 35)", ("male", "young")),
    ],
)
def test_two_word_replies_are_read_by_whole_words(reply, expected):
    assert parse_words(reply) == expected


@pytest.mark.parametrize(
    "reply",
    ['{"gender": "male", "age": "child"}', '{"gender": "girl", "age": null}', '{"age": 17}', '{"age": "9"}',
     "male, child", "a teenager", "She is 12 years old", "A 16-year-old", "male, 17", "A man aged 17"],
)  # fmt: skip
def test_a_child_is_refused_in_every_style(reply):
    for classifier in (VLMAttributes(Scripted(reply)), VLMAttributes(Scripted(reply, "young"), style="words")):
        with pytest.raises(PVChatError, match="minors are refused"):
            classifier.classify(PERSON)


def test_the_age_is_taken_from_the_second_question_when_the_first_names_none():
    classify = VLMAttributes(Scripted("male", "middle-aged"), style="words").classify
    assert classify(PERSON) == Attributes("male", "middle-aged", "scripted@1")
    still = Person(PERSON.frames[:1], 1.0)
    assert VLMAttributes(Scripted("male, young", "elderly"), style="words").classify(still).age == "young"
    with pytest.raises(PVChatError, match="minors are refused"):
        VLMAttributes(Scripted("male, young", "child (under 18)"), style="words").classify(PERSON)
    with pytest.raises(PVChatError, match="got 'xml'"):
        VLMAttributes(Scripted(), style="xml")


def test_attributes_run_on_a_random_model_and_abstain():
    assert VLMAttributes(make_writer("qwen3_vl")).classify(
        Person(np.full((4, 32, 32, 3), 90, np.uint8), 5.0)
    ) == Attributes(None, None, "chat@1:tiny-qwen3_vl@0")  # fmt: skip
