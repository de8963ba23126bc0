"""The engine on Ray Data: the dataset of the local engine, whatever is killed; one item's end costs no other one."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from pvchat.dataset_builder import RECIPES, Engine, Reject, Rejected, Stage, Task
from pvchat.dataset_builder.engine_ray import DIED, RayEngine, check_ray
from pvchat.errors import MissingBackendError, PVChatError
from tests.test_assemble import build, refused, world  # noqa: F401  (fixture)

STAGE = Stage("double", 1, "plain@1", ".txt")
SMALL = {"recipe": RECIPES["tiny"].without("hard_negative", "random_negative"), "gallery": None, "test_clips": None}


def test_without_ray_the_message_says_what_to_install_and_nothing_is_written(world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingBackendError, match=r'pip install "pvchat\[ray\]"'):
        check_ray()
    refused(tmp_path / "out", "pvchat", lambda: build(world, tmp_path / "out", engine="ray", **SMALL))


@pytest.fixture(scope="module")
def cluster():
    """Two processes, each of which believes that it has a GPU."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_a_random_point_a_build_on_ray_goes_on_and_ends_with_the_local_dataset(world, tmp_path, request):  # noqa: F811
    pytest.importorskip("ray.data")
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from tests.test_ray import SMALL, build
        build(Path(sys.argv[1]), Path(sys.argv[2]), engine="ray", **SMALL)
        """
    )
    expected, out = build(world, tmp_path / "local", **SMALL), tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", script, str(world), str(out)], stderr=subprocess.DEVNULL)
    wanted, deadline = random.Random(5).randint(5, 9), time.monotonic() + 400
    while len(list(out.rglob("*.done.json"))) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (out / ".build").is_dir() and not (out / "dataset.json").exists()
    request.getfixturevalue("cluster")
    made = build(world, out, engine="ray", **SMALL)
    assert made.hash == expected.hash
    rows = {row["stage"]: row for row in made.manifest["stages"]}
    before = {row["stage"]: row for row in expected.manifest["stages"]}
    assert sum(row["resumed"] for row in rows.values()) >= wanted
    for stage, row in rows.items():
        assert [row[key] for key in ("in", "out", "dropped")] == [
            before[stage][key] for key in ("in", "out", "dropped")
        ]
    assert made.manifest["dropped"] == expected.manifest["dropped"] and not (out / ".build").exists()


def make(target, backends, number):
    """backends: a list, which grows by every item that the process makes."""
    backends.append(number)
    if number == 3:
        raise Rejected("too dark")
    if number == 4:
        raise ValueError("planted\nsecond line")
    if number == 5:
        os._exit(1)
    if number == 6:
        raise PVChatError(f"No weights in process {os.getpid()}.")
    target.write_text(f"{number}", encoding="utf-8")
    return {"process": os.getpid(), "made": len(backends), "folder": os.getcwd()}


def tasks(numbers):
    return [Task(STAGE, f"item {n}", make, {"number": n}, {"number": n}) for n in numbers]


def engine(root, progress=None):
    return RayEngine(root, [], progress, make_backends=list, gpu_stages={"double"})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_item_ends_as_on_the_local_engine_and_actors_keep_their_backends(cluster, tmp_path, caplog):
    numbers, seen = [0, 1, 2, 3, 1, 4, 7, 8], []
    there = engine(tmp_path / "ray", lambda *step: seen.append(step))
    here = Engine(tmp_path / "local", [])
    found = [there.map(tasks([*numbers, 5])), here.map(tasks(numbers))]
    assert seen == [("double", done, 9) for done in range(1, 10)]

    died = found[0].pop()
    assert died == Reject("item 5", f"failed: {DIED}")
    for a, b in zip(*found, strict=True):
        assert a == b if isinstance(b, Reject) else (a.key, a.sha256) == (b.key, b.sha256)
    assert found[0][5] == Reject("item 4", "failed: ValueError: planted")
    assert "in make" in caplog.text and "second line" in caplog.text
    rows = [e.table()[0] for e in (there, here)]
    rows[0]["dropped"].pop(died.reason)
    assert rows[0]["in"] - 1 == rows[1]["in"]
    assert all(rows[0][key] == rows[1][key] for key in ("out", "resumed", "dropped"))
    made = [one.meta for one in found[0] if not isinstance(one, Reject)]
    assert {one["folder"] for one in made} == {os.getcwd()} and os.getpid() not in {one["process"] for one in made}
    assert max(one["made"] for one in made) > 1
    assert not list(tmp_path.rglob("*.tried"))

    again, sent = engine(tmp_path / "ray"), []
    run = again._run
    again._run = lambda tasks, numbers: sent.extend(numbers) or run(tasks, numbers)
    assert again.map(tasks([0, 1, 2, 3])) == found[0][:4]
    assert again.table()[0]["resumed"] == 4 and not sent, "something was sent that is finished"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_user_can_mend_ends_the_run_from_afar_and_a_stage_on_a_gpu_is_always_sent(cluster, tmp_path):
    with pytest.raises(PVChatError, match="No weights in process") as caught:
        engine(tmp_path).map(tasks([6]))
    assert str(os.getpid()) not in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_item_of_a_stage_without_a_gpu_is_made_here(cluster, tmp_path):
    (one,) = RayEngine(tmp_path, [], make_backends=list).map(tasks([9]))
    assert one.meta["process"] == os.getpid()
