"""Merging datasets, taking clips out of them, and putting them on a Hub, which here runs on this machine."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pvchat.cli import main
from pvchat.dataset_builder import ConsentRecord, load_local
from pvchat.dataset_builder.merge import (
    drop_videos,
    link_or_copy,
    load_subject,
    merge_datasets,
    restore_clips,
)
from pvchat.dataset_builder.publish import push_dataset
from pvchat.errors import PVChatError
from pvchat.hub import refuse_private
from tests.loopback_hub import LoopbackHub, Repo
from tests.small_datasets import PLAN, RECORD, clip_bytes, write_dataset


@pytest.fixture
def drawn(tmp_path):
    return write_dataset(tmp_path / "drawn")


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


def fresh(code, env, cwd=None):
    """Runs code in a process that cannot import pvchat; returns what it prints."""
    code = "import sys; sys.modules['pvchat'] = None\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def push(hub, *words, **options):
    """The command on this Hub: (exit code, result or None, what it says)."""
    return hub.pvchat("push-dataset", *words, **options)


def snapshot(folder):
    """Every file below with its content."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- many subjects in one folder -------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    folders = [write_dataset(tmp_path / name, f"<{name}>").root for name in ("Ada", "Bo")]
    return folders, merge_datasets(folders, tmp_path / "both"), tmp_path / "both"


def test_a_merged_folder_holds_the_rows_of_all_and_reads_back(two):
    folders, manifest, both = two
    merged = load_local(both)
    parts = [load_local(folder) for folder in folders]
    assert [v.video_id for v in merged.split("train")] == [v.video_id for p in parts for v in p.split("train")]
    assert [dataclasses.replace(v, path=both) for v in merged.videos if v.subject == "<Bo>"] == [
        dataclasses.replace(v, path=both) for v in parts[1].videos
    ]
    assert manifest["subjects"] == ["<Ada>", "<Bo>"] and manifest["counts"]["train"]["videos"] == 10
    assert manifest["counts"]["train"]["categories"] == {"action": 6, "existence": 10, "location": 6}
    assert not (both / ".build").exists() and len(list((both / "clips").iterdir())) == 14


def test_the_hash_of_a_merge_depends_on_what_is_in_it_and_not_on_the_order(two, tmp_path):
    folders, manifest, _ = two
    assert merge_datasets(folders[::-1], tmp_path / "other")["dataset_hash"] == manifest["dataset_hash"]
    assert merge_datasets(folders[:1], tmp_path / "one")["dataset_hash"] != manifest["dataset_hash"]


def test_a_merge_of_merges_is_the_merge_of_all(two, tmp_path):
    _, _, both = two
    third = write_dataset(tmp_path / "Cleo", "<Cleo>").root
    manifest = merge_datasets([both, third], tmp_path / "three")
    flat = merge_datasets([*two[0], third], tmp_path / "flat")
    assert manifest["subjects"] == ["<Ada>", "<Bo>", "<Cleo>"] and manifest["dataset_hash"] == flat["dataset_hash"]


def test_row_groups_hold_one_subject_each(two):
    for config in ("videos", "qa"):
        with pq.ParquetFile(two[2] / config / "train.parquet") as file:
            groups = [file.read_row_group(i, ["subject"]).to_pydict()["subject"] for i in range(file.num_row_groups)]
        assert [set(group) for group in groups] == [{"<Ada>"}, {"<Bo>"}]


def test_one_subject_of_a_merge_is_a_dataset_to_train_on(two):
    folders, _, both = two
    alone = load_subject(both, "<Bo>")
    assert alone.subject == "<Bo>" and alone.hash == load_local(folders[1]).hash
    assert {v.subject for v in alone.videos} == {"<Bo>"} and all(v.path.is_file() for v in alone.videos)
    with pytest.raises(PVChatError, match="does not know <Cleo>"):
        load_subject(both, "<Cleo>")


def test_what_cannot_be_merged_is_refused_in_one_line_and_leaves_no_dataset(two, tmp_path):
    folders, _, both = two
    leaking = write_dataset(tmp_path / "leaking", "<Cleo>", negative_source=b"x")
    shared = tuple(row if row[0] == "test" else row for row in PLAN)
    tested = write_dataset(tmp_path / "tested", "<Dot>", plan=shared)
    changed = write_dataset(tmp_path / "changed", "<Eli>")
    manifest = json.loads((changed.root / "dataset.json").read_text(encoding="utf-8"))
    (changed.root / "dataset.json").write_text(json.dumps(manifest | {"dataset_hash": "0" * 64}), encoding="utf-8")
    for wanted, message in (
        ([], "nothing to merge"),
        ([*folders, folders[0]], "<Ada> is the subject of two"),
        ([tmp_path], "not a dataset folder"),
        ([changed.root], "was changed after it was built"),
    ):
        with pytest.raises(PVChatError, match=message) as caught:
            merge_datasets(wanted, tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out" / "dataset.json").exists()
    with pytest.raises(PVChatError, match="one of the datasets"):
        merge_datasets([both], both)
    assert merge_datasets([leaking.root, tested.root], tmp_path / "out")["subjects"] == ["<Cleo>", "<Dot>"]


def test_a_source_that_is_trained_on_here_and_tested_on_there_is_refused(tmp_path):
    test_clip = hashlib.sha256(clip_bytes("<Ada>", 5)).hexdigest()  # the content of Ada's first test clip
    ada = write_dataset(tmp_path / "ada", "<Ada>")
    assert test_clip in {v.sha256 for v in ada.split("test")}
    bo = write_dataset(tmp_path / "bo", "<Bo>", negative_source=clip_bytes("<Ada>", 5))
    with pytest.raises(PVChatError, match="is in test for <Ada> and in train for <Bo>"):
        merge_datasets([ada.root, bo.root], tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_merge_that_was_stopped_is_no_dataset_and_can_be_done_again(two, tmp_path):
    folders, manifest, _ = two

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_datasets(folders, tmp_path / "out", progress=stop)
    with pytest.raises(PVChatError, match="not a dataset folder"):
        load_local(tmp_path / "out")
    assert merge_datasets(folders, tmp_path / "out")["dataset_hash"] == manifest["dataset_hash"]


def test_merging_more_people_takes_no_more_memory(tmp_path):
    folders = [write_dataset(tmp_path / f"P{i}", f"<P{i}>", clip_size=1_500_000).root for i in range(12)]
    code = """
        import resource, sys
        from pvchat.dataset_builder.merge import merge_datasets
        merge_datasets(sys.argv[2:], sys.argv[1])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = []
    for count in (2, 12):
        command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / f"out{count}"), *folders[:count]]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024)
    written = sum(p.stat().st_size for p in (tmp_path / "out12" / "videos").iterdir()) / 2**20
    assert written > 100 and peaks[1] - peaks[0] < 30, (written, peaks)


def test_clips_can_be_taken_out_of_a_dataset_for_good(two):
    _, before, both = two
    gone = {v.video_id for v in load_local(both).videos if v.subject == "<Ada>" and v.origin != "scene"}
    manifest = drop_videos(both, gone)
    left = load_local(both)
    assert not gone & {v.video_id for v in left.videos} and len(left.videos) == 14 - len(gone) == 8
    assert manifest["counts"]["test"]["videos"] == 2 and manifest["dataset_hash"] != before["dataset_hash"]
    assert {p.stem for p in (both / "clips").iterdir()} == {v.video_id for v in left.videos}
    questions = pq.read_table(both / "qa" / "train.parquet").to_pylist()
    assert not gone & {q["video_id"] for q in questions} and len(questions) == 3 + 11
    assert merge_datasets([both], both.with_name("again"))["dataset_hash"] == manifest["dataset_hash"]


def test_a_dataset_without_a_clip_disappears(drawn):
    assert drop_videos(drawn.root, {v.video_id for v in drawn.videos}) is None
    assert not drawn.root.exists()


def test_taking_clips_out_does_not_touch_the_datasets_that_were_merged(two):
    folders, _, both = two
    before = snapshot(folders[0])
    drop_videos(both, {v.video_id for v in load_local(both).videos if v.subject == "<Ada>"})
    assert snapshot(folders[0]) == before


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("not on this disk")))
    (tmp_path / "a").write_bytes(b"x")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x"


# -- from a folder, without this package -----------------------------------------------------------------------------

LOAD = """
    import hashlib, json
    from datasets import Video, load_dataset
    place = {place!r}
    questions = load_dataset(place)                    # the default config
    clips = load_dataset(place, "videos", split="train").cast_column("video", Video(decode=False))
    stream = load_dataset(place, "qa", split="test", streaming=True)
    moving = load_dataset(place, "videos", split="test", streaming=True).decode(False)
    print(json.dumps({{
        "questions": {{split: rows.num_rows for split, rows in questions.items()}},
        "same": all(hashlib.sha256(row["video"]["bytes"]).hexdigest() == row["sha256"] for row in clips),
        "clips": clips["video_id"][:],
        "subjects": sorted(set(clips["subject"][:])),
        "stream": [row["qa_id"] for row in stream],
        "moving": [len(row["video"]["bytes"]) for row in moving],
        "joined": set(questions["train"]["video_id"][:]) <= set(clips["video_id"][:]),
    }}))
"""


def offline(home):
    """For a process without a Hub whose caches lie under `home`."""
    hidden = ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_ENDPOINT")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def loaded(place, env):
    return json.loads(fresh(LOAD.format(place=str(place)), env))


def test_both_configs_load_from_a_folder_streaming_and_not(two, tmp_path):
    found = loaded(two[2], offline(tmp_path / "home"))
    assert found["questions"] == {"train": 22, "test": 4} and len(found["clips"]) == 10
    assert found["same"] and found["joined"] and found["subjects"] == ["<Ada>", "<Bo>"]
    assert len(found["stream"]) == 4 and found["moving"] == [200] * 4


@pytest.mark.slow
def test_streaming_takes_no_more_memory_the_longer_the_table_is(drawn, tmp_path):
    """64 MB of clips in row groups of 16, as a dataset of many people has them."""
    path = drawn.root / "videos" / "train.parquet"
    rows = pq.read_table(path).slice(0, 1).to_pylist() * 16
    schema, rng = pq.read_schema(path), np.random.default_rng(0)
    with pq.ParquetWriter(path, schema) as writer:
        for _ in range(64):
            clips = [row | {"video": {"bytes": rng.bytes(1 << 16), "path": "clip.mp4"}} for row in rows]
            writer.write_table(pa.Table.from_pylist(clips, schema))
    code = f"""
        import json
        from datasets import load_dataset
        def memory():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096 / 2**20
        stream = load_dataset({str(drawn.root)!r}, "videos", split="train", streaming=True).reshard().decode(False)
        seen = [memory() for row in stream]
        print(json.dumps([len(seen), max(seen[-200:]) - max(seen[:200])]))
    """
    count, growth = json.loads(fresh(code, offline(tmp_path / "home")))
    assert count == 1024 and growth < 16


def test_the_bare_name_means_a_folder_of_that_name_here(drawn, tmp_path):
    link = tmp_path / "here"
    link.mkdir()
    drawn.root.rename(link / "pvchat")
    code = "from datasets import load_dataset; print(load_dataset('pvchat', 'qa', split='test').num_rows)"
    assert fresh(code, offline(tmp_path / "home"), cwd=link) == "2"


def test_folders_of_the_same_name_are_told_apart_by_the_cache(tmp_path):
    code = "from datasets import load_dataset; print(load_dataset(%r, 'qa', split='train')['subject'][0])"
    for name in ("Ada", "Bo"):
        (tmp_path / name).mkdir()
        dataset = write_dataset(tmp_path / name / "parts", f"<{name}>").root
        merge_datasets([dataset], tmp_path / name / "dataset")
        place = str(tmp_path / name / "dataset")
        assert fresh(code % place, offline(tmp_path / "home")) == f"<{name}>"


# -- to the Hub and back ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pushed_and_loaded_again_by_a_process_that_has_nothing(hub, two, tmp_path):
    both = two[2]
    code, result, _ = push(hub, both, "--repo", "ada/cast", "--with-reference")
    assert code == 0 and result["private"] and hub.repos["ada/cast"].private
    files = hub.repos["ada/cast"].files
    assert {file["path"]: file["bytes"] for file in result["files"]} == {k: len(v) for k, v in files.items()}
    assert sorted(files) == [
        "README.md", "dataset.json", "qa/test.parquet", "qa/train.parquet", "videos/test.parquet",
        "videos/train.parquet",
    ]  # fmt: skip
    found = loaded("ada/cast", hub.environment(tmp_path / "clean"))
    assert found == loaded(both, offline(tmp_path / "home")) and found["questions"] == {"train": 22, "test": 4}


def test_a_downloaded_dataset_can_be_trained_on_again(hub, drawn, tmp_path):
    push(hub, drawn.root, "--repo", "ada/nz", "--with-reference")
    for name, content in hub.repos["ada/nz"].files.items():
        (tmp_path / "down" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "down" / name).write_bytes(content)
    assert restore_clips(tmp_path / "down") == 7 and restore_clips(tmp_path / "down") == 0
    back = load_local(tmp_path / "down")
    assert back.hash == drawn.hash and back.videos[0].path.read_bytes() == drawn.videos[0].path.read_bytes()


def test_the_reference_stays_here_unless_asked_for(hub, drawn, tmp_path):
    reference = next(v for v in drawn.videos if v.origin == "original")
    code, result, _ = push(hub, drawn.root, "--repo", "ada/nz")
    files = hub.repos["ada/nz"].files
    (tmp_path / "rows").mkdir()
    rows = []
    for config in ("videos", "qa"):
        (tmp_path / "rows" / config).write_bytes(files[f"{config}/train.parquet"])
        rows += pq.read_table(tmp_path / "rows" / config).to_pylist()
    assert code == 0 and result["left_out"] == 1
    assert reference.video_id not in {row["video_id"] for row in rows} and len(rows) == 4 + 8
    published = json.loads(files["dataset.json"])
    assert published["counts"]["train"]["videos"] == 4 and published["dataset_hash"] != drawn.hash
    assert b"Left out: 1 reference clip" in files["README.md"]


def test_what_is_published_names_no_file_of_this_machine(hub, drawn, tmp_path):
    push(hub, drawn.root, "--repo", "ada/nz")
    published = hub.repos["ada/nz"].files
    for content in published.values():
        assert b"uncle-harry" not in content and str(tmp_path).encode() not in content
    assert not {"build_key", "dropped", "stages"} & json.loads(published["dataset.json"]).keys()


def test_a_dry_run_lists_files_and_sizes_and_sends_nothing(hub, drawn, tmp_path, capsys):
    before = snapshot(drawn.root)
    code, result, _ = push(hub, drawn.root, "--repo", "ada/nz", "--dry-run")
    assert code == 0 and result["dry_run"] and result["url"] is None and hub.log == []
    assert len(result["files"]) == 6 and result["bytes"] == sum(file["bytes"] for file in result["files"])
    assert main(["push-dataset", str(drawn.root), "--repo", "ada/nz", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "videos/train.parquet" in shown and "private" in shown and "Nothing was sent" in shown
    assert snapshot(drawn.root) == before


def test_an_interrupted_upload_goes_on_where_it_stopped(hub, drawn, tmp_path):
    hub.stop_after = 2
    code, result, said = push(hub, drawn.root, "--repo", "ada/nz")
    assert code == 1 and result is None and said.count("\n") == 1 and "goes on where it stopped" in said
    assert len(hub.blobs) == 2 and hub.repos["ada/nz"].files == {}
    hub.stop_after, hub.log = None, []
    code, _, _ = push(hub, drawn.root, "--repo", "ada/nz")
    assert code == 0 and hub.uploads() == 2 and len(hub.repos["ada/nz"].files) == 6
    hub.log = []
    assert push(hub, drawn.root, "--repo", "ada/nz")[0] == 0 and hub.uploads() == 0


def test_a_new_version_takes_away_what_is_no_longer_there(hub, drawn, tmp_path):
    push(hub, drawn.root, "--repo", "ada/nz")
    smaller = write_dataset(tmp_path / "smaller", plan=PLAN[:5])
    assert push(hub, smaller.root, "--repo", "ada/nz")[0] == 0
    assert sorted(hub.repos["ada/nz"].files) == [
        "README.md", "dataset.json", "qa/train.parquet", "videos/train.parquet",
    ]  # fmt: skip


def test_nothing_becomes_public_without_being_told_to(hub, drawn, tmp_path):
    hub.repos["ada/open"] = Repo(private=False)
    code, _, said = push(hub, drawn.root, "--repo", "ada/open")
    assert code == 1 and "is public: pass --public" in said and hub.repos["ada/open"].files == {}
    hub.repos["ada/shut"] = Repo(private=True)
    code, _, said = push(hub, drawn.root, "--repo", "ada/shut", "--public")
    assert code == 1 and "is private" in said and hub.repos["ada/shut"].files == {}
    assert push(hub, drawn.root, "--repo", "ada/new", "--public")[0] == 0
    assert not hub.repos["ada/new"].private


def test_a_repository_of_something_else_is_left_alone(hub, drawn, tmp_path):
    hub.repos["ada/thesis"] = Repo(private=True, files={"thesis.tex": b"years of work"})
    code, _, said = push(hub, drawn.root, "--repo", "ada/thesis")
    assert code == 1 and "thesis.tex" in said and list(hub.repos["ada/thesis"].files) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (401, "hf auth login"),
        (403, "hf auth login"),
        (409, "refused"),
        ("offline", "HF_HUB_OFFLINE"),
        ("down", "reach"),
    ],
)
def test_trouble_with_the_hub_is_one_line(hub, drawn, trouble, message):
    hub.refuse = trouble if isinstance(trouble, int) else None
    url = "http://127.0.0.1:9" if trouble == "down" else None
    code, result, said = push(hub, drawn.root, "--repo", "ada/nz", url=url, offline=trouble == "offline")
    assert code == 1 and result is None and said.count("\n") == 1 and message in said


# -- who must have agreed --------------------------------------------------------------------------------------------


def refusal(*words, **options):
    with pytest.raises(PVChatError) as caught:
        push_dataset(*words, "ada/nz", dry_run=True, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_real_person_is_not_published_without_their_record(tmp_path):
    real = write_dataset(tmp_path / "real", consent=RECORD).root
    before = snapshot(real)
    assert "no consent record of <Nz>" in refusal(real)
    other = dataclasses.replace(RECORD, given_by="Somebody Else")
    assert "no consent record of <Nz>" in refusal(real, consents=[other])
    assert snapshot(real) == before
    assert push_dataset(real, "ada/nz", consents=[other, RECORD], dry_run=True)["consents"]


def test_a_record_must_cover_publishing_and_still_hold(tmp_path):
    private = ConsentRecord("N. Z.", "2026-01-31", "train a model for me")
    ended = ConsentRecord("N. Z.", "2020-01-31", "publish the dataset", expires="2021-01-31")
    first = write_dataset(tmp_path / "first", consent=private).root
    second = write_dataset(tmp_path / "second", consent=ended).root
    assert "does not say 'publish'" in refusal(first, consents=[private])
    assert "ended on 2021-01-31" in refusal(second, consents=[ended])
    assert push_dataset(first, "ada/nz", i_have_consent=True, dry_run=True)["consents"]


def test_the_record_is_found_beside_the_dataset_and_never_uploaded(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    real = write_dataset(run / "dataset", consent=RECORD).root
    subject = {"name": "<Nz>", "reference": "clip.mp4", "consent": RECORD.to_json()}
    (run / "subject.json").write_text(json.dumps(subject), encoding="utf-8")
    by_run = push_dataset(real, "ada/nz", dry_run=True)
    (run / "subject.json").unlink()
    (real / "consent.json").write_text(json.dumps(RECORD.to_json()), encoding="utf-8")
    by_build = push_dataset(real, "ada/nz", dry_run=True)
    assert by_run["consents"] == by_build["consents"] == [load_local(real).manifest["consent_id"]]
    assert not any("consent" in file["path"] for file in by_build["files"])


def test_every_real_person_of_a_merge_must_have_agreed(tmp_path):
    second = dataclasses.replace(RECORD, given_by="Bo")
    folders = [
        write_dataset(tmp_path / "drawn", "<Ada>").root,
        write_dataset(tmp_path / "nz", consent=RECORD).root,
        write_dataset(tmp_path / "bo", "<Bo>", consent=second).root,
    ]
    merge_datasets(folders, tmp_path / "all")
    assert "no consent record of <Bo>" in refusal(tmp_path / "all", consents=[RECORD])
    assert len(push_dataset(tmp_path / "all", "ada/nz", consents=[RECORD, second], dry_run=True)["consents"]) == 2


def test_the_command_refuses_without_consent_before_anything_is_sent(hub, tmp_path):
    real = write_dataset(tmp_path / "real", consent=RECORD).root
    code, _, said = push(hub, real, "--repo", "ada/nz")
    assert code == 1 and said.count("\n") == 1 and "--consent FILE" in said and hub.log == []
    (tmp_path / "nz.json").write_text(json.dumps(RECORD.to_json() | {"fictional": True}), encoding="utf-8")
    assert "fictional" in push(hub, real, "--repo", "ada/nz", "--consent", tmp_path / "nz.json")[2]
    record = {name: value for name, value in RECORD.to_json().items() if name != "fictional"}
    (tmp_path / "nz.json").write_text(json.dumps(record), encoding="utf-8")
    assert push(hub, real, "--repo", "ada/nz", "--consent", tmp_path / "nz.json")[0] == 0
    assert RECORD.given_by.encode() not in b"".join(hub.repos["ada/nz"].files.values())


# -- nothing local, nothing secret -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "planted",
    ["/home/ada/films/nz.mp4", "~/films/nz.mp4", "C:\\Users\\ada\\nz.mp4", "hf_" + "a1B2" * 8, "sk-" + "a1B2" * 8],
)
def test_a_path_or_a_secret_in_the_data_stops_the_upload(tmp_path, planted):
    folder = write_dataset(tmp_path / "drawn", backends={"scene": f"mine, from {planted}"}).root
    said = refusal(folder)
    assert "dataset.json" in said or "README.md" in said
    assert not said.count("a1B2" * 8) and not (folder / ".build").exists()


def test_a_path_in_an_answer_stops_the_upload(tmp_path):
    drawn = write_dataset(tmp_path / "drawn")
    table = pq.read_table(drawn.root / "qa" / "train.parquet")
    answers = ["see /home/ada/nz.mp4", *table["answer"].to_pylist()[1:]]
    position = table.schema.get_field_index("answer")
    pq.write_table(table.set_column(position, table.schema.field("answer"), [answers]), tmp_path / "bad.parquet")
    with pytest.raises(PVChatError, match=r"bad.parquet \(video .*/home/ada/nz.mp4"):
        refuse_private(tmp_path)


@pytest.mark.parametrize(
    "text", ["a man and/or a woman", "see https://huggingface.co/datasets/ada/nz", "1/2 of them", "in / out", "ada/nz"]
)
def test_ordinary_slashes_are_no_paths(tmp_path, text):
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    refuse_private(tmp_path)


def test_a_name_that_is_no_repository_and_a_folder_that_is_no_dataset_are_one_line(tmp_path, drawn):
    for repo in ("nz", "ada/nz/videos", "ada/", "ada/n z"):
        with pytest.raises(PVChatError, match="must be USER/NAME"):
            push_dataset(drawn.root, repo, dry_run=True)
    assert "not a dataset folder" in refusal(tmp_path)
    only = write_dataset(tmp_path / "only", plan=PLAN[:1]).root
    assert "--with-reference" in refusal(only)
