"""`pvchat evaluate` and `pvchat score`, the authors' files, and several systems in one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pvchat import runs
from pvchat.cli import main
from pvchat.errors import PVChatError
from pvchat.evaluation import score_lines, scores_table, verdict
from pvchat.evaluation.authors import authors_lines, score_authors
from pvchat.evaluation.bootstrap import clustered_intervals
from pvchat.evaluation.compare import compare, compare_table
from pvchat.evaluation.store import write_lines
from tests.evaluation_lines import lines_of
from tests.tiny_bert import tiny_bert

AUTHORS_JSON = Path(__file__).parents[2] / "shared" / "data" / "authors_train_all_video.json"


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setitem(clustered_intervals.__kwdefaults__, "resamples", 50)


def report(folder: Path, lines: list[dict], **controls: list[dict]) -> tuple[Path, dict]:
    """A folder as `evaluate` leaves it, and its scores."""
    write_lines(folder / "answers.jsonl", lines)
    for name, own in controls.items():
        write_lines(folder / "controls" / f"{name}.jsonl", own)
    return folder, score_lines(lines, controls)


def text_of(renderable) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def command(capsys, *words: object) -> dict:
    assert main([str(word) for word in (*words, "--json")]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def refusal(capsys, *words: object) -> str:
    assert main([str(word) for word in words]) == 1
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


# -- the authors' files -----------------------------------------------------------------------------------------------


def authors_file(path: Path, answers: list[str | None], key: str = "data") -> Path:
    """Two clips with the subject and one without, two questions each."""
    texts = iter(answers)
    items = []
    for index, present in enumerate((True, True, False)):
        gold = "Yes, <Yo> is here." if present else "I see no sign of <Yo>."
        pairs = []
        for question, special in (("Is <Yo> here?", True), ("Where is <Yo>?", False)):
            pair = {"question": question, "answer": gold, "is_special": special}
            answer = next(texts, None)
            pairs.append(pair if answer is None else pair | {"generated_answer": answer})
        items.append({"video_path": f"/x/{index}.mp4", "is_positive": present, "qa_pairs": pairs})
    path.write_text(json.dumps({key: items}), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.skipif(not AUTHORS_JSON.exists(), reason="the authors' file is not here")
def test_every_gold_answer_of_the_authors_is_read_as_its_label_says_and_constant_yes_is_flagged():
    scores = score_authors(AUTHORS_JSON)
    assert scores["details"]["gold"] == {"agree": 9840, "n": 9840}
    assert (scores["details"]["composition"]["clips_present"], scores["details"]["composition"]["clips_absent"]) == (
        626,
        30,
    )
    assert scores["controls"]["constant_yes"]["accuracy"] == pytest.approx(9390 / 9840)
    assert scores["controls"]["constant_yes"]["balanced_accuracy"] == 0.5
    found = scores["details"]["findings"]
    assert any("9840 of 9840 gold answers" in line for line in found)
    assert any('A constant "Yes." reaches accuracy 0.954' in line for line in found)


def test_results_of_their_test_script_are_scored(tmp_path):
    answers = ["Yes, <Yo> is here.", "Here.", "No.", "There.", "I do not see <Yo>.", "Nowhere."]
    for key in ("results", "data"):
        scores = score_authors(authors_file(tmp_path / "r_test.json", answers, key))
        assert scores["existence"]["accuracy"] == pytest.approx(2 / 3)
        assert scores["existence"]["balanced_accuracy"] == 0.75
        assert scores["details"]["answers_of"] == "model" and scores["details"]["split"] == "test"
        assert scores["details"]["subject"] == "<Yo>"
        assert scores["details"]["gold"] == {"agree": 3, "n": 3}


def test_a_constant_yes_in_their_form_is_flagged_in_words(tmp_path):
    scores = score_authors(authors_file(tmp_path / "r.json", ["Yes."] * 6))
    found = "\n".join(scores["details"]["findings"])
    assert 'every one of the 3 says "present"' in found and 'constant "Yes." reaches accuracy 0.667' in found
    assert scores["existence"]["balanced_accuracy"] == 0.5
    assert not verdict(scores).passed and "does not beat always yes" in verdict(scores).text
    assert "does not beat always yes" in text_of(scores_table(scores))


def test_a_file_of_gold_answers_gets_no_verdict(tmp_path):
    lines, of_model = authors_lines(authors_file(tmp_path / "gold.json", []))
    assert not of_model and [line["answer"] for line in lines] == [line["gold"] for line in lines]
    scores = score_authors(tmp_path / "gold.json")
    assert scores["existence"]["accuracy"] == 1.0 and verdict(scores).text.startswith("No verdict")


@pytest.mark.parametrize("content", ["{}", "[]", "nope", '{"data": [{}]}', '{"data": 3}', '{"results": [1]}'])
def test_another_file_is_refused_in_one_line(tmp_path, capsys, content):
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    said = refusal(capsys, "evaluate", "--authors", tmp_path / "x.json")
    assert "authors' format" in said or "holds no question" in said


def test_a_run_that_was_cut_off_is_refused(tmp_path):
    with pytest.raises(PVChatError, match="5 of 6 questions have no generated_answer"):
        authors_lines(authors_file(tmp_path / "half.json", ["Yes."]))


def test_the_command_scores_their_file(tmp_path, capsys):
    path = authors_file(tmp_path / "r.json", ["Yes."] * 6)
    said = command(capsys, "evaluate", "--authors", path, "--out", tmp_path / "out")
    assert said["scores"] == json.loads((tmp_path / "out" / "scores.json").read_text(encoding="utf-8"))
    assert said["scores"]["passport"]["command"].startswith("pvchat evaluate --authors r.json")
    assert main(["evaluate", "--authors", str(path)]) == 0
    assert "always yes" in capsys.readouterr().out
    assert "leave adapters" in refusal(capsys, "evaluate", "--authors", path, "runs/x")


# -- pvchat score -----------------------------------------------------------------------------------------------------


def test_kept_answers_are_scored_again_with_an_encoder(tmp_path, capsys):
    report(tmp_path / "run" / "report", lines_of(0.9, n=3), no_adapter=lines_of(0.5, n=3))
    encoder = tiny_bert(tmp_path / "tiny-bert")
    for place in (tmp_path / "run", tmp_path / "run" / "report", tmp_path / "run" / "report" / "answers.jsonl"):
        said = command(capsys, "score", place, "--bertscore", encoder, "--seed", 3)
        assert said["scores"]["bertscore"]["backbone"] == "tiny-bert"
        assert said["scores"]["passport"]["seed"] == 3 and said["scores"]["passport"]["config"]["bertscore"]
        assert said["scores"]["controls"]["no_adapter"] and not said["scores"]["controls"]["wrong_adapter"]
    assert str(tmp_path) not in json.dumps(said["scores"])
    assert main(["score", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "BERTScore: tiny-bert, layer 2" in out and "not computed: it needs a judge" in out


def test_nothing_to_score_is_one_line(tmp_path, capsys):
    assert "cannot be read" in refusal(capsys, "score", tmp_path / "nothing")
    assert "layer of --bertscore" in refusal(capsys, "score", tmp_path, "--bertscore-layer", 2)
    assert "at least 1" in refusal(capsys, "score", tmp_path, "--judge-runs", 0)
    assert "--judge-model for each" in refusal(capsys, "score", tmp_path, "--judge", "http://localhost:1/v1")


# -- several systems --------------------------------------------------------------------------------------------------


def test_systems_with_the_same_questions_are_compared_with_the_first(tmp_path):
    systems = {
        name: report(tmp_path / name, lines_of(right)) for name, right in (("a", 0.95), ("b", 0.95), ("c", 0.5))
    }
    result = compare(systems)
    first, same, worse = result["systems"]
    assert first["paired"] is None and same["paired"]["difference"] == 0 and same["paired"]["p"] == 1.0
    assert worse["paired"]["difference"] == pytest.approx(-0.45) and worse["paired"]["p"] < 0.001
    assert result["pooled"] is None  # one subject
    table = text_of(compare_table(result))
    assert "-0.45, p < 0.001" in table and "balanced accuracy" in table


def test_systems_of_different_subjects_are_pooled_with_their_common_controls(tmp_path):
    systems = {}
    for name, right in (("a", 1.0), ("b", 0.8), ("c", 0.6)):
        own = lines_of(right, subject=f"<{name}>")
        extra = {"text_only": own} if name == "a" else {}
        systems[name] = report(tmp_path / name, own, no_adapter=lines_of(0.5, subject=f"<{name}>"), **extra)
    pooled = compare(systems)["pooled"]
    assert pooled["existence"]["balanced_accuracy"] == pytest.approx(0.8) and pooled["existence"]["n"] == 120
    assert pooled["controls"]["no_adapter"]["balanced_accuracy"] == 0.5 and pooled["controls"]["text_only"] is None
    assert pooled["details"]["subject"] == "3 subjects" and pooled["details"]["videos"] == 120
    low, high = pooled["intervals"]["existence"]["balanced_accuracy"]
    assert low < 0.72 and high > 0.88  # the subjects differ, and that is in the interval
    assert pooled["paired"]["no_adapter"]["difference"] == pytest.approx(0.3)
    assert "all 3 subjects" in text_of(compare_table(compare(systems)))


def test_the_command_makes_a_table_of_several_adapters(tmp_path, capsys, monkeypatch):
    for name in ("Nz", "Ada"):
        (tmp_path / name / "adapter").mkdir(parents=True)
        (tmp_path / name / "adapter" / "adapter_config.json").write_text("{}")
    asked = []

    def evaluated(adapter, out, wrong_adapters, **options):
        asked.append((adapter.parent.name, [path.parent.name for path in wrong_adapters]))
        folder, scores = report(out, lines_of(0.9, subject=f"<{adapter.parent.name}>"))
        return {"run": str(adapter.parent), "scores": scores, "report": str(folder / "index.html")}

    monkeypatch.setattr(runs, "evaluate_adapter", evaluated)
    words = ["evaluate", tmp_path / "Nz", tmp_path / "Ada", "--wrong", tmp_path / "Ada", "--out", tmp_path / "out"]
    said = command(capsys, *words)
    assert asked == [("Nz", ["Ada"]), ("Ada", [])]  # nobody is their own wrong subject
    assert [row["subject"] for row in said["systems"]] == ["<Nz>", "<Ada>"]
    assert said["pooled"]["existence"]["n"] == 80
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert kept == said and str(tmp_path) not in json.dumps(kept["passport"])


def test_what_is_missing_on_the_command_line_is_named(capsys, tmp_path):
    assert "Pass an adapter" in refusal(capsys, "evaluate")
    assert "--model needs --data" in refusal(capsys, "evaluate", "--model", "Qwen/Qwen3-VL-8B-Instruct")
    assert "no adapter_config.json" in refusal(capsys, "evaluate", tmp_path)


def test_a_baseline_is_evaluated_by_the_command(tmp_path, capsys, monkeypatch):
    from pvchat.evaluation import baselines
    from pvchat.evaluation import report as report_module
    from tests.tiny import tiny_dataset

    dataset = tiny_dataset(tmp_path / "set", positives=1, negatives=1, test=1)
    monkeypatch.setattr("pvchat.dataset_builder.load_local", lambda path: dataset)
    monkeypatch.setattr(report_module, "write_report", lambda out, *rest: Path(out) / "index.html")
    monkeypatch.setattr("pvchat.evaluation.write_report", lambda out, *rest: Path(out) / "index.html", raising=False)
    seen = []

    def load(name, subject, reference):
        seen.append((name, subject, reference))
        return baselines.OneVideoModel(lambda path, asked: ["No."] * len(asked), "tiny", subject, reference)

    monkeypatch.setattr(baselines, "load_baseline", load)
    said = command(capsys, "evaluate", "--model", "someone/Tiny-VL", "--data", tmp_path / "set")
    assert seen == [("someone/Tiny-VL", "<Nz>", dataset.split("train")[0].path)]
    assert said["scores"]["existence"]["balanced_accuracy"] == 0.5
    assert (tmp_path / "report-Tiny-VL" / "answers.jsonl").is_file()
