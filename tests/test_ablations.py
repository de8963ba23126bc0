"""Ablations: every variant differs in what its row says and in nothing else, finished work is kept, tables add up."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pvchat.cli import main
from pvchat.cli.ablate import TABLES as CLI_TABLES
from pvchat.dataset_builder import assemble_dataset
from pvchat.errors import PVChatError
from pvchat.evaluation.ablation import jobs as jobs_module
from pvchat.evaluation.ablation import study as study_module
from pvchat.evaluation.ablation import variants as variants_module
from pvchat.evaluation.ablation.study import JOB_SECONDS, Study, plan, run_study
from pvchat.evaluation.ablation.subjects import Subject, cast_recipe, read_subjects
from pvchat.evaluation.ablation.tables import COLUMNS, markdown, means, reading, table_of
from pvchat.evaluation.ablation.variants import (
    DATA,
    FULL,
    LOSSES,
    PAPER_TOKENS,
    TABLES,
    TOKEN_COUNTS,
    set_subject_tokens,
    tables_for,
    token_table,
    with_origins,
)
from pvchat.trainers.config import Stage2Config
from pvchat.trainers.sparsity import SparsityController
from tests.tiny import SUBJECT, tiny_base, tiny_config, tiny_model, tiny_processor, tiny_videos

ORIGINS = ("original", "scene", "animated", "hard_negative", "random_negative", "random_negative")
QUICK = {"train": {"qa_per_video": 1, "per_device_train_batch_size": 8, "num_train_epochs": 1, "save_strategy": "no"}}


def write_tiny_dataset(folder, test=2):
    rows = tiny_videos(folder / "drawn", positives=3, negatives=3)
    rows = [replace(row, origin=origin) for row, origin in zip(rows, ORIGINS, strict=True)]
    rows += tiny_videos(folder / "drawn", test, test, split="test")
    return assemble_dataset(SUBJECT, rows, folder / "dataset", {"noun": "person", "seed": 0, "fictional": True})


@pytest.fixture(scope="module", autouse=True)
def few_token_rows():
    """Two rows of the token table besides the base's own, to save time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(variants_module, "TOKEN_COUNTS", (0, 5))
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(base folder, dataset) of tiny things on disk."""
    folder = tmp_path_factory.mktemp("world")
    return tiny_base(folder / "base"), write_tiny_dataset(folder)


@pytest.fixture(scope="module")
def studied(world, tmp_path_factory):
    """A finished study of all tables: (study, tables, folder of its runs)."""
    base, dataset = world
    study = Study(
        TABLES, tmp_path_factory.mktemp("study") / "out", seeds=1, data=(dataset.root,), base=str(base), settings=QUICK
    )
    done = []
    tables = run_study(study, command="pvchat ablate all", progress=lambda *what: done.append(what))
    assert [number for _, number, _, _ in done] == list(range(1, len(done) + 1))
    (subject,) = (study.out / "runs").iterdir()
    return study, tables, subject / "seed-0"


def adapter_of(folder, variant):
    return load_file(folder / variant / "adapter" / "adapter_model.safetensors")


def history_of(folder, variant, stage):
    return json.loads((folder / variant / f"stage{stage}" / "history.json").read_text())


# -- what a variant changes -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_only_routed_attention_has_routers_and_each_kind_is_recorded(studied):
    _, tables, folder = studied
    for variant, routing in (("attention-none", "none"), ("attention-moh", "moh"), ("full", "remoh")):
        assert any("head_router" in name for name in adapter_of(folder, variant)) == (routing != "none")
        record = json.loads((folder / variant / "adapter" / "subject.json").read_text())
        assert record["qformer"]["routing"] == routing
    scores = {row["title"]: row["scores"] for row in tables["attention"]["rows"]}
    assert scores["Q-Former"]["activation_rate"] is None
    assert scores["MoH"]["activation_rate"]["mean"] == pytest.approx(0.5)
    assert 0.0 < scores["ReMoH"]["activation_rate"]["mean"] <= 1.0


@pytest.mark.slow
def test_stages_train_alone_and_together(studied):
    _, _, folder = studied
    trained = {
        variant: [stage for stage in "12" if (folder / variant / f"stage{stage}").exists()]
        for variant in ("stages-image", "stages-video", "full")
    }
    assert trained == {"stages-image": ["1"], "stages-video": ["2"], "full": ["1", "2"]}


@pytest.mark.slow
def test_data_rows_grow_by_the_clips_that_they_name(studied):
    _, tables, _ = studied
    clips = {row["title"]: row["scores"]["clips"]["mean"] for row in tables["data"]["rows"]}
    assert clips == {"originals": 1, "+ negatives": 4, "+ scene positives": 5, "+ animated positives": 6}


@pytest.mark.slow
def test_token_rows_have_as_many_subject_tokens_as_they_say(studied):
    _, tables, folder = studied
    assert [row["title"] for row in tables["tokens"]["rows"]] == [f"{n} tokens" for n in (0, 3, 5)]
    for row in tables["tokens"]["rows"]:
        tokens = [v for n, v in adapter_of(folder, row["variant"]).items() if n.endswith("subject_tokens.weight")]
        assert [len(value) for value in tokens] == [int(row["title"].split()[0])]


@pytest.mark.slow
def test_the_losses_that_a_row_lacks_are_zero_in_its_history(studied):
    _, _, folder = studied
    spr = {name: history_of(folder, name, 2)["steps"][-1]["spr"] for name in ("losses-none", "losses-spr", "full")}
    assert spr["losses-none"] == 0.0 and spr["losses-spr"] > 0.0 and spr["full"] > 0.0


def test_the_loss_rows_switch_off_what_they_say(tmp_path):
    qformer = tiny_config("remoh").qformer_config
    logits = (torch.linspace(-3, 1, 20).view(1, 10, 2),)  # mostly silent, so that HAE acts
    found = {}
    for row in LOSSES.rows:
        config = Stage2Config(str(tmp_path), use_cpu=True, **row.variant.settings.get("train", {}))
        terms = SparsityController(config, qformer).terms(logits, training=False)
        found[row.variant.name] = (float(terms.spr) > 0, float(terms.hae) > 0)
    assert found == {"losses-none": (False, False), "losses-spr": (True, False), "full": (True, True)}


def test_origins_are_dropped_from_training_only_and_give_another_hash(world):
    _, dataset = world
    hashes = {dataset.hash}
    for row in DATA.rows[:-1]:
        part = with_origins(dataset, row.variant.origins)
        assert {video.origin for video in part.split("train")} == set(row.variant.origins)
        assert part.split("test") == dataset.split("test")
        hashes.add(part.hash)
    assert len(hashes) == len(DATA.rows)
    assert with_origins(dataset, None) is dataset
    with pytest.raises(PVChatError, match="no training clips of origin portrait; it has animated, hard_negative"):
        with_origins(dataset, ("original", "portrait"))


@pytest.mark.parametrize("count", [0, 2, 3, 5])
def test_another_number_of_subject_tokens_keeps_the_first_and_still_reads_a_prompt(count):
    model, processor = tiny_model(), tiny_processor()
    before = model.model.subject_tokens.weight.clone()
    set_subject_tokens(model, processor, count)
    tokens = model.model.subject_tokens.weight
    assert tokens.shape == (count, 32)
    assert torch.equal(tokens[:3], before[:count])
    assert len({tuple(token.tolist()) for token in tokens}) == count  # none is a copy of another
    ids = torch.tensor([processor.encode_prefix()])
    with torch.no_grad():
        assert model(input_ids=ids, pixel_values_videos=torch.zeros(1, 1, 4, 3, 32, 32)).logits.isfinite().all()
    again = tiny_model()
    set_subject_tokens(again, tiny_processor(), count)
    assert torch.equal(tokens, again.model.subject_tokens.weight)


def test_the_base_s_own_number_of_tokens_is_the_full_system():
    assert set(TOKEN_COUNTS) == set(PAPER_TOKENS)
    for own in (3, 5):
        rows = {row.title: row.variant.name for row in token_table(own).rows}
        assert [title for title, name in rows.items() if name == "full"] == [f"{own} tokens"]
    assert token_table(3).rows[0].variant.settings == {"adapter": {"subject_init": "base"}}


# -- finished work ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_tables_share_is_trained_once_and_nothing_is_done_again(studied, monkeypatch):
    study, tables, folder = studied
    assert len(list(folder.iterdir())) == len({row["variant"] for table in tables.values() for row in table["rows"]})
    found = plan(study)
    assert found["jobs"] == found["finished"] and found["seconds"] == 0.0
    monkeypatch.setattr(jobs_module, "train_subject", forbidden)
    again = run_study(study, command="pvchat ablate all")
    assert {n: t["rows"] for n, t in again.items()} == {n: t["rows"] for n, t in tables.items()}


def forbidden(*args, **kwargs):
    raise AssertionError("a finished job was done again")


@pytest.mark.slow
def test_a_lost_result_is_made_again_from_what_is_there(studied, monkeypatch):
    study, tables, folder = studied
    before = json.loads((folder / "full" / "result.json").read_text())
    (folder / "full" / "result.json").unlink()
    asked, trained = [], []
    real = jobs_module.train_subject
    monkeypatch.setattr(jobs_module, "train_subject", lambda *a, **k: trained.append(a[2]) or real(*a, **k))
    monkeypatch.setattr(jobs_module.VideoChat, "replies", lambda *a, **k: asked.append(a))
    shared = plan(study)
    assert shared["finished"] == shared["jobs"] - 1
    run_study(replace(study, tables=("attention",)))
    after = json.loads((folder / "full" / "result.json").read_text())
    assert trained == [folder / "full"] and asked == []  # answers of the same adapter are kept
    assert after["scores"] == before["scores"] and after["key"] == before["key"]


@pytest.mark.slow
def test_encoder_states_are_shared_and_kept(studied):
    study, _, folder = studied
    states = list((study.out / "features").rglob("*.safetensors"))
    assert len(states) == 2 * 6  # first frames and clips of the training split, once for all variants
    assert not list(folder.rglob("features"))


def test_another_seed_base_dataset_or_setting_is_another_job(world, tmp_path):
    base, dataset = world
    (subject,) = read_subjects([dataset.root])
    job = jobs_module.Job(FULL, subject, 0, str(base), "h", "light", QUICK, tmp_path, tmp_path)
    others = [
        replace(job, seed=1), replace(job, base_hash="i"), replace(job, subject=replace(subject, hash="x")),
        replace(job, settings={}), replace(job, profile="paper"), replace(job, variant=LOSSES.rows[0].variant),
    ]  # fmt: skip
    assert len({job.key, *(other.key for other in others)}) == 7
    assert job.key == replace(job, folder=tmp_path / "moved").key
    (tmp_path / "result.json").write_text(json.dumps({"key": job.key}))
    assert jobs_module.finished(job) is not None and jobs_module.finished(others[0]) is None


# -- tables -----------------------------------------------------------------------------------------------------------


def line(subject, video, present, right):
    said = present if right else not present
    return {
        "qa_id": f"{video}-0", "video_id": video, "subject": subject, "category": "existence", "present": present,
        "origin": "user" if present else "hard_negative", "answer": "Yes." if said else "No.", "margin": None,
        "gold": "", "question": "", "split": "test", "source": "template",
    }  # fmt: skip


def result(variant, subject, seed, score, **scores):
    names = {name: None for name in ("activation_rate", "auroc", "bleu4", "appearance", "action", "location")}
    names |= dict.fromkeys(("accuracy", "false_accept_lookalike", "false_accept_stranger", "bleu1"), 0.5)
    training = {"loss": 0.1, "steps": 4, "clips": 6}
    scores = names | {"balanced_accuracy": score} | scores
    return {"variant": variant, "subject": subject, "seed": seed, "scores": scores, "training": training}


def synthetic(subjects=("a", "b", "c"), seeds=(0, 1), bad=0.6):
    """Results and lines of the loss table: the full system is always right, the others in `bad` of the clips."""
    results, lines = {}, {}
    for row in LOSSES.rows:
        name = row.variant.name
        share = 1.0 if name == "full" else bad
        results[name] = [result(name, s, seed, share) for s in subjects for seed in seeds]
        lines[name] = [
            line(f"<{s}>", f"{s}{i}", i % 2 == 0, (i // 2) / 10 < share)
            for s in subjects
            for _ in seeds
            for i in range(20)
        ]
    return results, lines


def test_a_cell_is_the_mean_and_its_interval_resamples_subjects_not_runs():
    own = [result("full", s, seed, {"a": 0.6, "b": 0.8}[s]) for s in "ab" for seed in range(50)]
    found = means(own, seed=0)["balanced_accuracy"]
    assert found["mean"] == pytest.approx(0.7)
    assert found["interval"] == pytest.approx([0.6, 0.8])  # a hundred runs, but two subjects
    assert means(own[:50], seed=0)["balanced_accuracy"]["interval"] is None
    assert means(own, seed=0)["activation_rate"] is None


def test_a_variant_is_tested_against_the_full_system_on_the_same_questions():
    table = table_of(LOSSES, *synthetic(), seed=0)
    first, _, last = table["rows"]
    assert first["against_full"]["difference"] == pytest.approx(-0.4)
    assert first["against_full"]["interval"][1] < 0 and first["against_full"]["p"] < 0.01
    assert last["against_full"] is None and last["n"] == 6
    assert table["reading"].startswith("Worse than the full system: without SPR and HAE, without HAE.")


def test_equal_variants_are_not_told_apart():
    table = table_of(LOSSES, *synthetic(bad=1.0), seed=0)
    assert "Not told apart from it" in table["reading"] and "Worse" not in table["reading"]


def test_the_reading_says_whether_the_paper_s_order_holds():
    def row(title, paper, mean):
        return {"title": title, "paper": paper, "scores": {"balanced_accuracy": {"mean": mean}}, "against_full": None}

    same = reading([row("Q-Former", 0.7, 0.6), row("MoH", 0.8, 0.7)])
    assert same == "From worst to best: Q-Former < MoH; as in the paper."
    other = reading([row("Q-Former", 0.7, 0.8), row("MoH", 0.8, 0.7)])
    assert other == "From worst to best: MoH < Q-Former; the paper has Q-Former < MoH."


def test_the_page_has_as_many_cells_in_every_row_and_names_no_machine():
    table = table_of(LOSSES, *synthetic(), seed=0)
    config = {"data": "Cartoon cast, recipe light", "subjects": 3, "seeds": [0, 1], "subject_init": "from the clip"}
    table["passport"] = {
        "command": "pvchat ablate losses", "config": config, "seed": 0, "created": "2026-01-01T00:00:00Z",
        "versions": {"pvchat": "1", "torch": "2"}, "hardware": {"cpu": "cpu", "cores": 2, "gpus": []},
    }  # fmt: skip
    page = markdown(table)
    rows = [text for text in page.splitlines() if text.startswith("|")]
    assert len(rows) == 2 + len(LOSSES.rows)
    assert {row.count("|") for row in rows} == {len(COLUMNS) + 4}  # title, against full, the paper's accuracy
    assert "paper's accuracy" not in markdown(table | {"source": None})
    assert "0.60 [0.60, 0.60]" in page and "0.746" in page and "say nothing about real people" in page


@pytest.mark.slow
def test_tables_are_written_as_json_and_markdown_with_a_passport(studied, tmp_path):
    study, tables, _ = studied
    run_study(replace(study, tables=("stages",)), command="pvchat ablate stages", write=tmp_path)
    written = json.loads((tmp_path / "ablation_stages.json").read_text())
    assert written["rows"] == tables["stages"]["rows"]
    assert written["passport"]["command"] == "pvchat ablate stages"
    assert written["passport"]["config"]["subject_init"] == "subject tokens start from the base's own"
    page = (tmp_path / "ablation_stages.md").read_text()
    assert "| image stage |" in page and str(tmp_path) not in page + json.dumps(written)
    assert {path.name for path in study.out.glob("ablation_*")} >= {f"ablation_{n}.json" for n in TABLES}


# -- plan, command, errors --------------------------------------------------------------------------------------------


def test_the_plan_counts_jobs_and_is_honest_about_time(world, tmp_path, monkeypatch):
    base, dataset = world
    study = Study(("attention", "losses"), tmp_path / "out", seeds=2, data=(dataset.root,), base=str(base))
    found = plan(study)
    assert found["variants"] == ["full", "attention-none", "attention-moh", "losses-none", "losses-spr"]
    assert (found["jobs"], found["finished"], found["datasets"]) == (10, 0, 0)
    assert found["seconds"] is None and "unknown" in found["source"]
    monkeypatch.setattr(study_module, "EMBEDDED_BASE", base)
    own = plan(replace(study, base=None, workers=2))
    assert own["seconds"] == pytest.approx(10 * JOB_SECONDS / 2)
    assert not (tmp_path / "out").exists()


def test_a_plan_for_the_cast_counts_the_datasets_to_build(world, tmp_path):
    found = plan(Study(("stages",), tmp_path / "out", subjects=3, seeds=2, base=str(world[0])))
    assert (found["subjects"], found["jobs"], found["datasets"]) == (3, 18, 3)


def test_bad_input_is_one_line(world, tmp_path):
    base, dataset = world
    with pytest.raises(PVChatError, match="choose from attention, losses, data, tokens, stages"):
        tables_for(["speed"], 16)
    with pytest.raises(PVChatError, match="seeds must be at least 1"):
        Study(("data",), tmp_path / "a", seeds=0)
    with pytest.raises(PVChatError, match="Unknown setting speed"):
        Study(("data",), tmp_path / "a", settings={"train": {"speed": 1}})
    with pytest.raises(PVChatError, match="no recipe 'none'"):
        Study(("data",), tmp_path / "a", recipe="none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(PVChatError, match="holds something else .thesis.tex"):
        Study(("data",), tmp_path / "full")
    with pytest.raises(PVChatError, match="No PVChat model could be loaded"):
        plan(Study(("data",), tmp_path / "a", base=str(tmp_path / "nothing"), data=(dataset.root,)))
    without_test = write_tiny_dataset(tmp_path, test=0)
    with pytest.raises(PVChatError, match="build it with test clips"):
        read_subjects([without_test.root])


def test_a_built_dataset_is_found_with_its_hash(world):
    _, dataset = world
    (subject,) = read_subjects([dataset.root])
    assert subject == Subject(SUBJECT, str(dataset.root), dataset.hash)
    assert subject.key == f"Nz-{dataset.hash[:8]}" and subject.dataset().hash == dataset.hash


def test_the_oracle_recipe_is_of_its_member():
    from pvchat.dataset_builder.cartoon import cast

    first, second = cast(2)
    assert cast_recipe("oracle", first, 0).source is not None
    assert cast_recipe("oracle", first, 0).backends != cast_recipe("oracle", second, 0).backends
    assert cast_recipe("tiny", first, 0).source is None


def test_the_command_knows_the_tables_and_plans_without_training(world, tmp_path, capsys):
    base, dataset = world
    assert CLI_TABLES == TABLES
    words = ["ablate", "all", "--data", str(dataset.root), "--base", str(base), "--out", str(tmp_path / "out")]
    assert main([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(found["tables"]) == list(TABLES) and found["jobs"] == 3 * len(found["variants"])
    assert main([*words, "--dry-run"]) == 0
    assert "12 variants x 1 subjects x 3 seeds = 36 trainings" in capsys.readouterr().out
    assert main(["ablate", "speed"]) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_prints_the_table_and_reports_each_job(studied, capsys):
    study, _, _ = studied
    (settings := study.out.parent / "quick.yaml").write_text(json.dumps(QUICK))
    words = ["ablate", "losses", "--seeds", "1", "--data", str(study.data[0]), "--base", study.base]
    assert main([*words, "--out", str(study.out), "--config", str(settings)]) == 0
    printed = capsys.readouterr()
    assert "# Ablation: losses on the routers" in printed.out and "| without HAE |" in printed.out
    assert "jobs 3/3" in printed.err


def test_scores_of_an_ablation_are_those_of_an_evaluation(world):
    from pvchat.evaluation import score_lines
    from pvchat.evaluation.runner import _line

    _, dataset = world
    rng = np.random.default_rng(0)
    lines = [
        {**_line(v, qa), "answer": qa.answer if rng.random() < 0.6 else "No.", "margin": rng.normal()}
        for v in dataset.split("test")
        for qa in v.qa
    ]
    own, whole = jobs_module.scores_of(lines), score_lines(lines)
    assert {k: v for k, v in own.items() if k in whole["existence"]} == whole["existence"]
    assert (own["bleu1"], own["bleu4"]) == pytest.approx((whole["bleu1"], whole["bleu4"]))
    assert own["action"] == whole["categories"]["action"]["exact"]
