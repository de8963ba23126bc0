"""Costs of training, counted: no clock is read here."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks import train_cost, training_memory
from benchmarks.cost_setup import config_of, make_model, make_processor, make_rows, rows_of_stage
from benchmarks.step_pairs import FullSteps
from benchmarks.train_cost import (
    MEASURED_CLIPS,
    SCHEDULES,
    count_stage,
    epoch_batches,
    make_trainers,
    merged_steps,
    totals,
)
from benchmarks.training_memory import LIMITS, WAYS, items_of
from pvchat.trainers.features import FeatureCache


@pytest.fixture(scope="module")
def counts(tmp_path_factory):
    """FLOPs of one epoch of each stage at tiny size, as `train_cost.measure` counts them."""
    folder = tmp_path_factory.mktemp("cost")
    model = make_model("tiny", "reference")
    processor = make_processor(config_of("tiny"))
    rows = make_rows(folder)
    inner = model.get_base_model().model
    stages = {}
    for stage in (1, 2):
        own = rows_of_stage(rows, stage)
        features = FeatureCache(inner, processor, folder / "features", len(inner.vision_tower.layers), stage == 1)
        features.fill(own)
        build = partial(train_cost.build, model)
        trainers = make_trainers(build, stage, own, processor, features, folder, "tiny", seed=0)
        stages[stage] = {"flops": count_stage(trainers, own, 1)}
    return {"questions": train_cost.count_questions(rows), "stages": stages}


def test_the_fast_schedule_takes_less_than_an_eighth_of_the_references_flops(counts):
    found = totals(counts, MEASURED_CLIPS)
    assert found["ours"]["flops_ratio"] >= 8
    assert found["reference"]["flops_ratio"] == 1
    assert 1 < found["ours_without_cache"]["flops_ratio"] < found["ours"]["flops_ratio"]


def test_encoding_is_about_half_of_the_references_cost_as_at_full_size(counts):
    assert 0.4 < train_cost.summary(counts, "tiny")["vision_share_of_reference"] < 0.6


def test_the_page_has_the_ratio_of_each_schedule_and_the_passport(counts):
    result = train_cost.summary(counts, "tiny")
    result["passport"] = {
        "command": "python -m benchmarks.train_cost", "seed": 0, "created": "2026-01-01T00:00:00Z",
        "versions": {"pvchat": "1", "torch": "2"}, "hardware": {"cpu": "cpu", "cores": 2, "gpus": []},
    }  # fmt: skip
    page = train_cost.markdown(result)
    assert "`python -m benchmarks.train_cost` · seed 0" in page
    assert f"| {result['flops_ratio']:.2f} |" in page and "Extrapolated" in page


def test_both_schedules_ask_every_question_once_an_epoch_and_stay_level():
    import numpy as np

    rows = [{"video_id": str(i), "qa": list(range(3 + i))} for i in range(4)]
    batches = {name: epoch_batches(name, rows, 1, np.random.default_rng(0)) for name in SCHEDULES}
    for own in batches.values():
        asked = sorted((row["video_id"], q) for batch in own for row in batch for q in row["qa"])
        assert asked == [(row["video_id"], q) for row in rows for q in row["qa"]]
    assert all(len(batch) == 2 for batch in batches["reference"])
    order = [name for name, _ in merged_steps(batches)]
    assert order.count("reference") == 9 and order.count("ours") == 4
    assert order[-2:].count("ours") == 1  # the last steps of both come last


def test_the_full_size_without_a_gpu_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert train_cost.main(["--size", "full"]) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "--count-only" in said.err and not said.out


@pytest.mark.slow
def test_a_full_size_step_fits_the_cards_that_people_own(tmp_path):
    steps = FullSteps(tmp_path, make_rows(tmp_path, others=0))
    ways = {way.title: way for way in WAYS}
    light, small = (items_of(steps, ways[title]) for title in ("light, 30 questions", "light, 4 bits, 30 questions"))
    assert 16e9 < sum(light.values()) <= LIMITS["bfloat16"]
    assert 5e9 < sum(small.values()) <= LIMITS["4 bits"]
    assert all(size > 0 for size in light.values())
    differing = {name for name in light if light[name] != small[name]}
    assert differing == {"layers of the language model"}
    page = training_memory.markdown({"ways": {"light": light}, "passport": {
        "command": "c", "seed": 0, "created": "2026-01-01T00:00:00Z", "versions": {"pvchat": "1", "torch": "2"},
        "hardware": {"cpu": "cpu", "cores": 2, "gpus": []},
    }})  # fmt: skip
    assert f"**{sum(light.values()) / 1e9:.1f}**" in page
