"""The engine resumes, redoes only unfinished work, and never reads what a kill left behind; videos are read whole or
refused."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from pvchat.dataset_builder import Engine, Reject, Rejected, Stage, Task, probe_video, read_video, write_video
from pvchat.dataset_builder.engine import run_item
from pvchat.errors import PVChatError

STAGE = Stage("double", 1, "plain@1", ".txt")


def double(target, backends, text, calls=()):
    if isinstance(calls, list):
        calls.append(text)
    target.write_text(text * 2, encoding="utf-8")
    return {"length": len(text)}


def run(engine, text, calls, stage=STAGE, params=None, seed=0):
    return engine.run(Task(stage, text, double, {"text": text, "calls": calls}, params or {}, (text,), seed))


def test_finished_work_is_found_and_not_redone(tmp_path):
    calls = []
    first = run(Engine(tmp_path), "ab", calls)
    again = run(Engine(tmp_path), "ab", calls)
    assert calls == ["ab"] and again == first and again.path.read_text(encoding="utf-8") == "abab"
    assert again.meta == {"length": 2}


@pytest.mark.parametrize(
    "other",
    [
        {"stage": Stage("double", 2, "plain@1", ".txt")},
        {"stage": Stage("double", 1, "plain@2", ".txt")},
        {"stage": Stage("triple", 1, "plain@1", ".txt")},
        {"params": {"a": 1}},
        {"seed": 1},
    ],
)
def test_whatever_decides_the_content_is_in_the_key(tmp_path, other):
    calls = []
    engine = Engine(tmp_path)
    assert run(engine, "ab", calls).key != run(engine, "ab", calls, **other).key
    assert len(calls) == 2


def test_json_artefacts_do_not_meet_their_sidecars(tmp_path):
    stage = Stage("json", 1, "plain@1", ".json")
    engine = Engine(tmp_path)
    run(engine, "ab", [], stage=stage)
    assert run(engine, "ab", [], stage=stage).path.read_text(encoding="utf-8") == "abab"


@pytest.mark.parametrize("damage", ["no sidecar", "half a sidecar", "half an artefact", "no artefact", "leftovers"])
def test_damaged_or_partial_leftovers_are_redone(tmp_path, damage):
    calls = []
    art = run(Engine(tmp_path), "ab", calls)
    sidecar = art.path.with_name(art.path.stem + ".done.json")
    if damage == "no sidecar":
        sidecar.unlink()
    elif damage == "half a sidecar":
        sidecar.write_bytes(sidecar.read_bytes()[:20])
    elif damage == "half an artefact":
        art.path.write_text("a", encoding="utf-8")
    elif damage == "no artefact":
        art.path.unlink()
    else:
        art.path.with_name(f".{art.path.stem}.1.tmp.txt").write_text("half", encoding="utf-8")
    again = run(Engine(tmp_path), "ab", calls)
    assert again.path.read_text(encoding="utf-8") == "abab" and again.sha256 == art.sha256
    assert len(calls) == (1 if damage == "leftovers" else 2)


def test_a_drop_is_remembered_with_its_reason(tmp_path):
    calls = []

    def make(path, backends):
        calls.append(1)
        path.write_text("half", encoding="utf-8")
        raise Rejected("too dark")

    for _ in range(2):
        engine = Engine(tmp_path)
        assert engine.run(Task(STAGE, "x", make)) == Reject("x", "too dark")
        assert engine.table()[0]["dropped"] == {"too dark": 1} and engine.table()[0]["out"] == 0
    assert len(calls) == 1 and not list(tmp_path.rglob("*.txt"))


def fail_on(target, backends, text, bad):
    target.write_text("half", encoding="utf-8")
    if text in bad:
        raise ValueError(f"cannot do {text}\nand more")
    target.write_text(text * 2, encoding="utf-8")


def failing(bad):
    return [Task(STAGE, text, fail_on, {"text": text, "bad": bad}, inputs=(text,)) for text in "abc"]


def test_an_item_that_fails_costs_no_other_one_and_is_tried_again_by_a_rerun(tmp_path, caplog):
    engine = Engine(tmp_path)
    a, b, c = engine.map(failing("b"))
    assert b == Reject("b", "failed: ValueError: cannot do b")
    assert [art.path.read_text(encoding="utf-8") for art in (a, c)] == ["aa", "cc"]
    assert engine.table()[0]["dropped"] == {b.reason: 1} and engine.rejects == [("double", b)]
    assert "Traceback" in caplog.text and "in fail_on" in caplog.text
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 4

    again = Engine(tmp_path)
    assert [art.path.read_text(encoding="utf-8") for art in again.map(failing(""))] == ["aa", "bb", "cc"]
    assert again.table()[0]["resumed"] == 2 and not again.table()[0]["dropped"]


def test_a_stage_of_which_not_one_item_works_ends_the_run_with_the_traceback_and_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="All items of the stage double failed(.|\n)*in fail_on(.|\n)*cannot do c"):
        Engine(tmp_path).map(failing("abc"))
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_what_the_user_can_mend_ends_the_run(tmp_path):
    def make(target, backends):
        raise PVChatError("These weights are not here.")

    with pytest.raises(PVChatError, match="weights are not here"):
        Engine(tmp_path).map([Task(STAGE, "x", make), Task(STAGE, "y", double, {"text": "y"}, inputs=("y",))])


def test_progress_and_counts_add_up(tmp_path):
    seen = []
    engine = Engine(tmp_path, progress=lambda *step: seen.append(step))
    made = engine.map(Task(STAGE, text, double, {"text": text}, inputs=(text,)) for text in "aba")
    assert [art.path.read_text(encoding="utf-8") for art in made] == ["aa", "bb", "aa"]
    assert seen == [("double", 1, 3), ("double", 2, 3), ("double", 3, 3)]
    row = engine.table()[0]
    assert (row["in"], row["out"], row["resumed"]) == (3, 3, 1) and row["seconds"] >= 0


def test_what_is_decided_after_a_task_moves_its_item_from_out_to_dropped(tmp_path):
    engine = Engine(tmp_path)
    run(engine, "a", [])
    engine.drop("double", "a", "too short", made=True)
    engine.skip("triple", "nobody wants it")
    engine.report("words", 2, 7)
    engine.report("words", 1, 1)
    rows = {row["stage"]: row for row in engine.table(["words", "double"])}
    assert list(rows) == ["words", "double", "triple"]
    assert (rows["double"]["in"], rows["double"]["out"], rows["double"]["dropped"]) == (1, 0, {"too short": 1})
    assert rows["triple"]["skipped"] == "nobody wants it"
    assert (rows["words"]["in"], rows["words"]["out"]) == (3, 8)


def test_a_task_can_be_sent_to_another_process_and_gives_the_same_artefact_there(tmp_path):
    task = Task(STAGE, "a", double, {"text": "a"}, {"p": 1}, ("a",), 3)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(run_item, tmp_path, task).result(timeout=120)
    here = run_item(tmp_path, task)
    assert not there.resumed and here.resumed and here.record == there.record


def test_a_kill_at_any_moment_costs_only_the_unfinished_item(tmp_path):
    script = tmp_path / "work.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path
            from pvchat.dataset_builder import Engine, Stage, Task
            root, log = Path(sys.argv[1]), Path(sys.argv[2])
            def make(path, backends, item):
                with open(path, "w") as file:
                    for part in range(20):
                        file.write(f"{item} {part} ")
                        file.flush()
                        time.sleep(0.001)
                with open(log, "a") as file:
                    file.write(f"{item}\\n")
                return {"item": item}
            for item in range(30):
                Engine(root).run(Task(Stage("slow", 1, "b", ".txt"), str(item), make, {"item": item}, {"item": item}))
            """
        ),
        encoding="utf-8",
    )
    rng = random.Random(0)
    log = tmp_path / "log"
    command = [sys.executable, str(script), str(tmp_path / "store"), str(log)]
    kills = 0
    for _ in range(20):
        process = subprocess.Popen(command)
        before = len(log.read_text().split()) if log.exists() else 0
        deadline = time.time() + 30
        while process.poll() is None and time.time() < deadline:
            done = len(log.read_text().split()) if log.exists() else 0
            if done >= before + 4:
                time.sleep(rng.uniform(0, 0.04))
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        if process.wait() == 0:
            break
    assert kills >= 3 and process.returncode == 0
    made = [int(line) for line in log.read_text().split()]
    assert set(made) == set(range(30)) and len(made) <= 30 + kills
    texts = sorted(p.read_text().split()[0] for p in (tmp_path / "store").rglob("[!.]*.txt"))
    assert len(texts) == 30 and set(texts) == {str(i) for i in range(30)}


# -- videos ----------------------------------------------------------------------------------------------------------


def moving(frames=12, height=48, width=64):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (height // 8, width // 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    return np.stack([np.roll(picture, 3 * t, axis=1) for t in range(frames)])


def test_the_same_frames_give_the_same_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, moving(), 12.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_comment_is_kept_in_the_file_and_gives_the_same_bytes_every_time(tmp_path):
    import av

    for name, comment in (
        ("a.mp4", "synthetic=true; generator=x@1"),
        ("b.mp4", "synthetic=true; generator=x@1"),
        ("c.mp4", None),
    ):
        write_video(tmp_path / name, moving(), 12.0, comment)
        with av.open(str(tmp_path / name)) as container:
            assert container.metadata.get("comment") == comment
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert a == b != c
    frames = [read_video(tmp_path / name)[0] for name in ("a.mp4", "c.mp4")]
    assert (frames[0] == frames[1]).all()


def test_reading_returns_what_was_written_up_to_compression(tmp_path):
    write_video(tmp_path / "a.mp4", moving(), 12.5)
    frames, fps = read_video(tmp_path / "a.mp4")
    assert frames.shape == (12, 48, 64, 3) and frames.dtype == np.uint8 and fps == pytest.approx(12.5)
    assert np.abs(frames.astype(int) - moving()).mean() < 8


def test_long_and_large_videos_are_reduced_and_keep_their_duration(tmp_path):
    write_video(tmp_path / "a.mp4", moving(24), 24.0)
    frames, fps = read_video(tmp_path / "a.mp4", max_side=32, max_frames=8)
    assert frames.shape == (8, 24, 32, 3) and fps == pytest.approx(8.0)


def write_audio(path):
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_without_frames(path):
    import av

    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def bad_videos(folder):
    """(name, path, part of the message) of every kind of unusable video."""
    whole = folder / "whole.mp4"
    write_video(whole, moving(), 12.0)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video", encoding="utf-8")
    (folder / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    write_video(folder / "one.mp4", moving(1), 12.0)
    write_audio(folder / "sound.mp4")
    write_without_frames(folder / "zero.avi")
    return [
        ("missing", folder / "nowhere.mp4", "does not exist"),
        ("a folder", folder, "folder"),
        ("empty", folder / "empty.mp4", "empty"),
        ("text", folder / "text.mp4", "cannot be opened"),
        ("cut off", folder / "cut.mp4", "cut off"),
        ("one frame", folder / "one.mp4", "at least 2"),
        ("audio only", folder / "sound.mp4", "no video stream"),
        ("zero length", folder / "zero.avi", "no frames|cannot be opened"),
    ]


def test_every_unusable_video_is_one_clear_line(tmp_path):
    for name, path, message in bad_videos(tmp_path):
        with pytest.raises(PVChatError, match=message) as caught:
            probe_video(path)
        assert "\n" not in str(caught.value), name


def test_a_video_cut_off_behind_a_complete_index_is_noticed(tmp_path):
    import av

    write_video(tmp_path / "a.mp4", moving(24), 12.0)
    with av.open(str(tmp_path / "a.mp4")) as source:
        with av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "+faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    whole = (tmp_path / "b.mp4").read_bytes()
    assert probe_video(tmp_path / "b.mp4").num_frames == 24
    for share in (0.4, 0.7, 0.97):
        (tmp_path / "c.mp4").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(PVChatError, match="cut off"):
            probe_video(tmp_path / "c.mp4")
