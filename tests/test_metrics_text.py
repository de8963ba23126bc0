"""BLEU and BERTScore equal their libraries, rules do what they say, and every metric loads as an `evaluate` module."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvchat.errors import MissingBackendError, PVChatError
from pvchat.evaluation import load_metric, metrics
from pvchat.evaluation.bertscore import BertScore
from pvchat.evaluation.modules import FOLDER, metric_names, metric_path
from pvchat.evaluation.ratings import rate
from pvchat.evaluation.rules import dc_rule, es_rule
from pvchat.evaluation.scoring import score_lines
from tests.evaluation_lines import lines_of
from tests.tiny_bert import tiny_bert

PAIRS = (
    ("<Nz> wears a red shirt.", "<Nz> is wearing a red shirt."),
    ("Yes, <Nz> is in the video.", "Yes, <Nz> is in the video."),
    ("I do not see <Nz>.", "No, <Nz> is not in the video."),
    ("A man waves, and he smiles.", "<Nz> waves at the camera."),
    ("", "<Nz> is in a kitchen."),
    ("kitchen", "<Nz> is in a kitchen, next to the window."),
)
ANSWERS, GOLDS = [list(texts) for texts in zip(*PAIRS, strict=True)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return str(tiny_bert(tmp_path_factory.mktemp("encoder") / "tiny-bert"))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# -- BLEU -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 4])
def test_bleu_equals_sacrebleu_called_directly(order):
    from sacrebleu.metrics import BLEU

    metric = BLEU(max_ngram_order=order, effective_order=True)
    expected = metric.corpus_score(ANSWERS, [GOLDS]).score / 100
    assert metrics.bleu(ANSWERS, GOLDS, order) == pytest.approx(expected, abs=1e-12)
    assert str(metric.get_signature()) in metrics.bleu_signature(order)
    assert f"order:{order}" in metrics.bleu_signature(order)


# -- BERTScore --------------------------------------------------------------------------------------------------------


def test_bertscore_equals_bert_score_called_directly(encoder):
    import bert_score

    scorer = BertScore(encoder, layer=1)
    found = scorer.score(ANSWERS, GOLDS)
    full = [i for i, answer in enumerate(ANSWERS) if answer]
    expected = bert_score.score([ANSWERS[i] for i in full], [GOLDS[i] for i in full], model_type=encoder, num_layers=1)
    assert found[full] == pytest.approx(torch.stack(expected, dim=1).numpy(), abs=1e-6)
    assert found[4].tolist() == [0.0, 0.0, 0.0]  # the empty answer
    assert np.ptp(found[full, 2]) > 0.01


def test_bertscore_says_what_it_was_made_with(encoder):
    assert BertScore(encoder).describe()["layer"] == 2  # the last
    described = BertScore(encoder, layer=1).describe()
    assert (described["backbone"], described["layer"]) == ("tiny-bert", 1)
    assert described["hash"].startswith("tiny-bert_L1_no-idf_version=") and encoder not in described["hash"]


def test_the_layer_of_a_known_backbone_is_that_of_bert_score(tmp_path):
    tiny_bert(tmp_path / "bert-base-uncased", layers=10)
    assert BertScore(str(tmp_path / "bert-base-uncased")).layer == 9


def test_bertscore_of_only_empty_answers_is_0(encoder):
    assert BertScore(encoder).score(["", " "], ["a", "b"]).tolist() == [[0.0] * 3] * 2


def test_an_answer_longer_than_the_encoder_reads_is_cut(tmp_path):
    folder = tiny_bert(tmp_path / "short", positions=24, limit=None)
    scores = BertScore(str(folder)).score(["a red shirt " * 40], ["a red shirt"])
    assert 0 < scores[0, 2] <= 1


def test_a_layer_that_is_not_there_is_refused(encoder):
    with pytest.raises(PVChatError, match="layers 1 to 2, got --bertscore-layer 3"):
        BertScore(encoder, layer=3)


def test_an_encoder_that_cannot_be_had_is_one_line(tmp_path):
    with pytest.raises(MissingBackendError, match="nowhere.*cannot be loaded") as error:
        BertScore(str(tmp_path / "nowhere"))
    assert "\n" not in str(error.value)


def test_bertscore_stands_in_the_scores_and_is_kept(encoder, tmp_path, monkeypatch):
    lines = lines_of(0.8, n=4)
    lines[0]["answer"] = ""
    ratings = rate(lines, tmp_path, encoder, 1)
    found = score_lines(lines, ratings=ratings)
    direct = BertScore(encoder, 1).score([line["answer"] for line in lines], [line["gold"] for line in lines])
    assert found["bertscore"]["f1"] == pytest.approx(direct[:, 2].mean())
    assert (found["bertscore"]["backbone"], found["bertscore"]["layer"], found["bertscore"]["empty"]) == (
        "tiny-bert",
        1,
        1,
    )
    low, high = found["intervals"]["bertscore"]
    assert low <= found["bertscore"]["f1"] <= high
    assert "bertscore" not in found["details"]["missing"]
    monkeypatch.setattr(BertScore, "score", lambda *_: pytest.fail("encoded again"))
    assert score_lines(lines, ratings=rate(lines, tmp_path, encoder, 1))["bertscore"] == found["bertscore"]
    assert score_lines(lines, ratings=rate(lines, tmp_path))["bertscore"] == found["bertscore"]  # without an encoder


def test_kept_ratings_of_other_answers_are_not_taken(encoder, tmp_path):
    lines = lines_of(0.8, n=3)
    rate(lines, tmp_path, encoder)
    changed = [{**line, "answer": line["answer"] + " Indeed."} for line in lines]
    ratings = rate(changed, tmp_path)
    assert ratings.bertscore is None
    found = score_lines(changed, ratings=ratings)
    assert found["bertscore"] is None and "--bertscore" in found["details"]["missing"]["bertscore"]


def test_an_encoder_out_of_reach_leaves_the_score_absent_with_the_reason(tmp_path):
    lines = lines_of(0.8, n=3)
    found = score_lines(lines, ratings=rate(lines, tmp_path, str(tmp_path / "nowhere")))
    assert found["bertscore"] is None
    assert "nowhere" in found["details"]["missing"]["bertscore"]


# -- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "present", "score"),
    [
        ("<Nz> is in a kitchen.", True, 5), ("Nz waves.", True, 5), ("No, <Nz> is not here.", False, 5),
        ("She is waving.", True, 3), ("A man is waving.", True, 2), ("It is sunny.", True, 1), ("", True, 0),
        ("No, <Nz> is not here.", True, 0), ("<Nz> waves.", False, 0), ("Nzambi waves.", True, 1),
    ],
)  # fmt: skip
def test_es_by_rules(answer, present, score):
    assert es_rule(answer, "<Nz>", present) == score


def test_dc_by_rules():
    gold = "<Nz> wears a red shirt and blue trousers."
    assert dc_rule(gold, gold, "<Nz>", True) == 5.0
    assert dc_rule("<Nz> wears a red shirt.", gold, "<Nz>", True) == pytest.approx(5 * 2 * 3 / (3 + 5))
    assert dc_rule("A dog barks.", gold, "<Nz>", True) == 0.0
    assert dc_rule("I do not see <Nz>.", gold, "<Nz>", True) == 0.0
    assert dc_rule("Yes, <Nz> is here.", "Yes, <Nz> is in the video.", "<Nz>", True) == 5.0


@given(st.text(max_size=60), st.text(max_size=60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_rules_stay_between_0_and_5(answer, gold, present):
    assert 0 <= es_rule(answer, "<Nz>", present) <= 5
    assert 0 <= dc_rule(answer, gold, "<Nz>", present) <= 5


# -- evaluate modules -------------------------------------------------------------------------------------------------


def test_every_module_is_a_space_as_it_is():
    assert metric_names() == [
        "pvchat_bertscore", "pvchat_bleu", "pvchat_existence", "pvchat_judge", "pvchat_rules",
    ]  # fmt: skip
    for name in metric_names():
        folder = FOLDER / name
        assert {path.name for path in folder.iterdir() if path.is_file()} == {
            f"{name}.py", "README.md", "app.py", "requirements.txt",
        }  # fmt: skip
        head = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
        assert "sdk: gradio" in head and "app_file: app.py" in head
        compile((folder / "app.py").read_text(encoding="utf-8"), "app.py", "exec")


def test_a_module_loads_from_a_copy_of_its_folder(tmp_path):
    """As it would from a Space: nothing but the folder and the installed package."""
    import evaluate

    for name in metric_names():
        shutil.copytree(metric_path(name), tmp_path / name)
        assert "Returns:" in evaluate.load(str(tmp_path / name)).inputs_description
    existence = evaluate.load(str(tmp_path / "pvchat_existence"))
    found = existence.compute(
        predictions=["Yes, <Nz> is here.", "I see <Nz>.", "I do not see <Nz>."],
        references=[True, False, False],
        names="<Nz>",
        origins=["user", "hard_negative", "random_negative"],
        margins=[2.0, 1.0, -1.0],
    )
    assert found["accuracy"] == pytest.approx(2 / 3) and found["balanced_accuracy"] == 0.75
    assert (found["false_accept_lookalike"], found["false_accept_stranger"], found["auroc"]) == (1.0, 0.0, 1.0)


def test_modules_give_the_numbers_of_the_package(encoder):
    bleu = load_metric("pvchat_bleu").compute(predictions=ANSWERS, references=GOLDS)
    assert bleu["bleu1"] == metrics.bleu(ANSWERS, GOLDS, 1) and bleu["bleu4"] == metrics.bleu(ANSWERS, GOLDS, 4)
    assert bleu["signatures"] == [metrics.bleu_signature(1), metrics.bleu_signature(4)]
    found = load_metric("pvchat_bertscore").compute(predictions=ANSWERS, references=GOLDS, model=encoder)
    assert found["f1"] == pytest.approx(BertScore(encoder).score(ANSWERS, GOLDS)[:, 2].mean())
    assert (found["backbone"], found["layer"], found["empty"]) == ("tiny-bert", 2, 1)
    rules = load_metric("pvchat_rules").compute(
        predictions=["<Nz> waves.", "No."], references=["<Nz> waves.", "No."], names="<Nz>", present=[True, False]
    )
    assert rules == {"es_rule": pytest.approx(3.0), "dc_rule": 5.0}


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(PVChatError, match="no metric 'cider'.*pvchat_bleu"):
        metric_path("cider")
    assert Path(metric_path("pvchat_bleu")).is_dir()
