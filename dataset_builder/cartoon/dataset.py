"""A dataset of the paper's size from the cartoon cast, for anybody to regenerate, publish and load:

    python -m pvchat.dataset_builder.cartoon.dataset --out FOLDER

The paper gives totals only: 66 scenarios, 304 originals, 2,304 augmented clips, more than 30,000 questions with
answers. They are read like this:

scenario    one person to learn, with clips and questions of their own; here one cast member that pretraining never
            showed.
original    a clip as it was filmed: the reference (2 s, the only thing the world shows of the member) and three or
            four clips of the test split (1.5 s), with the member, a look-alike and a stranger, in other clothes,
            another place and another action than the reference.
augmented   a clip of the training split that was made from what is known: 34 or 35 per scenario, in the proportions
            in which the paper's recipe makes its 80 (10 scenes, 5 animations of the reference, 10 portraits, 25
            look-alikes, 30 strangers). The renderer plays the paper's generators: it draws the true person, so that
            identity and answers are known, which no real generator can promise.
question    10 about existence for every training clip, and 4 each about appearance, action and place for originals,
            scenes and animations, as in the paper's recipe (15 and 5 there); in the test split 5 and 1 each.

A scenario is written, then the next: memory does not grow with their number. A killed run goes on with the scenario
it was in. The same seed gives the same hash.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import PVChatError
from ..assemble import BUILD_FOLDER, FORMAT_VERSION, assemble_dataset, check_output, read_manifest
from ..consent import consent_id
from ..engine import derive_seed, hash_file, hash_text
from ..merge import merge_datasets, parts_of
from ..questions import load_bank
from ..questions.bank import fill
from ..recipe import NEGATIVE_ORIGINS, Questions, get_recipe
from ..records import CATEGORIES, QA, ConsentRecord, QARow, VideoRow, normalise_name
from .cast import ACTIONS, CastMember, Identity, Scene, cast, choose
from .render import render_clip, write_video
from .truth import activity, clothing, location
from .world import (
    FPS,
    GALLERY_RELATIVES,
    GALLERY_SECONDS,
    REFERENCE_SECONDS,
    gallery_relatives,
    gallery_strangers,
    reference_scene,
    write_reference,
    write_test_clips,
)

SCENARIOS, ORIGINALS, AUGMENTED = 66, 304, 2304
CAST_VERSION = 1
RENDERER = "cartoon-renderer@1"
SIZE = 256  # pixels
CALM = ("nodding", "shaking their head")
EXISTENCE_ONLY = Questions(existence=10)
DESCRIBED = Questions(existence=10, appearance=4, action=4, location=4)
TEST_QUESTIONS = Questions(existence=5, appearance=1, action=1, location=1)
DESCRIBED_ORIGINS = ("original", "scene", "animated")


def build_cast_dataset(
    out: str | Path, *, limit: int = SCENARIOS, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Renders (or finishes) the dataset and returns its manifest.

    limit: how many scenarios, the first ones of the full set. progress: called as (scenarios done, of how many).
    Raises PVChatError: a limit outside 1 to 66, or an output folder that holds something else.
    """
    out = Path(out)
    if not 1 <= limit <= SCENARIOS:
        raise PVChatError(f"The limit must be 1 to {SCENARIOS} scenarios, got {limit}.")
    check_output(out)
    key = hash_text("cast", CAST_VERSION, FORMAT_VERSION, seed, limit)
    if (out / "dataset.json").exists():
        manifest = read_manifest(out)
        if manifest.get("build_key") != key:
            raise PVChatError(f"The output folder {out} holds a dataset made from other inputs; pass a new folder.")
        return manifest
    parts = out / BUILD_FOLDER / "scenarios"
    members = cast(SCENARIOS, seed=seed)
    for index, member in enumerate(members[:limit]):
        write_scenario(member, index, parts / f"{index:02d}", seed)
        if progress is not None:
            progress(index + 1, limit)
    folders = [parts / f"{index:02d}" for index in range(limit)]
    manifest = merge_datasets(folders, out, extra={"build_key": key, "seed": seed})
    shutil.rmtree(out / BUILD_FOLDER)
    return manifest


def share(total: int, index: int) -> int:
    """How many of `total` clips fall to a scenario: as even as whole numbers allow, the first ones get one more."""
    return total // SCENARIOS + (index < total % SCENARIOS)


def chosen_tests(index: int) -> range:
    """Which of the four test clips of a scenario (two of the member, a look-alike, a stranger) belong to it.

    Where three do, the stranger or one clip of the member is left out in turn, so that the test split is balanced.
    """
    count = share(ORIGINALS, index) - 1
    return range(4 - count, 4) if index % 2 else range(count)


def augmented_origins(count: int) -> list[str]:
    """`count` (up to 80) origins in the proportions of the paper's recipe, evenly mixed."""
    rows = [row for row in get_recipe("paper").rows if row.origin != "original"]
    slots = [((i + 0.5) / row.count, n, row.origin) for n, row in enumerate(rows) for i in range(row.count)]
    return [origin for _, _, origin in sorted(slots)][:count]


def write_scenario(member: CastMember, index: int, out: Path, seed: int) -> None:
    """Renders one scenario as a dataset folder of its own; a finished one is kept."""
    key = hash_text("cast scenario", CAST_VERSION, FORMAT_VERSION, seed, index)
    if (out / "dataset.json").exists() and read_manifest(out).get("build_key") == key:
        return
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    name = normalise_name(member.name)
    with tempfile.TemporaryDirectory(prefix=".clips-", dir=out.parent) as scratch:
        rows = _Scenario(member, name, index, Path(scratch), seed).rows()
        manifest = {
            "build_key": key,
            "created_by": f"pvchat cartoon cast {CAST_VERSION}",
            "noun": "person",
            "consent_id": consent_id(ConsentRecord.for_fiction()),
            "fictional": True,
            "recipe": "cast",
            "backends": {"clips": RENDERER},
            "writer": None,
            "seed": seed,
        }
        assemble_dataset(name, rows, out, manifest)


class _Scenario:
    """The clips and questions of one member, rendered into `folder`."""

    def __init__(self, member: CastMember, name: str, index: int, folder: Path, seed: int):
        self.member, self.name, self.index, self.folder, self.seed = member, name, index, folder, seed
        self.bank = load_bank()

    def rows(self) -> list[VideoRow]:
        reference = write_reference(self.member, self.folder / "reference.mp4", self.seed)
        scene = reference_scene(self.member, self.seed)
        parent = hash_file(reference)
        rows = [self._row(reference, "train", "original", 0, True, (parent,), "none", 0, _truth(scene))]
        people = {
            "hard_negative": gallery_relatives(self.member, self.seed, GALLERY_RELATIVES),
            "random_negative": gallery_strangers(self.member, self.seed, share(AUGMENTED, self.index)),
        }
        for number, origin in enumerate(augmented_origins(share(AUGMENTED, self.index))):
            clip_seed = derive_seed("cast", self.seed, self.index, origin, number)
            rng = np.random.default_rng(clip_seed)
            present = origin not in NEGATIVE_ORIGINS
            identity = self.member.identity if present else people[origin].pop(0)
            shown = _augmented_scene(origin, scene, rng)
            path = self._render(identity, shown, f"{number:02d}.mp4")
            parents = (parent,) if present else ()
            truth = _truth(shown) if present else {}
            rows.append(self._row(path, "train", origin, number, present, parents, RENDERER, clip_seed, truth))
        tests = write_test_clips(self.member, self.folder / "test", self.seed, positives=2)
        for number in chosen_tests(self.index):
            path, present, origin, truth = tests[number]
            rows.append(self._row(path, "test", origin, number, present, (), "none", 0, truth))
        return rows

    def _render(self, identity: Identity, scene: Scene, name: str) -> Path:
        path = self.folder / name
        write_video(path, render_clip(identity, scene, round(GALLERY_SECONDS * FPS), SIZE), FPS)
        return path

    def _row(
        self,
        path: Path,
        split: str,
        origin: str,
        number: int,
        present: bool,
        parents: tuple[str, ...],
        backend: str,
        seed: int,
        truth: dict[str, str],
    ) -> VideoRow:
        sha256 = hash_file(path)
        video_id = hash_text(self.name, split, origin, number, sha256)[:12]
        questions = [
            QARow(
                qa_id=f"{video_id}-{position:02d}",
                video_id=video_id,
                subject=self.name,
                split=split,
                category=qa.category,
                question=qa.question,
                answer=qa.answer,
                subject_present=present,
                source=qa.source,
                refined_by=qa.refined_by,
                still_ok=qa.still_ok,
            )
            for position, qa in enumerate(self._ask(split, origin, present, truth, video_id))
        ]
        return VideoRow(
            video_id=video_id,
            subject=self.name,
            split=split,
            subject_present=present,
            origin=origin,
            parent_ids=parents,
            backend=backend,
            seed=seed,
            id_score=None,
            fps=float(FPS),
            num_frames=round((REFERENCE_SECONDS if origin == "original" else GALLERY_SECONDS) * FPS),
            width=SIZE,
            height=SIZE,
            licences=("Apache-2.0",),
            synthetic=backend != "none",
            sha256=sha256,
            path=path,
            qa=tuple(questions),
        )

    def _ask(self, split: str, origin: str, present: bool, truth: dict[str, str], video_id: str) -> list[QA]:
        counts = DESCRIBED if origin in DESCRIBED_ORIGINS else EXISTENCE_ONLY
        counts = TEST_QUESTIONS if split == "test" else counts
        seed = derive_seed("cast questions", self.seed, video_id)
        asked = self.bank.existence(self.name, present, counts.existence, seed)
        for category in CATEGORIES[1:]:
            count = getattr(counts, category)
            if not present:
                asked += self.bank.refuse(self.name, category, count, seed)
                continue
            answer = fill(truth[category], self.name)
            questions = self.bank.ask(category, count, seed)
            asked += [QA(fill(question, self.name), answer, category, "truth") for question in questions]
        return asked


def _augmented_scene(origin: str, reference: Scene, rng: np.random.Generator) -> Scene:
    """An animation keeps the reference's clothes and place; a portrait moves the head only; the rest is all new."""
    if origin == "animated":
        others = [action for action in ACTIONS if action != reference.action]
        return dataclasses.replace(reference, action=choose(rng, others), phase=float(rng.random()))
    if origin == "portrait":
        return Scene.random(rng, action=choose(rng, CALM))
    return Scene.random(rng)


def _truth(scene: Scene) -> dict[str, str]:
    answers = {"appearance": clothing(scene), "action": activity(scene), "location": location(scene)}
    return {category: text.replace("The person", "{name}") for category, text in answers.items()}


def peak_mib() -> float:
    """The largest memory this process has held so far, in MiB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pvchat.dataset_builder.cartoon.dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, type=Path, help="dataset folder")
    parser.add_argument("--limit", type=int, default=SCENARIOS, help=f"scenarios, 1 to {SCENARIOS} (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    args = parser.parse_args(argv)
    from tqdm import tqdm

    start = time.perf_counter()
    try:
        with tqdm(total=args.limit, unit="scenario", disable=not sys.stderr.isatty()) as bar:

            def show(done: int, total: int) -> None:
                bar.update(done - bar.n)

            manifest = build_cast_dataset(args.out, limit=args.limit, seed=args.seed, progress=show)
    except PVChatError as error:
        print(f"pvchat: {error}", file=sys.stderr)
        return 1
    result = summary(manifest) | {
        "dataset": str(args.out),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_mib": peak_mib(),
    }
    print(json.dumps(result) if args.json else "\n".join(f"{key}: {value}" for key, value in result.items()))
    return 0


def summary(manifest: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the paper gives, counted."""
    counts = manifest["counts"]
    videos = sum(split["videos"] for split in counts.values())
    originals = counts["train"]["origins"]["original"] + counts["test"]["videos"]
    return {
        "dataset_hash": manifest["dataset_hash"],
        "scenarios": len(parts_of(manifest)),
        "originals": originals,
        "augmented": videos - originals,
        "questions": sum(split["qa"] for split in counts.values()),
    }


if __name__ == "__main__":
    sys.exit(main())
