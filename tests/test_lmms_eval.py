"""Exported lmms-eval tasks: the YAML is read by the rules of lmms-eval, and its functions run on its rows."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml

from pvchat.cli import main
from pvchat.dataset_builder import load_local
from pvchat.errors import PVChatError
from pvchat.evaluation import export_lmms_eval, metrics, score_lines
from tests.small_datasets import write_dataset
from tests.tiny import SUBJECT, tiny_dataset

TASKS = ("pvchat_nz", "pvchat_nz_reference", "pvchat_nz_text")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data"), positives=2, negatives=1, test=2)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """An export that was moved after it was written."""
    parent = tmp_path_factory.mktemp("lmms")
    result = export_lmms_eval(dataset, parent / "first")
    assert result["tasks"] == list(TASKS) and (result["questions"], result["clips"]) == (16, 4)
    shutil.move(parent / "first", parent / "moved")
    return parent / "moved"


def read_task(path: Path) -> dict:
    """The file as lmms-eval reads it: `!function file.name` is the function of that name in the file beside it."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader, node):
        module, name = loader.construct_scalar(node).split(".")
        spec = importlib.util.spec_from_file_location(module, path.parent / f"{module}.py")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return getattr(loaded, name)

    Loader.add_constructor("!function", function)
    return yaml.load(path.read_text(encoding="utf-8"), Loader)


@pytest.fixture(scope="module", params=TASKS)
def task(request, folder):
    return read_task(folder / f"{request.param}.yaml")


@pytest.fixture(scope="module")
def rows(folder, tmp_path_factory):
    """As lmms-eval loads them: data files relative to the YAML, by the generic builder."""
    config = read_task(folder / "pvchat_nz.yaml")
    files = {split: str(folder / name) for split, name in config["dataset_kwargs"]["data_files"].items()}
    cache = tmp_path_factory.mktemp("cache")
    loaded = datasets.load_dataset(config["dataset_path"], data_files=files, cache_dir=str(cache))
    return list(loaded[config["test_split"]])


def test_the_tasks_have_what_lmms_eval_reads(task):
    assert task["output_type"] == "generate_until" and task["cluster_key"] == "video_id"
    assert task["generation_kwargs"] == {"max_new_tokens": 96, "temperature": 0, "do_sample": False}
    for metric in task["metric_list"]:
        assert set(metric) == {"metric", "aggregation", "higher_is_better"} and callable(metric["aggregation"])
    assert len(inspect.signature(task["doc_to_visual"]).parameters) == 1
    assert isinstance(task["metadata"]["dataset_hash"], str)


def test_rows_are_the_test_split_and_hold_no_path_of_this_computer(rows, dataset, folder):
    questions = [qa for video in dataset.split("test") for qa in video.qa]
    assert [row["qa_id"] for row in rows] == [qa.qa_id for qa in questions]
    assert {row["subject"] for row in rows} == {SUBJECT}
    texts = [
        path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.suffix in (".yaml", ".jsonl", ".py")
    ]
    assert not any(str(folder.parent) in text or str(dataset.root) in text for text in texts)


def test_visuals_are_the_clips(folder, rows, dataset):
    clip, reference, text = (read_task(folder / f"{name}.yaml") for name in TASKS)
    video = next(v for v in dataset.split("test") if v.video_id == rows[0]["video_id"])
    (path,) = clip["doc_to_visual"](rows[0])
    assert Path(path).read_bytes() == video.path.read_bytes()
    first, second = reference["doc_to_visual"](rows[0])
    assert Path(first).read_bytes() == dataset.split("train")[0].path.read_bytes() and second == path
    assert text["doc_to_visual"](rows[0]) == []
    assert rows[0]["question"] in clip["doc_to_text"](rows[0])
    assert f"The first video shows {SUBJECT}." in reference["doc_to_text"](rows[0])


@pytest.mark.parametrize("wrong", [0, 1, 3])
def test_scores_are_those_of_this_package(task, rows, wrong):
    """Answers, `wrong` of the existence ones turned around, through process_results and every aggregation."""
    lines, collected = [], {}
    turned = 0
    for row in rows:
        answer = row["gold"]
        if row["category"] == "existence" and turned < wrong:
            answer, turned = ("No." if row["present"] else "Yes."), turned + 1
        for name, value in task["process_results"](row, [answer]).items():
            collected.setdefault(name, []).append(value)
        lines.append({**row, "answer": answer, "margin": None, "split": "test", "source": "template"})
    found = {m["metric"]: m["aggregation"](collected[m["metric"]]) for m in task["metric_list"]}
    expected = score_lines(lines)
    for name in ("accuracy", "balanced_accuracy", "false_accept_stranger"):
        assert found[name] == pytest.approx(expected["existence"][name])
    assert math.isnan(found["false_accept_lookalike"]) and expected["existence"]["false_accept_lookalike"] is None
    assert found["bleu1"] == pytest.approx(
        metrics.bleu([line["answer"] for line in lines], [x["gold"] for x in lines])
    )
    assert all({"score", "video_id"} <= set(row) for row in collected["accuracy"])
    json.dumps(collected)  # lmms-eval writes them to its log


def test_an_export_needs_nothing_of_this_package(folder):
    code = (
        "import sys, importlib.util as u; sys.modules['pvchat'] = None\n"
        "s = u.spec_from_file_location('utils', 'utils.py'); m = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "print(m.parse_presence('Yes, <Nz> is here.', '<Nz>'))"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "present"


def test_a_second_export_replaces_the_first_and_nothing_else_is_touched(dataset, tmp_path):
    export_lmms_eval(dataset, tmp_path / "out")
    (tmp_path / "out" / "old.txt").write_text("x")
    export_lmms_eval(dataset, tmp_path / "out")
    assert not (tmp_path / "out" / "old.txt").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(PVChatError, match="holds something else"):
        export_lmms_eval(dataset, tmp_path / "photos")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photos"]


def test_a_dataset_without_a_test_split_or_reference_is_refused(tmp_path):
    with pytest.raises(PVChatError, match="no existence question"):
        export_lmms_eval(tiny_dataset(tmp_path / "a", positives=1, negatives=1), tmp_path / "out")
    whole = tiny_dataset(tmp_path / "b", positives=1, negatives=1, test=1)
    whole.videos[:] = [row for row in whole.videos if row.origin != "original" or row.split == "test"]
    with pytest.raises(PVChatError, match="lacks the reference clip"):
        export_lmms_eval(whole, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_exports_a_dataset_folder(tmp_path, capsys):
    write_dataset(tmp_path / "set")
    assert main(["export-lmms-eval", str(tmp_path / "set"), str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["questions"] == sum(len(v.qa) for v in load_local(tmp_path / "set").split("test"))
    assert (tmp_path / "out" / "pvchat_nz.yaml").is_file()
