"""The question bank, the sampler, and the rules that put the name into answers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvchat.dataset_builder import QA, RuleRefiner, SubjectSpec, load_bank
from pvchat.dataset_builder.questions.bank import fill
from pvchat.dataset_builder.recipe import RECIPES
from pvchat.dataset_builder.refine import put_name
from pvchat.errors import PVChatError

BANK = load_bank()


def test_the_bank_is_large_enough():
    assert len(BANK.questions["existence"]) >= 25 and len(BANK.yes) >= 25 and len(BANK.no) >= 25
    for category in ("appearance", "action", "location"):
        assert len(BANK.questions[category]) >= 5 and len(BANK.refusals[category]) >= 5
    for recipe in RECIPES.values():
        for row in recipe.rows:
            BANK.check(row.questions)


def test_the_first_word_of_an_answer_decides():
    assert all(text.startswith("Yes,") for text in BANK.yes)
    assert all(text.startswith("No,") for text in BANK.no)
    assert all(t.startswith("I do not see {name} in this video") for texts in BANK.refusals.values() for t in texts)


@given(st.integers(0, 2**31 - 1), st.booleans(), st.integers(1, 25))
def test_nothing_repeats_inside_a_clip_and_answers_fit_the_label(seed, present, count):
    questions = BANK.existence("<Nz>", present, count, seed)
    assert len({q.question for q in questions}) == len({q.answer for q in questions}) == count
    assert all(q.answer.startswith("Yes" if present else "No") for q in questions)
    assert all("<Nz>" in q.question and "{" not in q.question + q.answer for q in questions)
    assert questions == BANK.existence("<Nz>", present, count, seed)


def test_questions_about_an_absent_person_are_refused_per_category():
    for category in ("appearance", "action", "location"):
        for qa in BANK.refuse("<Nz>", category, 5, 3):
            assert qa.category == category and qa.answer.startswith("I do not see <Nz> in this video")


def test_a_count_beyond_the_bank_is_one_line():
    with pytest.raises(PVChatError, match="asks for 99 existence questions"):
        BANK.existence("<Nz>", True, 99, 0)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda d: d["existence"]["yes"].append("Sure, {name} is here."), "does not start with Yes"),
        (lambda d: d["existence"]["no"].append("No one is here."), "lacks"),
        (lambda d: d["action"]["questions"].append("What is he doing?"), "lacks"),
        (lambda d: d["action"].update(questions=[]), "no question of category action"),
        (lambda d: d["existence"]["yes"].append(d["existence"]["yes"][0]), "twice"),
        (lambda d: d.pop("location"), "location"),
    ],
)
def test_a_faulty_bank_file_is_refused(tmp_path, change, what):
    from pathlib import Path

    from pvchat.dataset_builder.questions import bank

    data = json.loads(Path(bank.__file__).with_name("bank.json").read_text(encoding="utf-8"))
    change(data)
    path = tmp_path / "bank.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(PVChatError, match=what):
        load_bank(path)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The person is wearing a red shirt.", "<Nz> is wearing a red shirt."),
        ("A young man is waving. He smiles.", "<Nz> is waving. <Nz> smiles."),
        ("She is in a kitchen and she is cooking.", "<Nz> is in a kitchen and <Nz> is cooking."),
        ("They are reading.", "<Nz> is reading."),
        ("There is a woman sitting on a sofa.", "<Nz> is sitting on a sofa."),
        ("Their shirt is blue.", "<Nz>'s shirt is blue."),
        ("The man talks to a woman. She laughs.", "<Nz> talks to a woman. She laughs."),
        ("The man talks to another man. He laughs.", "<Nz> talks to another man. He laughs."),
        ("The man sings. A man listens.", "<Nz> sings. A man listens."),
        ("<Nz> is here. He waves.", "<Nz> is here. He waves."),
    ],
)
def test_the_subject_gets_the_name_and_bystanders_do_not(answer, expected):
    assert put_name(answer, "<Nz>") == expected


@pytest.mark.parametrize(
    "answer", ["A red shirt.", "In the park.", "Two people dance.", "Another person sits.", "Blue"]
)
def test_an_answer_without_a_recognised_subject_is_recorded_as_not_refined(answer):
    refined = RuleRefiner().refine(QA("q", answer, "action", "vlm", "rules"), SubjectSpec("Nz", "x.mp4"))
    assert (refined.answer, refined.refined_by) == (answer, "none")


def test_fill_leaves_other_braces_alone():
    assert fill("Is {name} in {here}?", "<Nz>") == "Is <Nz> in {here}?"
