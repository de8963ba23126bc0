"""Evaluation from end to end on a random model: answers, controls, resuming, scoring again."""

from __future__ import annotations

import json

import pytest
import torch

from pvchat.errors import PVChatError
from pvchat.evaluation import evaluate, score_answers, score_lines, scores_table, verdict
from pvchat.evaluation.runner import collect
from pvchat.evaluation.scoring import CONTROLS, FIELDS
from pvchat.passport import passport
from pvchat.session import VideoChat
from pvchat.trainers.adapter import AdapterSettings, build_subject_model, save_subject_adapter, subject_record
from tests.tiny import SUBJECT, tiny_base, tiny_dataset

TOKENS = 6
EXISTENCE = {
    "accuracy", "balanced_accuracy", "false_accept_lookalike", "false_accept_stranger", "auroc", "ece", "n",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base, adapters of two subjects with other weights, and a dataset: (base, own, other, dataset)."""
    folder = tmp_path_factory.mktemp("world")
    base = tiny_base(folder / "base")
    adapters = []
    for seed, (name, subject) in enumerate((("own", SUBJECT), ("other", "<Le>"))):
        model = build_subject_model(VideoChat.from_pretrained(base).model, AdapterSettings(rank=2), seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        record = subject_record(model, subject, "light", "none", ["1"], seed)
        adapters.append(save_subject_adapter(model, folder / name, record))
    return base, *adapters, tiny_dataset(folder / "data", positives=2, negatives=2, test=3)


@pytest.fixture(scope="module")
def chat(world) -> VideoChat:
    return VideoChat.from_pretrained(world[0], world[1])


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch):
    """Random weights rarely end an answer."""
    monkeypatch.setattr(VideoChat.replies, "__defaults__", (TOKENS,))


@pytest.fixture(scope="module")
def evaluated(world, chat, tmp_path_factory):
    """(folder, scores) of one evaluation."""
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoChat.replies, "__defaults__", (TOKENS,))
        return out, evaluate(chat, world[3], out, wrong_adapters=[world[2]], seed=1)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_scores_have_the_published_shape(evaluated):
    out, scores = evaluated
    assert scores == json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert set(scores["existence"]) == EXISTENCE
    assert set(scores["controls"]) == set(CONTROLS) == set(scores["intervals"]["controls"])
    assert set(scores["categories"]) == {"appearance", "action", "location"}
    assert {"bleu1", "bleu4", "bertscore", "es", "dc", "intervals", "passport"} < set(scores)
    for name in ("constant_yes", "constant_no", "text_only", "no_adapter", "wrong_adapter"):
        assert set(scores["controls"][name]) >= EXISTENCE


def test_what_was_not_measured_is_null_with_a_reason(evaluated):
    _, scores = evaluated
    missing = scores["details"]["missing"]
    for name in ("bertscore", "es", "dc"):
        assert scores[name] is None and missing[name]
    assert scores["controls"]["reference_in_prompt"] is None and missing["controls.reference_in_prompt"]
    assert scores["existence"]["false_accept_lookalike"] is None  # no look-alike in this test split


def test_there_is_one_line_per_question_in_the_order_of_the_dataset(world, evaluated):
    lines = read(evaluated[0] / "answers.jsonl")
    questions = [qa for video in world[3].split("test") for qa in video.qa]
    assert [line["qa_id"] for line in lines] == [qa.qa_id for qa in questions]
    assert all(set(FIELDS) <= set(line) for line in lines)
    assert not list(evaluated[0].rglob("*.part")) and not list(evaluated[0].rglob("*.tmp"))


def test_constant_controls_have_balanced_accuracy_one_half(evaluated):
    for name in ("constant_yes", "constant_no"):
        assert evaluated[1]["controls"][name]["balanced_accuracy"] == 0.5
        assert evaluated[1]["controls"][name]["auroc"] is None


def test_the_text_only_control_cannot_tell_clips_apart(evaluated):
    assert evaluated[1]["controls"]["text_only"]["auroc"] == 0.5


def test_controls_answer_with_what_their_name_says(world, evaluated):
    base, _, other, dataset = world
    folder = evaluated[0] / "controls"
    videos = dataset.split("test")
    asked = [video.path for video in videos], [[qa.question for qa in video.qa] for video in videos]
    own = [line["answer"] for line in read(evaluated[0] / "answers.jsonl")]
    plain = VideoChat(VideoChat.from_pretrained(base).model, VideoChat.from_pretrained(base).processor, SUBJECT)
    wrong = VideoChat.from_pretrained(base, other)
    wrong.subject = SUBJECT
    for chat, name in ((plain, "no_adapter"), (wrong, "wrong_adapter.1")):
        expected = [reply for replies in chat.replies(*asked) for reply in replies]
        found = read(folder / f"{name}.jsonl")
        assert [line["answer"] for line in found] == [reply.text for reply in expected]
        assert [line["margin"] for line in found] == pytest.approx([reply.margin for reply in expected], abs=1e-4)
        assert [line["answer"] for line in found] != own


def test_the_own_adapter_is_back_after_the_controls(world, chat, evaluated):
    line = read(evaluated[0] / "answers.jsonl")[0]
    reply = chat.replies([world[3].split("test")[0].path], [[line["question"]]])[0][0]
    assert (reply.text, reply.margin) == (line["answer"], pytest.approx(line["margin"], abs=1e-4))
    assert list(chat.model.peft_config) == ["default"]


def test_a_finished_evaluation_asks_nothing_again(world, chat, evaluated, monkeypatch):
    monkeypatch.setattr(VideoChat, "_reply", lambda *_: pytest.fail("asked again"))
    again = evaluate(chat, world[3], evaluated[0], wrong_adapters=[world[2]], seed=1)
    assert without_passport(again) == without_passport(evaluated[1])


def test_scoring_the_file_again_gives_the_same_without_a_model(evaluated):
    again = score_answers(evaluated[0] / "answers.jsonl", seed=1)
    assert again["passport"] is None
    assert without_passport(again) == without_passport(evaluated[1])


def without_passport(scores: dict) -> dict:
    return {key: value for key, value in scores.items() if key != "passport"}


def test_a_killed_evaluation_goes_on_where_it_stopped(tmp_path):
    questions = [{"qa_id": str(i), "video_id": str(i)} for i in range(30)]
    asked: list[str] = []

    def answer(part, die_after=10):
        if len(asked) >= die_after:
            raise KeyboardInterrupt
        asked.extend(line["qa_id"] for line in part)
        return [{**line, "answer": line["qa_id"]} for line in part]

    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        collect(path, questions, {"model": 1}, answer, None)
    assert not path.exists()
    done = len(asked)
    assert 10 <= done < 30
    with open(tmp_path / "answers.jsonl.part", "a", encoding="utf-8") as file:
        file.write('{"qa_id": "29", "ans')  # cut off while writing
    lines = collect(path, questions, {"model": 1}, lambda part: answer(part, 99), None)
    assert [line["answer"] for line in lines] == [str(i) for i in range(30)]
    assert len(asked) == 30 and len(read(path)) == 30
    collect(path, questions, {"model": 2}, lambda part: answer(part, 99), None)
    assert len(asked) == 60  # another model: its answers are its own


def test_a_base_without_subject_is_evaluated_without_adapter_controls(world, tmp_path):
    scores = evaluate(VideoChat.from_pretrained(world[0]), world[3], tmp_path)
    assert scores["controls"]["no_adapter"] is None and scores["controls"]["wrong_adapter"] is None
    assert "no adapter" in scores["details"]["missing"]["controls.no_adapter"]


def test_an_adapter_of_somebody_else_is_refused(world, tmp_path):
    with pytest.raises(PVChatError, match="<Le>.*<Nz>"):
        evaluate(VideoChat.from_pretrained(world[0], world[2]), world[3], tmp_path)


def test_a_split_without_clips_is_refused(world, chat, tmp_path):
    dataset = tiny_dataset(tmp_path / "data", positives=1, negatives=1)
    with pytest.raises(PVChatError, match="no existence question"):
        evaluate(chat, dataset, tmp_path / "out")


def test_a_damaged_answer_file_is_named_with_its_line(evaluated, tmp_path):
    lines = (evaluated[0] / "answers.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text(lines[0] + "{}\n", encoding="utf-8")
    with pytest.raises(PVChatError, match="line 2, has no qa_id"):
        score_answers(tmp_path / "answers.jsonl")


# -- verdict ----------------------------------------------------------------------------------------------------------


def lines_of(right: float, n: int = 20) -> list[dict]:
    """Existence lines, `right` of each side answered rightly."""
    lines = []
    for i in range(2 * n):
        present = i < n
        says = present == (i % n < right * n)
        lines.append(
            {
                "qa_id": str(i), "video_id": str(i), "subject": SUBJECT, "split": "test", "category": "existence",
                "question": "Is <Nz> here?", "gold": "Yes." if present else "No.", "source": "template",
                "present": present, "origin": "user" if present else "hard_negative",
                "answer": "Yes." if says else "No.", "margin": 1.0 if says else -1.0,
            }
        )  # fmt: skip
    return lines


@pytest.mark.parametrize(
    ("own", "wrong", "passed", "says"),
    [
        (0.95, 0.5, True, "beats every control"),
        (0.6, 0.55, False, "not for certain"),
        (0.7, 0.9, False, "Not worth its training"),
    ],
)
def test_the_verdict_follows_the_best_control(own, wrong, passed, says):
    scores = score_lines(lines_of(own), {"no_adapter": lines_of(0.5), "wrong_adapter": lines_of(wrong)})
    result = verdict(scores)
    assert (result.passed, says in result.text) == (passed, True)


def test_there_is_no_pass_without_the_adapter_controls():
    result = verdict(score_lines(lines_of(0.95)))
    assert not result.passed and "not run" in result.text


def test_the_table_shows_every_control_and_the_verdict(evaluated):
    from rich.console import Console

    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(scores_table(evaluated[1]))
    text = console.export_text()
    for title in (SUBJECT, "always yes", "base without the adapter", "another subject's adapter", "BLEU-1"):
        assert title in text
    assert verdict(evaluated[1]).text.split(":")[0] in text


# -- passport ---------------------------------------------------------------------------------------------------------


def test_a_passport_names_no_path_user_or_machine(tmp_path):
    import getpass
    import socket

    made = passport(
        ["pvchat", "evaluate", str(tmp_path / "adapter"), f"--data={tmp_path}/set", "~/x/clip.mp4"],
        {"base": tmp_path / "base", "url": "https://example.org/a/b", "hub": "user/name", "list": [str(tmp_path), 3]},
        7,
    )
    text = json.dumps(made)
    assert str(tmp_path) not in text and str(tmp_path.parent) not in text
    assert socket.gethostname() not in text
    assert made["command"].startswith("pvchat evaluate adapter")
    assert made["config"] == {
        "base": "base", "url": "https://example.org/a/b", "hub": "user/name", "list": [tmp_path.name, 3],
    }  # fmt: skip
    assert made["seed"] == 7 and made["versions"]["torch"] == torch.__version__
    assert getpass.getuser() not in made["command"]
    assert made["hardware"]["cores"] >= 1
