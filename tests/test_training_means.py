"""The means of `benchmarks/training_means.py`: both sides are the same step, and cost what the page says they cost.

Counted, never timed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.counters import count_flops
from benchmarks.means_memory import AllLogits, ChunkedLoss
from benchmarks.means_reading import padding_share
from benchmarks.step_pairs import TinySteps, first_questions, in_turn, row_lengths
from benchmarks.training_means import MEANS, main, markdown
from pvchat.trainers.features import FeatureCache
from tests.tiny import tiny_model, tiny_processor, tiny_videos

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAIRS = {  # options of the side without the means, and with it
    "states on disk": ({"cached": False}, {}),
    "states of frozen blocks on disk": ({"profile": "paper", "cached": False}, {"profile": "paper"}),
    "questions in one row": ({"grouped": False}, {}),
    "no logits for the prompt": ({"trainer_class": AllLogits}, {}),
    "loss in chunks": ({}, {"trainer_class": ChunkedLoss}),
    "checkpointing": ({}, {"checkpointing": True}),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinySteps:
    return TinySteps(tmp_path_factory.mktemp("means"), seed=0, clips=3)


def both_sides(tiny: TinySteps, name: str, questions: int = 4):
    steps = [[[first_questions(tiny.rows[0], questions)]]]
    return [tiny.side(steps, **options) for options in PAIRS[name]]


@pytest.mark.parametrize("name", PAIRS)
def test_a_means_leaves_the_loss_as_it_is(tiny, name):
    without, with_it = both_sides(tiny, name)
    assert without.losses()[0] > 1
    assert with_it.losses() == pytest.approx(without.losses(), abs=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_a_means_leaves_the_gradients_as_they_are(tiny, name):
    gradients = []
    for side in both_sides(tiny, name):
        side.set_checkpointing()
        (batch,), count = side.collated(side.steps[0])
        side.trainer.training_step(side.trainer.model, batch, count)
        gradients.append({n: p.grad for n, p in side.trainer.model.named_parameters() if p.grad is not None})
        side.trainer.model.zero_grad()
    without, with_it = gradients
    assert without.keys() == with_it.keys() and len(without) > 50
    for parameter, gradient in without.items():
        torch.testing.assert_close(with_it[parameter], gradient, rtol=1e-3, atol=1e-5, msg=parameter)


def test_one_clip_at_a_time_has_the_loss_of_the_padded_batch_and_no_padding(tiny):
    rows = [first_questions(row, count) for row, count in zip(tiny.rows, (6, 2, 3), strict=True)]
    together, alone = tiny.side([[rows]]), tiny.side([[[row] for row in rows]])
    assert alone.losses() == pytest.approx(together.losses(), abs=1e-5)
    (padded,), answers = together.collated(together.steps[0])
    single, the_same = alone.collated(alone.steps[0])
    assert answers == the_same
    assert sum(batch["input_ids"].numel() for batch in single) < padded["input_ids"].numel()
    assert count_flops(alone.run) < count_flops(together.run)


@pytest.mark.parametrize(
    "name", ["states on disk", "states of frozen blocks on disk", "questions in one row", "no logits for the prompt"]
)
def test_these_means_spare_flops(tiny, name):
    without, with_it = both_sides(tiny, name)
    assert count_flops(with_it.run) < count_flops(without.run)


def test_checkpointing_pays_flops_for_bytes(tiny):
    without, with_it = both_sides(tiny, "checkpointing", questions=18)
    for side in (without, with_it):
        side.run()  # makes the optimiser's states
    assert count_flops(with_it.run) > count_flops(without.run)
    assert with_it.peak() < 0.7 * without.peak()


def test_a_side_takes_optimiser_steps(tiny):
    side = tiny.side([[[first_questions(tiny.rows[0], 2)]]] * 2)
    before = side.losses()
    assert before[0] == before[1]
    moved = {n: p.clone() for n, p in side.trainer.model.named_parameters()}
    side.run()
    changed = {n for n, p in side.trainer.model.named_parameters() if not torch.equal(p, moved[n])}
    assert changed and changed <= {n for n, p in side.trainer.model.named_parameters() if p.requires_grad}


def test_both_ways_take_turns_and_the_first_of_each_does_not_count():
    calls = []
    ratios = in_turn(lambda: calls.append("without"), lambda: calls.append("with"), 2)
    assert calls == ["without", "with"] * 3
    assert set(ratios) == {"time", "processor", "seconds_without", "seconds_with"}


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60), st.integers(1, 8), st.randoms())
def test_sorted_clips_never_need_more_padding(lengths, batch, random):
    lengths = np.array(lengths[: len(lengths) // batch * batch or 1])
    order = list(range(len(lengths)))
    random.shuffle(order)
    least = padding_share(lengths, np.argsort(lengths), batch)
    assert -1e-9 <= least <= padding_share(lengths, np.array(order), batch) + 1e-9 < 1
    assert padding_share(lengths, order, 1) == pytest.approx(0.0)


def test_the_papers_recipe_has_long_rows_for_described_clips_only():
    lengths, source = row_lengths(None)
    assert source == "the paper's recipe" and len(lengths) == 81
    assert sorted(set(lengths)) == [361 + 15 * 52, 361 + 30 * 52] and (lengths > 1500).sum() == 16


# -- reading ahead ----------------------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path):
    videos = tiny_videos(tmp_path, positives=3, negatives=4)
    return [{"sha256": video.sha256, "path": str(video.path)} for video in videos]


def empty_cache(folder: Path, still: bool = False) -> FeatureCache:
    return FeatureCache(tiny_model().model, tiny_processor(), folder, 3, still)


@pytest.mark.parametrize("still", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 8])
def test_clips_that_are_read_ahead_keep_their_own_states(tmp_path, clips, batch_size, still):
    features = empty_cache(tmp_path / "features", still).fill(clips, batch_size=batch_size)
    for row in clips:
        pixels = features.processor.video_processor(videos=[row["path"]], return_tensors="pt", still=still)
        with torch.no_grad():
            states = features.model.encode_video(pixels["pixel_values_videos"])[0]
        torch.testing.assert_close(features.get(row["sha256"]), states, rtol=0, atol=1e-6)


def test_a_filled_cache_reads_nothing(tmp_path, clips, monkeypatch):
    features = empty_cache(tmp_path / "features").fill(clips, batch_size=2)
    monkeypatch.setattr(features, "_pixels", lambda path: pytest.fail(f"{path} was read again"))
    features.fill(clips, batch_size=2)
    features.fill([])


def test_no_more_than_two_batches_of_pixels_are_held(tmp_path, clips, monkeypatch):
    features = empty_cache(tmp_path / "features")
    read, encoded, ahead = [], [], []
    pixels, encode = features._pixels, features.model.encode_video

    def reading(path):
        read.append(path)
        ahead.append(len(read) - len(encoded))
        return pixels(path)

    def encoding(videos, **kwargs):
        encoded.extend(videos)
        return encode(videos, **kwargs)

    monkeypatch.setattr(features, "_pixels", reading)
    monkeypatch.setattr(features.model, "encode_video", encoding)
    features.fill(clips, batch_size=2)
    assert len(read) == len(encoded) == len(clips) and max(ahead) <= 4


def test_a_clip_that_cannot_be_read_stops_after_the_batches_before_it(tmp_path, clips):
    Path(clips[5]["path"]).write_bytes(b"no video")
    features = empty_cache(tmp_path / "features")
    with pytest.raises(ValueError, match="train-005.mp4"):
        features.fill(clips, batch_size=2)
    assert {path.stem for path in features.folder.iterdir()} == {row["sha256"][:32] for row in clips[:4]}


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_committed_page_has_every_means_with_a_decision_and_a_reason():
    result = json.loads((RESULTS / "training_means.json").read_text(encoding="utf-8"))
    assert [name for name in MEANS if name not in {row["name"] for row in result["rows"]}] == []
    for row in result["rows"]:
        assert row["kept"] in ("yes", "no", "setting", "not measured"), row["means"]
        assert row["reason"].endswith((".", "!")) and "|" not in row["reason"] + row["setting"]
        assert row["kept"] == "not measured" or row["tiny"] or row["full"], row["means"]
    page = (RESULTS / "training_means.md").read_text(encoding="utf-8")
    assert page == markdown(result)
    assert all(f"| {row['means']} |" in page for row in result["rows"])


def test_a_means_by_name_is_written_with_its_passport(tmp_path, capsys):
    assert main(["--only", "liger", "--write", str(tmp_path), "--json"]) == 0
    written = json.loads((tmp_path / "training_means.json").read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == written
    assert [row["kept"] for row in written["rows"]] == ["not measured"]
    assert written["passport"]["command"].startswith("python -m benchmarks.training_means --only liger")
    assert (tmp_path / "training_means.md").read_text(encoding="utf-8") == markdown(written)


def test_a_folder_without_a_dataset_is_one_line_and_writes_nothing(tmp_path, capsys):
    assert main(["--dataset", str(tmp_path / "nowhere"), "--write", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "nowhere" in printed.err and not printed.out
    assert not (tmp_path / "out").exists()


def test_an_unknown_means_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--only", "magic"])
    assert error.value.code == 2 and "magic" in capsys.readouterr().err
