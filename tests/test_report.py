"""The report page: whole in one file, complete, and safe."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from pvchat.errors import PVChatError
from pvchat.evaluation import score_lines, write_report
from pvchat.evaluation.report import filmstrip, origin_rows
from pvchat.evaluation.runner import _line
from pvchat.passport import passport
from tests.tiny import SUBJECT, tiny_dataset


class Page(HTMLParser):
    """Checks that tags match, and collects sources and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.sources, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(run folder, dataset, answer lines) of a model that is right, with training histories."""
    folder = tmp_path_factory.mktemp("run")
    dataset = tiny_dataset(folder / "dataset", positives=2, negatives=2, test=3)
    questions = [_line(video, qa) for video in dataset.split("test") for qa in video.qa]
    lines = [{**q, "answer": q["gold"], "margin": 2.0 if q["present"] else -2.0} for q in questions]
    lines[1]["answer"] = "<script>alert(1)</script>"
    scores = score_lines(lines, {"no_adapter": [{**line, "answer": "Yes."} for line in lines]})
    scores["passport"] = passport("pvchat evaluate", {}, 0)
    (folder / "report").mkdir()
    (folder / "report" / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    (folder / "report" / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for stage in (1, 2):
        steps = [
            {"step": i, "lm_loss": 2.0 / i, "spr": 0.1, "hae": 0.2, "active_heads": 0.6, "beta": 1e-8}
            for i in range(1, 4)
        ]
        (folder / f"stage{stage}").mkdir()
        history = {"stage": stage, "target_active_heads": 0.5, "steps": steps}
        (folder / f"stage{stage}" / "history.json").write_text(json.dumps(history), encoding="utf-8")
    return folder, dataset, lines


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(write_report(run[0] / "report", run[1], run[0]).read_text(encoding="utf-8"))


def test_the_page_holds_all_of_its_pictures(page):
    assert len(page.sources) > 8
    assert all(source.startswith("data:image/") for source in page.sources)


def test_the_page_says_verdict_scores_controls_data_and_passport(run, page):
    for text in (
        SUBJECT, "Ahead of the controls that ran", "base without the adapter", "always yes", "BLEU-1",
        "Is <Nz> in this video?", "No, <Nz> is not in the video.", "strangers", run[1].manifest["dataset_hash"],
        '"seed": 0', "needs a judge model",
    ):  # fmt: skip
        assert text in page.text, text


def test_an_answer_is_shown_as_text_and_never_run(run, page):
    assert "<script>alert(1)</script>" in page.text
    assert "<script" not in (run[0] / "report" / "index.html").read_text(encoding="utf-8")


def test_figures_are_saved_beside_the_page(run, page):
    from PIL import Image

    names = {path.name for path in (run[0] / "report").glob("*.png")}
    assert names == {"controls.png", "training.png", "margins.png", "roc.png"}
    for name in names:
        with Image.open(run[0] / "report" / name) as image:
            assert image.width > 400 and len(image.convert("L").getcolors()) > 10


def test_without_a_run_or_routed_heads_the_page_is_still_whole(run, tmp_path):
    folder, dataset, _ = run
    for name in ("scores.json", "answers.jsonl"):
        (tmp_path / name).write_bytes((folder / "report" / name).read_bytes())
    assert "Training" not in Page(write_report(tmp_path, dataset).read_text(encoding="utf-8")).text
    (tmp_path / "stage1").mkdir()
    history = {"stage": 1, "target_active_heads": 0.5, "steps": [{"step": 1, "lm_loss": 1.0, "beta": 0.0}]}
    (tmp_path / "stage1" / "history.json").write_text(json.dumps(history), encoding="utf-8")
    assert "Training" in Page(write_report(tmp_path, dataset, tmp_path).read_text(encoding="utf-8")).text


def test_the_filmstrip_shows_clips_with_and_without_the_subject(run):
    film = filmstrip(run[2], run[1])
    assert {clip["present"] for clip in film} == {True, False}
    assert [clip["present"] for clip in film] == sorted((clip["present"] for clip in film), reverse=True)
    existence = film[0]["answers"][0]
    assert existence["category"] == "existence" and existence["right"] is True
    refusal = film[-1]["answers"][-1]
    assert refusal["category"] == "location" and refusal["right"] is True


def test_the_dataset_table_counts_every_clip(run):
    rows = origin_rows(run[1])
    assert sum(row["clips"] for row in rows) == len(run[1].videos)
    assert sum(row["questions"] for row in rows) == sum(len(video.qa) for video in run[1].videos)


def test_a_folder_without_an_evaluation_is_refused(run, tmp_path):
    with pytest.raises(PVChatError, match="scores.json"):
        write_report(tmp_path, run[1])
