"""`pvchat personalize` as a whole process, killed at random points: the rerun goes on and ends the same."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from pvchat.dataset_builder import load_local
from tests.test_assemble import world  # noqa: F401  (fixture)

# The real command with a recipe of 14 clips under the name "light", so that the test ends.
COMMAND = textwrap.dedent(
    """
    import sys
    from pvchat.cli import main
    from pvchat.dataset_builder import recipe
    from tests.test_assemble import SMALL
    recipe.RECIPES["light"] = SMALL
    sys.exit(main(sys.argv[1:]))
    """
)
SETTINGS = "'1': {num_train_epochs: 1, save_strategy: steps, save_steps: 1}\n'2': {num_train_epochs: 2}\n"


def command(world, out):  # noqa: F811
    config = world / "settings.yaml"
    config.write_text(SETTINGS)
    words = ["personalize", world / "ref.mp4", "--name", "Nz", "--gallery", world / "gallery", "--out", out]
    words += ["--i-have-consent", "--config", config, "--json"]
    return [sys.executable, "-c", COMMAND, *map(str, words)]


def finish(words) -> dict:
    result = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def progress(out) -> list[str]:
    """Finished artefacts of the builder and finished stages."""
    done = [path.name for path in out.rglob("*.done.json")]
    stages = [path for path in out.glob("stage*/stage.json") if '"finished": true' in path.read_text()]
    return done + [path.parent.name for path in stages]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_points_personalize_resumes_and_ends_with_the_same_dataset(world, tmp_path):  # noqa: F811
    started = time.monotonic()
    finish(command(world, tmp_path / "whole"))
    whole_run = time.monotonic() - started
    expected = load_local(tmp_path / "whole" / "dataset").hash

    out, rng, seen = tmp_path / "killed", random.Random(3), []
    for kill in range(4):
        process = subprocess.Popen(command(world, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole_run * rng.uniform(0.25, 0.6) if kill else whole_run * 0.4)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        made = progress(out) if out.exists() else []
        assert set(seen) <= set(made) or (out / "dataset" / "dataset.json").exists(), "a rerun lost finished work"
        seen = made
    finish(command(world, out))
    assert load_local(out / "dataset").hash == expected
    record = json.loads((out / "run.json").read_text())
    assert record["state"] == "finished" and record["hashes"]["dataset"] == expected
    assert not list(out.rglob("*.tmp*"))
    hashes = [json.loads((folder / "run.json").read_text())["hashes"] for folder in (out, tmp_path / "whole")]
    assert hashes[0] == hashes[1], "the adapter differs from the uninterrupted run's"
