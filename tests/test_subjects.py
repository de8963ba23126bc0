"""Who is known here, and that a person who is removed is gone: every derived file, and every trace in what stays."""

import hashlib
import html
import io
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pvchat.cli import main
from pvchat.dataset_builder import ConsentRecord, Engine, Stage, Task, cartoon, load_local
from pvchat.dataset_builder.merge import merge_datasets
from pvchat.errors import PVChatError
from pvchat.subjects import find_subjects, get_subject, plan_removal, remove_subject
from tests.small_datasets import clip_bytes, reference_bytes, write_dataset
from tests.test_publish import snapshot

RECORD = ConsentRecord("Noor Zuiderveld", "2026-01-31", "train a model for me", expires="2036-01-31")


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def write_adapter(folder, name, dataset_hash):
    write(folder / "adapter_config.json", {"peft_type": "LORA"})
    write(folder / "adapter_model.safetensors", clip_bytes("weights", name, folder.name))
    write(folder / "subject.json", {"subject": name, "dataset_hash": dataset_hash})


def write_run(folder, name, consent=None, **options):
    """A finished run as `personalize` leaves it."""
    dataset = write_dataset(folder / "dataset", name, consent=consent, **options)
    (folder / ".clips-dataset").rename(folder.parent / f".sources-{folder.name}")
    record = (consent or ConsentRecord.for_fiction()).to_json()
    write(folder / "subject.json", {"name": name, "reference": "clip.mp4", "consent": record})
    inputs = {"name": name, "reference": sha256(reference_bytes(name))}
    write(folder / "run.json", {"format": 1, "inputs": inputs, "command": f"pvchat personalize --name {name}"})
    for stage in ("stage1", "stage2"):
        write(folder / stage / "stage.json", {"finished": True})
        write_adapter(folder / stage / "adapter", name, dataset.hash)
    write_adapter(folder / "adapter", name, dataset.hash)
    write(folder / "report" / "index.html", f"<h1>{html.escape(name)}</h1>")
    write(folder / "report" / "answers.jsonl", json.dumps({"question": f"Is {name} here?"}))
    return dataset


@pytest.fixture
def runs(tmp_path):
    """<Nz> and <Ada> have runs, <Bo> a dataset alone. Ada's hard negatives were made from Nz's reference video."""
    root = tmp_path / "runs"
    nz = write_run(root / "first", "<Nz>", RECORD)
    ada = write_run(root / "second", "<Ada>", negative_source=reference_bytes("<Nz>"))
    bo = write_dataset(root / "data", "<Bo>")
    for path in (*root.glob(".sources-*"), root / ".clips-data"):
        shutil.rmtree(path)
    parts = [nz.root, bo.root]
    merge_datasets(parts, root / "merged")
    assert ada.hash == load_local(root / "second" / "dataset").hash
    return root


def remove(runs, *words):
    return main(["subjects", "remove", *words, "--runs", str(runs)])


# -- who is known ----------------------------------------------------------------------------------------------------


def test_people_are_known_by_what_the_files_say_and_not_by_folder_names(runs):
    known = find_subjects(runs)
    assert list(known) == ["<Ada>", "<Bo>", "<Nz>"]
    nz = known["<Nz>"]
    assert nz.runs == [runs / "first"] and nz.datasets == [runs / "first" / "dataset"]
    assert nz.shared == known["<Bo>"].shared == [runs / "merged"] and len(nz.adapters) == 3
    assert known["<Bo>"].datasets == [runs / "data"] and not known["<Bo>"].runs
    assert nz.sources >= {sha256(reference_bytes("<Nz>"))}


def test_the_consent_of_each_is_shown_with_its_state(runs):
    known = find_subjects(runs)
    assert known["<Nz>"].consent_state() == "holds until 2036-01-31"
    assert known["<Ada>"].consent_state() == known["<Bo>"].consent_state() == "drawn, none needed"
    write(runs / "data" / "consent.json", RECORD.to_json())  # as a build without a run leaves it
    assert get_subject(runs, "Bo").consent == RECORD.to_json()
    ended = RECORD.to_json() | {"expires": "2026-02-01"}
    write(runs / "first" / "subject.json", {"name": "<Nz>", "reference": "clip.mp4", "consent": ended})
    assert "ended on 2026-02-01" in get_subject(runs, "Nz").consent_state()


def test_list_and_show_print_for_people_and_for_programs(runs, capsys):
    assert main(["subjects", "list", "--runs", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("<Ada>", "<Bo>", "<Nz>"))
    assert main(["subjects", "list", "--runs", str(runs), "--json"]) == 0
    people = json.loads(capsys.readouterr().out)["subjects"]
    assert [person["name"] for person in people] == ["<Ada>", "<Bo>", "<Nz>"]
    assert main(["subjects", "show", "Nz", "--runs", str(runs), "--json"]) == 0
    person = json.loads(capsys.readouterr().out)
    assert person == people[2] and person["consent"]["given_by"] == RECORD.given_by and person["bytes"] > 1000
    assert main(["subjects", "show", "<Nz>", "--runs", str(runs)]) == 0
    assert str(runs / "merged") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("show", "Eve"), "does not know <Eve>; it knows <Ada>, <Bo>, <Nz>"),
        (("remove", "Eve", "--yes"), "does not know <Eve>"),
        (("show",), "Say who"),
        (("remove", "--yes"), "Say who"),
        (("show", "<1>"), "name"),
        (("forget", "Nz"), "invalid choice"),
    ],
)
def test_what_cannot_be_done_is_one_line(runs, capsys, words, message):
    before = snapshot(runs)
    assert main(["subjects", *words, "--runs", str(runs)]) == 1
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and snapshot(runs) == before


def test_a_folder_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main(["subjects", "list", "--runs", str(tmp_path / "none")]) == 1
    assert "--runs" in capsys.readouterr().err


def test_damaged_files_do_not_hide_the_others(runs):
    write(runs / "broken" / "run.json", "{")
    write(runs / "broken" / "dataset.json", "[]")
    write(runs / "merged" / "videos" / "train.parquet", b"no table")
    assert list(find_subjects(runs)) == ["<Ada>", "<Bo>", "<Nz>"]


# -- removal ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_go_and_changes_nothing(runs, capsys):
    before = snapshot(runs)
    assert remove(runs, "Nz", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [item["path"] for item in plan["deleted"]] == [str(runs / "first")]
    assert plan["deleted"][0]["files"] == len([name for name in before if name.startswith("first/")])
    assert {item["dataset"]: item["clips"] for item in plan["rewritten"]} == {
        str(runs / "merged"): 7,
        str(runs / "second" / "dataset"): 1,
    }
    assert plan["retrain"] == [str(runs / "second")] and plan["scan"] is None
    assert remove(runs, "Nz", "--dry-run") == 0
    assert "rewrite" in capsys.readouterr().out and snapshot(runs) == before


def test_a_removed_person_leaves_no_trace_and_the_others_stay(runs, capsys):
    others = {k: v for k, v in snapshot(runs).items() if k.startswith(("data/", "second/adapter", "second/report"))}
    clips = {v.video_id: v.sha256 for v in load_local(runs / "second" / "dataset").videos}
    assert remove(runs, "Nz", "--yes", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    after = snapshot(runs)
    assert result["scan"] == {"files": len(after), "left": []} and not (runs / "first").exists()
    assert others.items() <= after.items()
    assert not any(b"<Nz>" in content or b"&lt;Nz" in content for content in after.values())
    merged, ada = load_local(runs / "merged"), load_local(runs / "second" / "dataset")
    assert {v.subject for v in merged.videos} == {"<Bo>"} and len(merged.videos) == 7
    assert merged.manifest["subjects"] == ["<Bo>"]
    assert {v.video_id for v in ada.videos} < clips.keys() and len(ada.videos) == 6
    assert "<Nz>" not in find_subjects(runs)
    assert remove(runs, "Nz", "--yes") == 1 and "does not know" in capsys.readouterr().err


def test_the_clips_of_a_merge_are_really_gone_from_its_tables(runs):
    gone = {v.sha256 for v in load_local(runs / "first" / "dataset").videos}
    remove_subject(runs, "<Nz>")
    for path in (runs / "merged" / "videos").iterdir():
        rows = pq.read_table(path).to_pylist()
        assert not {sha256(row["video"]["bytes"]) for row in rows} & gone


def test_a_merge_that_held_nobody_else_disappears(tmp_path):
    nz = write_dataset(tmp_path / "runs" / "nz", "<Nz>")
    merge_datasets([nz.root], tmp_path / "runs" / "merged")
    shutil.rmtree(tmp_path / "runs" / ".clips-nz")
    assert remove_subject(tmp_path / "runs", "Nz")["scan"] == {"files": 0, "left": []}
    assert list((tmp_path / "runs").iterdir()) == []


def test_build_caches_go_as_far_as_they_were_made_from_the_person(runs):
    """ingest(reference) -> scene -> score, in a cache that two people share."""
    engine = Engine(runs / "work")

    def run(stage, content, *inputs):
        return engine.run(Task(stage, "", lambda path, backends: path.write_bytes(content) and {}, inputs=inputs))

    kept, derived = [], []
    for name, store in (("<Nz>", derived), ("<Ada>", kept)):
        ingest, scene = Stage("ingest", 1, "a@1", ".mp4"), Stage("scene", 1, "b@1", ".mp4")
        first = run(ingest, name.encode(), sha256(reference_bytes(name)))
        second = run(scene, b"scene of " + name.encode(), first.sha256)
        third = run(Stage("score", 1, "c@1", ".json"), b"0.5", second.sha256, "f" * 64)
        store += [first.path, second.path, third.path]
    result = remove_subject(runs, "<Nz>")
    assert result["scan"]["left"] == [] and not any(path.exists() for path in derived)
    assert all(path.exists() for path in kept) and len(list((runs / "work").rglob("*.done.json"))) == 3


def test_a_build_that_was_stopped_is_found_by_the_reference_video(tmp_path):
    runs, reference = tmp_path / "runs", tmp_path / "clip.mp4"
    write(reference, reference_bytes("<Eve>"))
    ingest = Stage("ingest", 1, "a@1", ".mp4")
    inputs = (sha256(reference_bytes("<Eve>")),)
    task = Task(ingest, "", lambda path, backends: path.write_bytes(b"eve") and {}, inputs=inputs)
    Engine(runs / "eve" / ".build").run(task)
    with pytest.raises(PVChatError, match="knows nobody"):
        plan_removal(runs, "Eve")
    assert remove_subject(runs, "Eve", reference=reference)["scan"] == {"files": 0, "left": []}
    assert reference.exists() and list(runs.iterdir()) == []


def test_a_build_that_was_stopped_is_found_by_what_it_wrote_first(tmp_path):
    record = {"name": "<Eve>", "reference": "clip.mp4", "reference_sha256": "e" * 64, "consent": RECORD.to_json()}
    write(tmp_path / "data" / "eve" / ".build" / "subject.json", record)
    write(tmp_path / "data" / "eve" / ".build" / "objects" / "ab" / "cd.mp4", b"eve")
    assert get_subject(tmp_path, "Eve").consent_state() == "holds until 2036-01-31"
    result = remove_subject(tmp_path, "Eve")
    assert result["scan"] == {"files": 0, "left": []} and list(tmp_path.iterdir()) == []


def test_copies_of_an_adapter_are_found_wherever_they_lie(runs):
    write_adapter(runs / "backup" / "old nz", "<Nz>", "0" * 64)
    write(runs / "backup" / "notes.txt", "nothing about anybody")
    remove_subject(runs, "Nz")
    assert [p.name for p in (runs / "backup").iterdir()] == ["notes.txt"]


def test_a_trained_folder_without_a_passport_goes_as_a_whole(tmp_path):
    for stage in ("stage1", "stage2"):
        write(tmp_path / "out" / stage / "stage.json", {"finished": True})
        write_adapter(tmp_path / "out" / stage / "adapter", "<Nz>", "0" * 64)
    write_adapter(tmp_path / "out" / "adapter", "<Nz>", "0" * 64)
    write(tmp_path / "out" / "report" / "scores.json", {"subject": "<Nz>"})
    assert remove_subject(tmp_path, "Nz")["scan"]["files"] == 0 and list(tmp_path.iterdir()) == []


def test_drawn_galleries_of_a_run_go_and_somebody_s_own_files_stay(runs):
    person, scene = (
        cartoon.cast(1)[0].identity,
        cartoon.Scene.random(np.random.default_rng(0)),
    )
    (runs / "first" / "gallery").mkdir()
    cartoon.render_video(runs / "first" / "gallery" / "0.mp4", person, scene, seconds=0.5, fps=8, size=32)
    write(runs / "first" / "test" / "holiday.mp4", b"a film of mine")
    result = remove_subject(runs, "Nz")
    assert result["kept"] == [str(runs / "first" / "test")] and not (runs / "first" / "gallery").exists()
    assert [p.name for p in (runs / "first").iterdir()] == ["test"]


def test_somebody_else_s_positives_from_the_same_video_are_named_and_not_taken(tmp_path):
    """Two people of one reference video: removing one does not silently empty the dataset of the other."""
    write_dataset(tmp_path / "a", "<Nz>")
    write_dataset(tmp_path / "b", "<Bo>")
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / f".clips-{name}")
    table = pq.read_table(tmp_path / "b" / "videos" / "train.parquet")
    shared = [[sha256(reference_bytes("<Nz>"))]] * len(table)
    column = pa.array(shared, table.schema.field("parent_ids").type)
    position = table.schema.get_field_index("parent_ids")
    present = table["subject_present"].to_pylist()
    kept = pa.array([s if p else o for s, o, p in zip(shared, table["parent_ids"].to_pylist(), present, strict=True)])
    pq.write_table(
        table.set_column(position, table.schema.field("parent_ids"), kept.cast(column.type)), tmp_path / "t"
    )
    (tmp_path / "t").rename(tmp_path / "b" / "videos" / "train.parquet")
    result = remove_subject(tmp_path, "<Nz>")
    assert result["rewritten"] == [] and (tmp_path / "b" / "dataset.json").exists()
    assert result["scan"]["left"] == [
        {"path": str(tmp_path / "b" / "videos" / "train.parquet"), "why": "refers to a file of theirs"}
    ]


# -- the proof -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planted", "content", "why"),
    [
        ("notes.txt", "Call <Nz> tomorrow", "holds the name"),
        ("page.html", "<b>&lt;Nz&gt;</b>", "holds the name"),
        ("escaped.json", '{"who": "\\u003cNz\\u003e"}', "holds the name"),
        ("weights.bin", b"\0" * 5000 + b"<Nz>", "holds the name"),
        ("list.json", json.dumps([sha256(reference_bytes("<Nz>"))]), "refers to a file of theirs"),
        ("ref.mov", reference_bytes("<Nz>"), "is a copy of a file of theirs"),
        ("clip.bin", clip_bytes("<Nz>", 1), "is a copy of a file of theirs"),
        ("w.safetensors", clip_bytes("weights", "<Nz>", "adapter"), "is a copy of a file of theirs"),
        ("bad.parquet", b"PAR1 no table", "cannot be read"),
    ],
)
def test_a_trace_that_is_not_ours_to_delete_is_named_and_ends_with_code_1(runs, capsys, planted, content, why):
    write(runs / "mine" / planted, content)
    assert remove(runs, "Nz", "--yes", "--json") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["scan"]["left"] == [{"path": str(runs / "mine" / planted), "why": why}]
    assert captured.err.count("\n") == 1 and planted in captured.err and (runs / "mine" / planted).exists()
    assert not (runs / "first").exists()


def test_tables_are_read_not_just_searched(runs):
    """Compressed columns hide a name from a search of the bytes."""
    table = pa.table({"text": [f"{n} times <Nz> and the sea" for n in range(1000)]})
    pq.write_table(table, runs / "mine.parquet", compression="gzip", write_statistics=False)
    assert b"<Nz> and" not in (runs / "mine.parquet").read_bytes()
    left = remove_subject(runs, "Nz")["scan"]["left"]
    assert left == [{"path": str(runs / "mine.parquet"), "why": "holds the name"}]


def test_names_beyond_ascii_are_found_in_every_spelling(tmp_path):
    write_adapter(tmp_path / "a", "<Zoë>", "0" * 64)
    write(tmp_path / "notes.json", json.dumps({"who": "<Zoë>"}))
    write(tmp_path / "other.json", json.dumps({"who": "<Zoe>"}))
    left = remove_subject(tmp_path, "Zoë")["scan"]["left"]
    assert [found["path"] for found in left] == [str(tmp_path / "notes.json")]


def test_people_whose_names_begin_alike_are_not_mistaken_for_each_other(tmp_path):
    write_dataset(tmp_path / "a", "<Nz>")
    write_dataset(tmp_path / "b", "<Nz2>")
    for name in ("a", "b"):
        shutil.rmtree(tmp_path / f".clips-{name}")
    before = {k: v for k, v in snapshot(tmp_path).items() if k.startswith("b/")}
    assert remove_subject(tmp_path, "Nz")["scan"]["left"] == [] and snapshot(tmp_path) == before


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 18, 20, 25, 30])
def test_a_removal_that_was_stopped_anywhere_goes_on(runs, monkeypatch, steps):
    def stopping(real):
        def call(*args, **options):
            nonlocal steps
            steps -= 1
            if steps < 0:
                raise KeyboardInterrupt
            return real(*args, **options)

        return call

    for where, name in ((shutil, "rmtree"), (os, "replace"), (os, "unlink")):
        monkeypatch.setattr(where, name, stopping(getattr(where, name)))
    with pytest.raises(KeyboardInterrupt):
        remove_subject(runs, "Nz")
    monkeypatch.undo()
    assert "<Nz>" in find_subjects(runs)
    assert remove_subject(runs, "Nz")["scan"]["left"] == []
    assert not (runs / "first").exists() and "<Nz>" not in find_subjects(runs)
    assert len(load_local(runs / "merged").videos) == 7 and len(load_local(runs / "second" / "dataset").videos) == 6
    merge_datasets([runs / "merged", runs / "second" / "dataset"], runs / "again")  # the hashes are those of the rows


def test_links_to_other_places_are_not_followed(runs, tmp_path):
    outside = tmp_path / "outside"
    write(outside / "notes.txt", "Call <Nz>")
    (runs / "first" / "features").symlink_to(outside)
    remove_subject(runs, "Nz")
    assert (outside / "notes.txt").exists() and not (runs / "first").exists()


# -- asking ----------------------------------------------------------------------------------------------------------


def test_without_a_terminal_nothing_is_deleted_unless_told_to(runs, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Nz\n"))
    before = snapshot(runs)
    assert remove(runs, "Nz") == 1
    assert "--yes" in capsys.readouterr().err and snapshot(runs) == before


@pytest.mark.parametrize(("typed", "gone"), [("Nz\n", True), ("<Nz>\n", True), ("y\n", False), ("", False)])
def test_on_a_terminal_the_name_must_be_typed(runs, capsys, monkeypatch, typed, gone):
    stdin = io.StringIO(typed)
    monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin", stdin)
    assert remove(runs, "Nz") == (0 if gone else 1)
    captured = capsys.readouterr()
    assert "Type Nz" in captured.err and (runs / "first").exists() is not gone
    assert ("no trace left" in captured.out) is gone
