"""Damaged video files: 200 of them, always the same ones, through probing, reading and ingesting in a process of their
own. None may crash it, hang, leave files open or behind, or end in anything but one clear line or a usable clip."""

import json
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pvchat.dataset_builder import write_video

COUNT = 200
WORKER = textwrap.dedent(
    """
    import faulthandler, json, os, resource, sys, time
    from pathlib import Path
    from pvchat.dataset_builder import Engine, RECIPES, probe_video, read_video
    from pvchat.dataset_builder.stages import Build, ingest
    from pvchat.errors import PVChatError

    folder = Path(sys.argv[1])
    gib = 2**30
    resource.setrlimit(resource.RLIMIT_AS, (6 * gib, 6 * gib))

    def attempt(call):
        faulthandler.dump_traceback_later(30, exit=True)
        started = time.monotonic()
        try:
            result = call()
            said = None
        except PVChatError as error:
            result, said = None, str(error)
        faulthandler.cancel_dump_traceback_later()
        return result, said, time.monotonic() - started

    def once(path):
        info, refused, seconds = attempt(lambda: probe_video(path))
        clip, unread, more = attempt(lambda: read_video(path, 256, 16))
        engine = Engine(folder / "store")
        build = Build([], RECIPES["light"], None, engine, 0, "")
        sources, _, rest = attempt(lambda: ingest(build, [path], optional=True))
        dropped = [reject.reason for _, reject in engine.rejects]
        whole = None
        if sources:
            again, _ = read_video(sources[0].clip.path)
            whole = list(again.shape)
        return {
            "file": path.name, "refused": refused, "unread": unread, "dropped": dropped, "whole": whole,
            "frames": None if info is None else info.num_frames, "fps": None if info is None else info.fps,
            "seconds": seconds + more + rest,
        }

    once(folder / "whole.mp4")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for path in sorted(folder.glob("f*.mp4")):
        print(json.dumps({"next": path.name}), flush=True)
        print(json.dumps(once(path)), flush=True)
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    print(json.dumps({"open_before": before, "open_after": after}), flush=True)
    """
)


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """One of the ways in which files break: cut off, bytes changed, zeroed, moved, repeated, or a field of a box."""
    data = bytearray(whole)
    kind = rng.randrange(6)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:
        for _ in range(rng.choice([1, 3, 20, 200])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.randrange(1, 400))
        data[start:end] = bytes(end - start)
    elif kind == 3:
        start, length = rng.randrange(len(data)), rng.randrange(1, 300)
        block = data[start : start + length]
        del data[start : start + length]
        place = rng.randrange(len(data))
        data[place:place] = block
    elif kind == 4:
        start = rng.randrange(len(data))
        data[start:start] = data[start : start + rng.randrange(1, 300)]
    else:
        names = (b"moov", b"stts", b"stsz", b"stco", b"stsc", b"tkhd", b"mdhd", b"avcC", b"avc1", b"mvhd", b"elst")
        place = data.find(rng.choice(names))
        for _ in range(rng.randrange(1, 6)):
            data[max(0, place - 4) + rng.randrange(40)] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    return bytes(data)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the worker said about every file, and how it ended."""
    folder = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (6, 8, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    write_video(folder / "whole.mp4", np.stack([np.roll(picture, 3 * t, axis=1) for t in range(12)]), 12.0)
    whole = (folder / "whole.mp4").read_bytes()
    draw = random.Random(20)
    for number in range(COUNT):
        (folder / f"f{number:03d}.mp4").write_bytes(damaged(whole, draw))
    worker = [sys.executable, "-c", WORKER, str(folder)]
    done = subprocess.run(worker, capture_output=True, text=True, timeout=240)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return folder, done, lines


def test_no_damaged_file_crashes_the_process_or_hangs(report):
    folder, done, lines = report
    assert done.returncode == 0, f"at {lines[-1] if lines else 'the start'}: {done.stderr[-2000:]}"
    results = [line for line in lines if "file" in line]
    assert len(results) == COUNT and max(line["seconds"] for line in results) < 20


def test_every_damaged_file_is_one_clear_line_or_a_usable_clip(report):
    results = [line for line in report[2] if "file" in line]
    for line in results:
        assert (line["refused"] is None) == (line["unread"] is None), line
        if line["refused"] is not None:
            assert "\n" not in line["refused"] and line["file"] in line["refused"], line
            assert line["whole"] is None and line["dropped"], line
        else:
            frames, height, width, _ = line["whole"]
            assert frames >= 2 and not height % 2 and not width % 2 and max(height, width) <= 256, line
            assert 0 < line["fps"] <= 1000 and line["frames"] >= 2, line
    refused = sum(line["refused"] is not None for line in results)
    assert 20 < refused < COUNT - 20, f"{refused} of {COUNT} refused: the files do not try both ways"


def test_damaged_files_leave_nothing_open_and_nothing_behind(report):
    folder, _, lines = report
    assert lines[-1]["open_after"] == lines[-1]["open_before"]
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name]
