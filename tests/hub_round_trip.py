"""Everything to a Hub on this machine and back, by processes with empty caches that cannot import pvchat.

    python -m tests.hub_round_trip
    python -m tests.hub_round_trip runs/Nz --base BASE --json

    pushed     `pvchat push-model`, `push` and `push-dataset`
    model      Auto classes and pipeline, at the commit that was pushed first, although another one came after it
    sent on    that process sends model and processor to another repository (`push_to_hub`), from which they load again
    dataset    load_dataset of both configs, as a whole and streaming
    adapter    PeftModel.from_pretrained of base and adapter
    chat       `pvchat chat USER/NAME` answers as `pvchat chat RUN`

Without RUN a small one is made. The code is 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from examples.fresh_process import Here, count_rows, first_clip
from tests.loopback_hub import LoopbackHub, Repo

BASE, ADAPTER, DATASET, AGAIN = "ada/base", "ada/nz", "ada/nz-videos", "ada/again"


def round_trip(base: Path, run: Path, work: Path) -> dict[str, Any]:
    """Bytes that were pushed, largest differences, counts of rows, and answers."""
    video = first_clip(run)
    here = Here(base, run / "adapter", video)
    with LoopbackHub() as hub:
        sent = {}
        for repo, words in (
            (BASE, ("push-model", base, "--licence", "apache-2.0")),
            (ADAPTER, ("push", run, "--base", BASE, "--dataset", DATASET)),
            (DATASET, ("push-dataset", run / "dataset", "--with-reference")),
        ):
            code, result, said = hub.pvchat(*words, "--repo", repo)
            if code:
                raise SystemExit(said)
            sent[repo] = result["bytes"]
        environment = hub.environment(work)
        with spoilt(hub.models[BASE]) as revision:
            model = here.compare_model(work, hub=environment, base=BASE, revision=revision, push=AGAIN)
        result = {
            "pushed": sent,
            "model": model,
            "sent on": here.compare_model(work, hub=environment, base=AGAIN),
            "dataset": count_rows(work, hub=environment, dataset=DATASET),
            "adapter": here.compare_adapter(work, hub=environment, base=BASE, adapter=ADAPTER),
        }
        name = json.loads((run / "adapter" / "subject.json").read_text(encoding="utf-8"))["subject"]
        question = f"Is {name} in this video?"
        chats = [
            hub.pvchat("chat", *words)
            for words in ((ADAPTER, video, question), (run, video, question, "--base", base))
        ]
    return result | {"chat": [found["answer"] if found else said for _, found, said in chats]}


@contextmanager
def spoilt(repo: Repo) -> Iterator[str]:
    """The commit that is now the last; inside, weights and code are of no use in the one that follows it."""
    good, revision = dict(repo.files), repo.sha
    repo.files |= dict.fromkeys([name for name in good if name.endswith((".py", ".safetensors"))], b"spoilt")
    repo.commit()
    yield revision
    repo.files = good
    repo.commit()


def differences(result: dict[str, Any]) -> list[float]:
    return [value for part in ("model", "sent on", "adapter") for key, value in result[part].items() if key != "reply"]


def show(result: dict[str, Any]) -> None:
    for repo, size in result["pushed"].items():
        print(f"pushed    {repo}: {size / 1e6:.3f} MB")
    for part in ("model", "sent on"):
        found = result[part]
        print(f"{part:9} logits differ by {found['logits']}, hidden states by {found['hidden']}; {found['reply']!r}")
    print(f"dataset   {', '.join(f'{name} {count}' for name, count in result['dataset'].items())}")
    print(f"adapter   logits differ by {result['adapter']['logits']}, switched off by {result['adapter']['base']}")
    print(f"chat      {result['chat'][0][:40]!r} from the Hub, {result['chat'][1][:40]!r} from the folder")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="run folder (default: a small one is made)")
    parser.add_argument("--base", type=Path, help="its base, a folder (default: the embedded pvchat-cartoon)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    from pvchat.session import EMBEDDED_BASE
    from tests.small_runs import write_real_run

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base, run = (args.base or EMBEDDED_BASE, args.run) if args.run else write_real_run(work / "made")
        result = round_trip(base, run, work)
    print(json.dumps(result)) if args.json else show(result)
    same = result["chat"][0] == result["chat"][1] and result["model"]["reply"] == result["sent on"]["reply"]
    return int(not same or any(differences(result)))


if __name__ == "__main__":
    sys.exit(main())
