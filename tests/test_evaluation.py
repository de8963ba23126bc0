"""Evaluation from end to end on a random model: answers, controls, resuming, scoring again."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

from pvchat.errors import PVChatError
from pvchat.evaluation import evaluate, rescore, score_answers, score_lines, scores_table, verdict
from pvchat.evaluation.bootstrap import clustered_intervals
from pvchat.evaluation.findings import TITLES
from pvchat.evaluation.reference import ReferenceFirst, subject_tokens_of
from pvchat.evaluation.scoring import ASKED, CONSTANT, CONTROLS, FIELDS
from pvchat.evaluation.store import collect
from pvchat.passport import passport
from pvchat.session import VideoChat
from pvchat.trainers.adapter import AdapterSettings, build_subject_model, save_subject_adapter, subject_record
from tests.evaluation_lines import lines_of
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


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Intervals from 100 draws instead of 1000: what they are is tested with the bootstrap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(clustered_intervals.__kwdefaults__, "resamples", 100)
        yield


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
    assert {"bleu1", "bleu4", "bertscore", "es", "dc", "es_rule", "dc_rule", "intervals", "passport"} < set(scores)
    for name in (*CONSTANT, *ASKED):
        assert set(scores["controls"][name]) >= EXISTENCE
        assert set(scores["paired"][name]) == {"difference", "interval", "p"}


def test_what_was_not_measured_is_null_with_a_reason(evaluated):
    _, scores = evaluated
    missing = scores["details"]["missing"]
    for name in ("bertscore", "es", "dc"):
        assert scores[name] is None and missing[name]
    assert scores["existence"]["false_accept_lookalike"] is None  # no look-alike in this test split


def test_there_is_one_line_per_question_in_the_order_of_the_dataset(world, evaluated):
    lines = read(evaluated[0] / "answers.jsonl")
    questions = [qa for video in world[3].split("test") for qa in video.qa]
    assert [line["qa_id"] for line in lines] == [qa.qa_id for qa in questions]
    assert all(set(FIELDS) <= set(line) for line in lines)
    assert not list(evaluated[0].rglob("*.part")) and not list(evaluated[0].rglob("*.tmp"))


def test_the_scores_say_how_they_were_made_and_on_what(evaluated):
    details = evaluated[1]["details"]
    made = details["composition"]
    assert (made["clips_present"], made["clips_absent"], made["subjects"]) == (3, 3, 1)
    assert made["questions"] == {"existence": 6, "appearance": 6, "action": 6, "location": 6}
    assert made["origins"] == {"random_negative": 3, "original": 1, "animated": 2}
    assert "version:" in details["method"]["bleu1"] and details["method"]["seed"] == 1


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


def test_the_name_in_the_question_is_swapped_and_the_answer_read_with_it(world, evaluated):
    lines = read(evaluated[0] / "controls" / "name_swapped.jsonl")
    assert len(lines) == 6 and {line["question"] for line in lines} == {"Is <Ada> in this video?"}
    assert {line["asked_about"] for line in lines} == {"<Ada>"}
    assert 0 <= evaluated[1]["controls"]["name_swapped"]["says_yes"] <= 1


def test_the_reference_clip_stands_before_the_clip_in_one_prompt(world, chat, evaluated):
    """The cached prefix gives the logits of the whole prompt in one forward pass."""
    dataset = world[3]
    reference, video = dataset.split("train")[0], dataset.split("test")[1]
    line = next(
        x for x in read(evaluated[0] / "controls" / "reference_in_prompt.jsonl") if x["qa_id"] == video.qa[0].qa_id
    )
    processor = chat.processor
    prefix = processor.encode_prefix()
    said = processor.encode_qa("Who is in this video?", f"This is {SUBJECT}.", SUBJECT)[0]
    ids = [*prefix, *said, *prefix, *processor.encode_question(line["question"], SUBJECT)]
    pixels = processor.video_processor(videos=[str(reference.path), str(video.path)], return_tensors="pt")
    with torch.no_grad(), chat.answering_with(None):
        logits = chat.model(input_ids=torch.tensor([ids]), **pixels).logits[0, -1]
    assert line["margin"] == pytest.approx(float(logits[chat._yes] - logits[chat._no]), abs=1e-4)


def test_the_reference_control_depends_on_the_reference_and_leaves_the_chat_as_it_was(world, chat):
    dataset = world[3]
    clip, question = dataset.split("test")[0].path, f"Is {SUBJECT} in this video?"
    before = chat.replies([clip], [[question]])[0][0]
    margins = []
    with chat.answering_with(None):
        for reference in (dataset.split("train")[0].path, dataset.split("train")[2].path):
            margins.append(ReferenceFirst(chat, reference, SUBJECT).replies([clip], [[question]])[0][0].margin)
        tokens = chat._net.model.subject_tokens.original_module.weight.clone()
        plain = chat.replies([clip], [[question]])[0][0].margin
        with subject_tokens_of(chat, [dataset.split("train")[0].path]):
            assert chat.replies([clip], [[question]])[0][0].margin != pytest.approx(plain, abs=1e-6)
        assert torch.equal(chat._net.model.subject_tokens.original_module.weight, tokens)
    assert margins[0] != pytest.approx(margins[1], abs=1e-6)
    assert chat.replies([clip], [[question]])[0][0] == before


def test_two_clips_that_do_not_fit_are_a_missing_control(chat, monkeypatch):
    monkeypatch.setattr(VideoChat, "_context", 40)
    with pytest.raises(PVChatError, match="two clips take"):
        ReferenceFirst(chat, "clip.mp4", SUBJECT)


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


def test_scoring_again_writes_scores_with_both_passports(evaluated, tmp_path):
    folder = tmp_path / "report"
    shutil.copytree(evaluated[0], folder)
    asked = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["passport"]
    for _ in range(2):
        scores = rescore(folder / "answers.jsonl", "pvchat score", seed=2)
        assert scores == json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        assert scores["passport"]["command"] == "pvchat score" and scores["passport"]["seed"] == 2
        assert scores["passport"]["answers"] == asked
    assert scores["existence"] == evaluated[1]["existence"]
    assert scores["details"]["missing"] == evaluated[1]["details"]["missing"]


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
        collect(path, questions, lambda line: "model 1", answer, None)
    assert not path.exists()
    done = len(asked)
    assert 10 <= done < 30
    with open(tmp_path / "answers.jsonl.part", "a", encoding="utf-8") as file:
        file.write('{"qa_id": "29", "ans')  # cut off while writing
    lines = collect(path, questions, lambda line: "model 1", lambda part: answer(part, 99), None)
    assert [line["answer"] for line in lines] == [str(i) for i in range(30)]
    assert len(asked) == 30 and len(read(path)) == 30
    collect(path, questions, lambda line: "model 2", lambda part: answer(part, 99), None)
    assert len(asked) == 60  # another model: its answers are its own


def test_a_base_without_subject_is_evaluated_without_adapter_controls(world, tmp_path):
    scores = evaluate(VideoChat.from_pretrained(world[0]), world[3], tmp_path)
    for name in ("no_adapter", "wrong_adapter", "name_swapped"):
        assert scores["controls"][name] is None
        assert "no adapter" in scores["details"]["missing"][f"controls.{name}"]
    assert scores["controls"]["reference_in_prompt"] and scores["controls"]["reference_as_tokens"]


def test_a_dataset_without_its_reference_clip_has_no_reference_controls(world, chat, tmp_path):
    dataset = world[3]
    train = [replace(row, origin="animated") if row.split == "train" else row for row in dataset.videos]
    scores = evaluate(chat, replace(dataset, videos=train), tmp_path)
    for name in ("reference_in_prompt", "reference_as_tokens"):
        assert scores["controls"][name] is None
        assert "lacks the reference clip" in scores["details"]["missing"][f"controls.{name}"]


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


def controls(**right: float) -> dict[str, list[dict]]:
    """Lines of these controls, the others at chance."""
    names = ("no_adapter", "wrong_adapter", "reference_in_prompt", "embedding_gate")
    return {name: lines_of(right.get(name, 0.5)) for name in names}


@pytest.mark.parametrize(
    ("own", "others", "passed", "says"),
    [
        (0.95, {}, True, "beats every control"),
        (0.65, {"wrong_adapter": 0.6}, False, "not for certain"),
        (0.7, {"wrong_adapter": 0.9}, False, "Not worth its training.*another subject's adapter"),
        (0.95, {"reference_in_prompt": 0.95}, False, "Not worth its training.*reference clip in the prompt"),
        (0.95, {"reference_in_prompt": 0.9}, False, "Not worth its training.*reference clip in the prompt"),
        (0.95, {"embedding_gate": 1.0}, False, "Not worth its training.*face comparison alone"),
    ],
)
def test_the_verdict_follows_the_paired_tests(own, others, passed, says):
    result = verdict(score_lines(lines_of(own), controls(**others)))
    assert result.passed == passed and re.search(says, result.text)


def test_there_is_no_pass_without_the_controls_that_matter():
    for name in ("no_adapter", "wrong_adapter", "reference_in_prompt", "embedding_gate"):
        run = controls()
        del run[name]
        result = verdict(score_lines(lines_of(0.95), run))
        assert not result.passed and f"not run: {TITLES[name]}" in result.text


def test_findings_name_what_misleads():
    right = lines_of(0.95)
    assert score_lines(right, controls())["details"]["findings"] == []
    wrong = score_lines(right, controls(wrong_adapter=0.8))["details"]["findings"]
    assert len(wrong) == 1 and "not within 0.1 of chance" in wrong[0]
    one_sided = [line for line in right if line["present"] or line["qa_id"] in ("20", "21")]
    found = score_lines(one_sided)["details"]["findings"]
    assert len(found) == 1 and 'constant "Yes." reaches accuracy 0.909' in found[0]
    constant = score_lines([{**line, "answer": "Yes, <Nz> is here."} for line in right])["details"]["findings"]
    assert len(constant) == 1 and 'every one of the 40 says "present"' in constant[0]
    vague = score_lines([{**line, "answer": "A man."} for line in right])["details"]["findings"]
    assert any("100% of the answers take no side" in line for line in vague)


def test_an_adapter_that_says_yes_to_another_name_is_called_out():
    swapped = [{**line, "asked_about": "<Ada>", "answer": "Yes, <Ada> is here."} for line in lines_of(0.95)]
    scores = score_lines(lines_of(0.95), controls() | {"name_swapped": swapped})
    assert scores["controls"]["name_swapped"]["says_yes"] == 1.0
    assert "still says yes on 100% of the clips" in scores["details"]["findings"][0]
    assert verdict(scores).passed  # it is a finding, not a bar
    refused = [{**line, "answer": "No, <Ada> is not here."} for line in swapped]
    scores = score_lines(lines_of(0.95), controls() | {"name_swapped": refused})
    assert scores["controls"]["name_swapped"]["says_yes"] == 0.0 and scores["details"]["findings"] == []


def test_gold_answers_get_no_verdict():
    scores = score_lines(lines_of(1.0))
    scores["details"]["answers_of"] = "gold"
    assert verdict(scores).text.startswith("No verdict")


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
