"""The report page: whole in one file, complete, and safe."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from pvchat.errors import PVChatError
from pvchat.evaluation import score_lines, write_report
from pvchat.evaluation.report import WITHOUT, filmstrip, origin_rows
from pvchat.evaluation.runner import _line
from pvchat.evaluation.table import score_rows, verdict
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
    write_histories(folder, spr=0.1)
    maps = {
        "rows": [{"layer": 3, "attention": "self"}, {"layer": 4, "attention": "cross"}],
        "heads": [8, 9],
        "present": {"clips": 3, "active": [[0.5, 0.2], [0.4, 0.9]]},
        "absent": {"clips": 3, "active": [[0.5, 0.3], [0.4, 0.5]]},
        "difference": {"active": [[0.0, -0.1], [0.0, 0.4]], "mean_size": 0.125, "by_chance": 0.1, "p": 0.3},
    }
    (folder / "report" / "head_activation.json").write_text(json.dumps(maps), encoding="utf-8")
    return folder, dataset, lines


def write_histories(folder, spr, steps=3):
    """Training histories of both stages in a run folder."""
    for stage in (1, 2):
        records = [
            {"step": i, "lm_loss": 2.0 / i, "spr": spr, "hae": 0.2, "active_heads": 0.6, "beta": 1e-8}
            for i in range(1, steps + 1)
        ]
        (folder / f"stage{stage}").mkdir(parents=True)
        history = {"stage": stage, "target_active_heads": 0.5, "steps": records}
        (folder / f"stage{stage}" / "history.json").write_text(json.dumps(history), encoding="utf-8")


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(write_report(run[0] / "report", run[1], run[0]).read_text(encoding="utf-8"))


def test_the_page_holds_all_of_its_pictures(page):
    assert len(page.sources) > 8
    assert all(source.startswith("data:image/") for source in page.sources)


def test_the_page_says_verdict_scores_controls_data_and_passport(run, page):
    said = verdict(json.loads((run[0] / "report" / "scores.json").read_text(encoding="utf-8"))).text
    for text in (
        SUBJECT, said, "base without the adapter", "always yes", "BLEU-1",
        "Is <Nz> in this video?", "No, <Nz> is not in the video.", "strangers", run[1].manifest["dataset_hash"],
        '"seed": 0', "needs a judge",
    ):  # fmt: skip
        assert text in page.text, text


def test_an_answer_is_shown_as_text_and_never_run(run, page):
    assert "<script>alert(1)</script>" in page.text
    assert "<script" not in (run[0] / "report" / "index.html").read_text(encoding="utf-8")


def test_figures_are_saved_beside_the_page(run, page):
    from PIL import Image

    names = {path.name for path in (run[0] / "report").glob("*.png")}
    assert names == {"controls.png", "training.png", "margins.png", "roc.png", "heads.png"}
    for name in names:
        with Image.open(run[0] / "report" / name) as image:
            assert image.width > 400 and len(image.convert("L").getcolors()) > 10


def copy_evaluation(run, folder):
    for name in ("scores.json", "answers.jsonl"):
        (folder / name).write_bytes((run[0] / "report" / name).read_bytes())


def test_what_is_missing_is_said_in_a_page_that_is_still_whole(run, tmp_path):
    copy_evaluation(run, tmp_path)
    text = Page(write_report(tmp_path, run[1]).read_text(encoding="utf-8")).text
    assert "has no training history" in text and "they were not computed in this evaluation" in text
    assert not (tmp_path / "training.png").exists() and not (tmp_path / "heads.png").exists()


def test_a_run_without_routed_heads_has_a_loss_curve(run, tmp_path):
    copy_evaluation(run, tmp_path)
    (tmp_path / "stage1").mkdir()
    history = {"stage": 1, "target_active_heads": 0.5, "steps": [{"step": 1, "lm_loss": 1.0, "beta": 0.0}]}
    (tmp_path / "stage1" / "history.json").write_text(json.dumps(history), encoding="utf-8")
    assert "Training curves" in write_report(tmp_path, run[1], tmp_path).read_text(encoding="utf-8")


def test_answers_without_log_odds_have_no_distributions(run, tmp_path):
    lines = [{**line, "margin": None} for line in run[2]]
    scores = score_lines(lines) | {"passport": passport("pvchat evaluate", {}, 0)}
    (tmp_path / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "No distributions" in Page(write_report(tmp_path, run[1]).read_text(encoding="utf-8")).text


def test_head_maps_come_with_the_sentence_that_they_add_up_to(run, page):
    assert "most different is head 9 of layer 4 (cross-attention), 90% against 50%" in page.text
    assert f"no sign that the routing depends on whether {SUBJECT} is there" in page.text


def test_the_curves_of_a_run_without_sparsity_losses_are_drawn_beside_its_own(run, tmp_path):
    copy_evaluation(run, tmp_path)
    write_histories(tmp_path, spr=0.1, steps=20)
    alone = write_report(tmp_path, run[1], tmp_path).read_text(encoding="utf-8")
    picture = (tmp_path / "training.png").read_bytes()
    write_histories(tmp_path / WITHOUT, spr=0.0, steps=20)
    both = write_report(tmp_path, run[1], tmp_path).read_text(encoding="utf-8")
    assert "the same training without SPR and HAE" in both and "the same training" not in alone
    assert (tmp_path / "training.png").read_bytes() != picture


def test_every_control_has_a_row_or_the_reason_why_it_has_none(run, page):
    scores = json.loads((run[0] / "report" / "scores.json").read_text(encoding="utf-8"))
    for row in score_rows(scores):
        assert row["title"] in page.text
        assert row["scores"] or (row["reason"] or "") in page.text


def test_the_filmstrip_shows_clips_with_and_without_the_subject(run):
    film = filmstrip(run[2], run[1])
    assert {clip["present"] for clip in film} == {True, False}
    assert [clip["present"] for clip in film] == sorted((clip["present"] for clip in film), reverse=True)
    existence = film[0]["answers"][0]
    assert existence["category"] == "existence" and existence["right"] is True
    truths = [a for clip in film for a in clip["answers"] if clip["present"] and a["category"] == "action"]
    assert {a["right"] for a in truths} == {None}  # decided by rules only where the truth is known
    refusal = film[-1]["answers"][-1]
    assert refusal["category"] == "location" and refusal["right"] is True


def test_a_description_is_right_where_it_equals_a_known_truth(run):
    known = [{**line, "source": "truth"} for line in run[2]]
    assert all(a["right"] for a in filmstrip(known, run[1])[1]["answers"])
    wrong = [
        {**line, "answer": "Something else." if line["category"] == "action" else line["answer"]} for line in known
    ]
    assert [a["right"] for a in filmstrip(wrong, run[1])[1]["answers"] if a["category"] == "action"] == [False]


def test_the_dataset_table_counts_every_clip(run):
    rows = origin_rows(run[1])
    assert sum(row["clips"] for row in rows) == len(run[1].videos)
    assert sum(row["questions"] for row in rows) == sum(len(video.qa) for video in run[1].videos)


def test_a_folder_without_an_evaluation_is_refused(run, tmp_path):
    with pytest.raises(PVChatError, match="scores.json"):
        write_report(tmp_path, run[1])
