"""Grouped batches: what is in them, who sees whom, and which questions an epoch brings."""

import pytest
import torch

from pvchat.errors import PVChatError
from pvchat.trainers.collator import (
    IGNORED,
    GroupedCollator,
    existence_weights,
    group_mask,
    questions_of_epoch,
    training_rows,
)
from tests.tiny import SUBJECT, tiny_processor, tiny_videos


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return training_rows(tiny_videos(tmp_path_factory.mktemp("videos"), positives=1, negatives=2), still=False)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def test_a_row_is_the_prefix_followed_by_every_question_with_its_answer(rows, processor):
    batch = GroupedCollator(processor)(rows[:1])
    expected = processor.encode_prefix()
    for qa in rows[0]["qa"]:
        expected = expected + processor.encode_qa(qa["question"], qa["answer"], SUBJECT)[0]
    assert batch["input_ids"][0].tolist() == expected


def test_labels_are_answers_with_their_end_token_and_nothing_else(rows, processor):
    batch = GroupedCollator(processor)(rows[:1])
    labels = batch["labels"][0]
    learned = labels[labels != IGNORED].tolist()
    expected = []
    for qa in rows[0]["qa"]:
        ids, asked = processor.encode_qa(qa["question"], qa["answer"], SUBJECT)
        assert ids[-1] == processor.tokenizer.eos_token_id
        expected += ids[asked:]
    assert learned == expected
    assert torch.equal(labels[labels != IGNORED], batch["input_ids"][0][labels != IGNORED])


def test_positions_restart_after_the_prefix_in_every_question(rows, processor):
    batch = GroupedCollator(processor)(rows[:1])
    start = len(processor.encode_prefix())
    lengths = [len(processor.encode_qa(qa["question"], qa["answer"], SUBJECT)[0]) for qa in rows[0]["qa"]]
    expected = list(range(start)) + [start + i for length in lengths for i in range(length)]
    assert batch["position_ids"][0].tolist() == expected


def test_the_mask_shows_prefix_and_own_question_only():
    mask = group_mask(torch.tensor([[0, 0, 1, 1, 2, 2, -1]]))[0, 0]
    seen = [[j for j in range(7) if mask[i, j]] for i in range(7)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 6]]


def test_the_name_never_reaches_the_ids(rows, processor):
    batch = GroupedCollator(processor)(rows)
    text = processor.tokenizer.decode(batch["input_ids"].flatten().tolist())
    assert "Nz" not in text and "<sks>" in text


def test_ungrouped_rows_repeat_the_video_for_every_question(rows, processor):
    grouped = GroupedCollator(processor)(rows)
    single = GroupedCollator(processor, grouped=False)(rows)
    assert len(grouped["pixel_values_videos"]) == len(rows)
    assert len(single["pixel_values_videos"]) == len(single["input_ids"]) == sum(len(row["qa"]) for row in rows)
    learned = [batch["labels"][batch["labels"] != IGNORED].tolist() for batch in (grouped, single)]
    assert learned[0] == learned[1]


def test_still_repeats_the_first_frame(rows, processor):
    pixels = GroupedCollator(processor, still=True)(rows[:1])["pixel_values_videos"]
    assert torch.equal(pixels, pixels[:, :, :1].expand_as(pixels))


def test_every_question_comes_once_before_any_comes_twice():
    seen = [i for epoch in range(3) for i in questions_of_epoch(12, 4, 0, "v", epoch)]
    assert sorted(seen) == list(range(12))
    assert seen != sorted(seen)


def test_questions_depend_on_seed_video_and_epoch_only():
    pick = questions_of_epoch(12, 5, 0, "v", 7)
    assert pick == questions_of_epoch(12, 5, 0, "v", 7) and len(set(pick)) == 5
    others = [questions_of_epoch(12, 5, *arguments) for arguments in ((1, "v", 7), (0, "w", 7), (0, "v", 8))]
    assert pick not in others


def test_all_questions_come_every_time_when_none_are_left_out():
    assert questions_of_epoch(5, None, 0, "v", 3) == questions_of_epoch(5, 9, 0, "v", 3) == [0, 1, 2, 3, 4]


def test_existence_weights_give_yes_and_no_the_same_total(rows, processor):
    questions = [question for row in rows for question in row["qa"]]
    weights = existence_weights(questions)
    existence = [q["subject_present"] for q in questions if q["category"] == "existence"]
    assert sum(existence) * weights[True] == pytest.approx((len(existence) - sum(existence)) * weights[False])
    assert sum(weights[present] for present in existence) == pytest.approx(len(existence))
    assert existence_weights([q for q in questions if q["subject_present"]]) == {True: 1.0, False: 1.0}


def test_only_existence_answers_are_weighted(rows, processor):
    batch = GroupedCollator(processor, weights={True: 2.0, False: 0.5})(rows[:1])
    start = len(processor.encode_prefix())
    found = []
    for qa in rows[0]["qa"]:
        length = len(processor.encode_qa(qa["question"], qa["answer"], SUBJECT)[0])
        found.append(set(batch["loss_weights"][0, start : start + length].tolist()))
        start += length
    assert found == [{2.0}, {1.0}, {1.0}, {1.0}]


def test_the_decision_weight_falls_on_the_first_word_of_existence_answers_alone(rows, processor):
    plain = GroupedCollator(processor)(rows[:1])["loss_weights"]
    weighted = GroupedCollator(processor, decision_weight=5.0)(rows[:1])["loss_weights"]
    start = len(processor.encode_prefix())
    first = rows[0]["qa"][0]
    assert first["category"] == "existence"
    decision = start + processor.encode_qa(first["question"], first["answer"], SUBJECT)[1]
    assert (weighted != plain).nonzero().tolist() == [[0, decision]]
    assert weighted[0, decision] == 5.0 * plain[0, decision]


def test_stage_1_keeps_what_a_still_can_answer(tmp_path):
    videos = tiny_videos(tmp_path, positives=1, negatives=0)
    assert {q["category"] for row in training_rows(videos, still=True) for q in row["qa"]} == {
        "existence",
        "appearance",
    }
    with pytest.raises(PVChatError, match="no existence or appearance question"):
        training_rows([], still=True)
