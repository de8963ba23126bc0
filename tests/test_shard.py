"""Several processes that share a store: each artefact is made once, nobody waits for the dead, the dataset is that of
one process."""

import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pvchat.cli import main
from pvchat.dataset_builder import Reject, Rejected, Stage, Stopped, Task
from pvchat.dataset_builder import engine_shard as module
from pvchat.dataset_builder.engine_shard import Shard, ShardEngine
from pvchat.errors import PVChatError
from tests.test_assemble import build, dataset, refused, world  # noqa: F401  (fixture)
from tests.test_build import command

STAGE = Stage("double", 1, "plain@1", ".txt")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in (("POLL", 0.01), ("TOUCH", 0.05), ("STALE", 0.5)):
        monkeypatch.setattr(module, name, seconds)


def tasks(made, count=12, seconds=0.0):
    """Items that write down who made them."""

    def make(target, backends, number):
        made.append((backends, number))
        time.sleep(seconds)
        if number == 5:
            raise Rejected("too dark")
        target.write_text(str(number), encoding="utf-8")

    return [Task(STAGE, str(i), make, {"number": i}, {"number": i}) for i in range(count)]


def results(engine, made, **options):
    return [None if isinstance(one, Reject) else one.path.read_text() for one in engine.map(tasks(made, **options))]


EXPECTED = [None if i == 5 else str(i) for i in range(12)]


def claims(root):
    return list(root.rglob("*.claim"))


@pytest.mark.parametrize("count", [2, 3])
def test_each_artefact_is_made_once_whoever_makes_it_and_everybody_gets_all_in_order(tmp_path, count):
    made = []
    engines = [ShardEngine(tmp_path, number, shard=Shard(number, count)) for number in range(1, count + 1)]
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda engine: results(engine, made, seconds=0.02), engines))
    assert found == [EXPECTED] * count
    assert sorted(number for _, number in made) == list(range(12)) and not claims(tmp_path)
    assert {number for shard, number in made if shard == 1} >= {0}  # each began with its own share
    rows = [engine.table()[0] for engine in engines]
    assert sum(row["in"] - row["resumed"] for row in rows) == 12
    assert all(row["dropped"] == {"too dark": 1} for row in rows)


def test_a_shard_alone_makes_everything_its_own_share_first(tmp_path):
    made = []
    assert results(ShardEngine(tmp_path, shard=Shard(3, 4)), made) == EXPECTED
    assert [number for _, number in made] == [2, 6, 10, 3, 7, 11, 0, 4, 8, 1, 5, 9]


def claim_of(root, number):
    task = tasks([])[number]
    path = root / "objects" / task.key[:2] / f"{task.key}.claim"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("elsewhere 1\n", encoding="utf-8")
    return path


def test_what_a_dead_process_left_is_taken_over(tmp_path):
    made = []
    claim_of(tmp_path, 3)
    started = time.monotonic()
    assert results(ShardEngine(tmp_path, shard=Shard(1, 2)), made) == EXPECTED
    assert made[-1] == (None, 3) and time.monotonic() - started >= module.STALE and not claims(tmp_path)


def test_what_a_living_process_is_making_is_waited_for(tmp_path):
    made, claim = [], claim_of(tmp_path, 3)
    other = ShardEngine(tmp_path, "other", shard=Shard(2, 2))

    def finish():
        with module._touched(claim):
            time.sleep(4 * module.STALE)
            other.map(tasks(made)[3:4])

    claim.unlink()
    thread = threading.Thread(target=finish)
    claim.write_text("elsewhere 1\n", encoding="utf-8")
    thread.start()
    other._take = lambda path: True  # it holds the claim
    assert results(ShardEngine(tmp_path, "mine", shard=Shard(1, 2)), made) == EXPECTED
    thread.join()
    assert [who for who, number in made if number == 3] == ["other"]


def test_an_item_that_fails_in_one_process_is_tried_by_the_next_and_its_claim_is_given_back(tmp_path):
    def make(target, backends):
        if backends == "broken":
            raise ValueError("no memory")
        target.write_text("made", encoding="utf-8")

    task = Task(STAGE, "x", make)
    other = Task(STAGE, "y", lambda target, backends: target.write_text("y"), {}, {"y": 1})
    first, second = ShardEngine(tmp_path, "broken", shard=Shard(1, 2)), ShardEngine(tmp_path, shard=Shard(2, 2))
    assert isinstance(first.map([other, task])[1], Reject) and not claims(tmp_path)
    assert second.map([other, task])[1].path.read_text(encoding="utf-8") == "made"


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_a_shard_is_one_of_n(text):
    assert Shard.parse("4/4") == Shard(4, 4)
    with pytest.raises(PVChatError, match="I from 1 to N"):
        Shard.parse(text)


def test_shards_make_everything_but_the_dataset_which_the_last_run_puts_together(world, dataset, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    stopped = build(world, out, shard=Shard(2, 3))
    assert isinstance(stopped, Stopped) and stopped.stage == "refine"
    assert sorted(path.name for path in out.iterdir()) == [".build"]
    again = build(world, out, shard=Shard(1, 3), only="assemble")
    composite = ("negatives", "questions")
    assert all(row["resumed"] == row["in"] for row in again.table if row["stage"] not in composite)
    made = build(world, out)
    assert made.hash == dataset.hash and (out / "contact_sheets").is_dir() and not (out / ".build").exists()
    rows = [row for row in made.manifest["stages"] if row["stage"] not in (*composite, "assemble")]
    assert all(row["resumed"] == row["in"] for row in rows)
    assert build(world, out, shard=Shard(3, 3)).hash == dataset.hash  # a late one has nothing to do


def test_a_shard_is_no_engine(world, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    refused(out, "choose one of: local, ray", lambda: build(world, out, engine="spark"))
    refused(out, "without Ray", lambda: build(world, out, engine="ray", shard=Shard(1, 2)))
    words = ["build", str(world / "ref.mp4"), "--name", "Nz", "--recipe", "tiny", "--out", str(out)]
    assert main([*words, "--shard", "3/2"]) == 1
    assert "3/2" in capsys.readouterr().err and not out.exists()


def test_the_command_can_be_one_of_several(world, tmp_path, capsys):  # noqa: F811
    words = [world / "ref.mp4", "--name", "Nz", "--gallery", world / "gallery", "--recipe", "tiny", "--limit", 1]
    said = command(capsys, *words, "--out", tmp_path / "out", "--only", "ingest", "--shard", "2/2")
    assert said["stage"] == "ingest" and said["stages"][0]["out"] == 1


@pytest.mark.slow
def test_shards_as_processes_one_of_them_killed_give_the_dataset_of_one_process(world, dataset, tmp_path):  # noqa: F811
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from pvchat.dataset_builder import engine_shard
        from tests.test_assemble import build
        engine_shard.POLL, engine_shard.TOUCH, engine_shard.STALE = 0.05, 0.2, 3.0
        build(Path(sys.argv[1]), Path(sys.argv[2]), shard=engine_shard.Shard.parse(sys.argv[3]))
        """
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", script, str(world), str(out)]
    killed, *others = [subprocess.Popen([*command, f"{number}/3"]) for number in (1, 2, 3)]
    deadline = time.monotonic() + 200
    while len(list(out.rglob("*.done.json"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert not (out / "dataset.json").exists()
    assert [process.wait(timeout=200) for process in others] == [0, 0]
    made = build(world, out)
    assert made.hash == dataset.hash
    assert all(row["resumed"] == row["in"] for row in made.manifest["stages"] if row["stage"] in ("scenes", "animate"))
