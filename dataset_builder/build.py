"""The one path from a reference video to a dataset:

    ingest -> matte, select -> scenes, portraits, animate -> negatives -> verify -> questions, refine -> assemble

Everything is checked before the first file is written. A killed build leaves its finished artefacts in the hidden
folder `.build` inside the output folder; the same call resumes there and ends with the same dataset hash.
"""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingBackendError, PVChatError
from .assemble import (
    BUILD_FOLDER,
    CONSENT_FILE,
    FORMAT_VERSION,
    LocalDataset,
    assemble_dataset,
    check_output,
    load_local,
    read_manifest,
)
from .consent import consent_id, require_consent
from .engine import Artefact, Engine, Progress, Rejected, Stage, derive_seed, hash_file, hash_text, write_json
from .people import MAX_FRAMES, STILL_FRAMES, People, Source
from .protocols import Backends, Generated, Match, Person, QAWriter
from .questions import load_bank
from .questions.bank import fill
from .recipe import NEGATIVE_ORIGINS, POSITIVE_ORIGINS, Questions, Recipe, RecipeRow
from .records import CATEGORIES, QA, Clip, QARow, Reject, SubjectSpec, VideoRow
from .refine import RuleRefiner
from .video_io import probe_video, read_video, write_video

BUILDER_VERSION = 1
ATTEMPTS = 3  # seeds that are tried before a clip is given up
VERIFIED_FRAMES = 2  # frames of a clip that are compared with the reference
MIN_KEPT = 0.5  # share of a recipe's positives, and of its negatives, that must survive
DESCRIPTIVE = CATEGORIES[1:]


@dataclass(frozen=True)
class TestClip:
    """A clip of the test split: never augmented, never trained on. answers: category -> answer, where known."""

    __test__ = False  # not a test class

    path: Path
    subject_present: bool
    origin: str = "user"
    answers: dict[str, Any] | None = None


def build_dataset(
    spec: SubjectSpec,
    recipe: Recipe,
    out: str | Path,
    *,
    gallery: str | Path | None = None,
    writer: QAWriter | None = None,
    test_clips: Sequence[TestClip | tuple] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    work: str | Path | None = None,
) -> LocalDataset:
    """Builds (or finishes) the dataset of one subject and returns it.

    gallery: a folder with pictures or videos of other people, one person per file; needed for negatives.
    writer: answers the descriptive questions; without one they are left out, and the manifest counts them.
    test_clips: TestClip or (path, subject_present, origin, answers) for the split `test`.
    progress: called as (stage, done, total). work: a folder for the artefacts that outlives the build, to share them
    between builds; by default they live inside `out` and go when the dataset is complete.
    Raises PVChatError, before anything is written, for unusable input; and when too few clips survive verification.
    """
    out = Path(out)
    tests = [t if isinstance(t, TestClip) else TestClip(*t) for t in test_clips or ()]
    tests = [replace(t, path=Path(t.path)) for t in tests]
    consent = require_consent(spec)
    backends = resolve_backends(recipe)
    check_output(out)
    probe_video(spec.reference)
    for row in recipe.rows:
        load_bank().check(row.questions)
    load_bank().check(recipe.test_questions)
    for test in tests:
        probe_video(test.path)
    gallery_files = _gallery_files(recipe, gallery)

    hashes = {path: hash_file(path) for path in [spec.reference, *gallery_files, *(t.path for t in tests)]}
    _check_sources(spec, gallery_files, tests, hashes)
    inputs = {
        "builder": [BUILDER_VERSION, FORMAT_VERSION],
        "subject": [spec.name, spec.noun, list(spec.pronouns), hashes[spec.reference]],
        "recipe": recipe.to_json(),
        "gallery": sorted({hashes[p] for p in gallery_files}),
        "writer": writer.id if writer is not None else None,
        "tests": [[hashes[t.path], t.subject_present, t.origin, t.answers] for t in tests],
        "seed": seed,
    }
    build_key = hash_text(inputs)
    scratch = out / BUILD_FOLDER
    if (out / "dataset.json").exists():
        if read_manifest(out).get("build_key") != build_key:
            raise PVChatError(f"The output folder {out} holds a dataset made from other inputs; pass a new folder.")
        shutil.rmtree(scratch, ignore_errors=True)
        return load_local(out)

    scratch.mkdir(parents=True, exist_ok=True)
    whose = {"reference": spec.reference.name, "reference_sha256": hashes[spec.reference]}
    write_json(scratch / "subject.json", spec.to_json() | whose)  # so that `subjects remove` finds a stopped build
    engine = Engine(work or scratch, progress)
    build = _Build(spec, recipe, backends, engine, seed, writer)
    rows = build.train_rows(gallery) + build.test_rows(tests)
    manifest = {
        "build_key": build_key,
        "created_by": f"pvchat {_version()}",
        "noun": spec.noun,
        "consent_id": consent_id(consent),
        "fictional": consent.fictional,
        "recipe": recipe.to_json(),
        "backends": {
            role: getattr(backends, role).id for role in ("embedder", "quality", "scene", "portrait", "animate")
        },
        "writer": writer.id if writer is not None else None,
        "seed": seed,
        "stages": engine.table(),
        "dropped": [{"stage": stage, **reject.to_json()} for stage, reject in engine.rejects],
        "refined_by": dict(sorted(build.refined.items())),
        "gallery_people": build.gallery_people,
    }
    if not consent.fictional:
        write_json(out / CONSENT_FILE, consent.to_json())
    dataset = assemble_dataset(spec.name, rows, out, manifest)
    shutil.rmtree(scratch, ignore_errors=True)
    return dataset


def resolve_backends(recipe: Recipe) -> Backends:
    """Raises MissingBackendError when the recipe names a backend that this version does not have."""
    from .backends import light

    known = {
        "detector": {"matte": None},
        "embedder": {"head-hog": light.HeadEmbedder},
        "quality": {"classical": light.ClassicalQuality},
        "scene": {"composite": light.CompositeScenes},
        "portrait": {"photometric": light.PhotometricPortraits},
        "animate": {"warp2d": light.WarpAnimator},
        "gallery": {"folder": None},
    }
    wanted = dict(recipe.backends)
    if recipe.source is not None:
        wanted |= {"scene": "composite", "portrait": "photometric", "animate": "warp2d"}  # for the negatives
    missing = sorted({name for role, name in wanted.items() if name not in known.get(role, {})})
    if missing:
        raise MissingBackendError(
            f"Recipe {recipe.name!r} needs the backend(s) {', '.join(missing)}, which this version does not have; "
            f"use --recipe light."
        )
    made = {role: known[role][wanted[role]]() for role in ("embedder", "quality", "scene", "portrait", "animate")}
    return Backends(**made, refiner=RuleRefiner())


def _gallery_files(recipe: Recipe, gallery: str | Path | None) -> list[Path]:
    from .backends.light.gallery import list_gallery

    if not any(row.origin in NEGATIVE_ORIGINS for row in recipe.rows):
        return []
    if gallery is None:
        raise PVChatError(
            f"Recipe {recipe.name!r} needs other people as negatives: pass --gallery FOLDER with pictures or videos, "
            f"one person per file."
        )
    folder = Path(gallery)
    if not folder.is_dir():
        raise PVChatError(f"The gallery {folder} is not a folder; pass a folder with pictures or videos of others.")
    files = list_gallery(folder)
    if len(files) < 2:
        raise PVChatError(f"The gallery {folder} has {len(files)} picture(s) or video(s); at least 2 are needed.")
    return files


def _check_sources(spec: SubjectSpec, gallery: list[Path], tests: list[TestClip], hashes: dict[Path, str]) -> None:
    """No file may be on both sides of the split, and the reference is no negative."""
    train = {hashes[spec.reference]: spec.reference} | {hashes[p]: p for p in gallery}
    for path in gallery:
        if hashes[path] == hashes[spec.reference]:
            raise PVChatError(f"The gallery holds the reference video itself ({path.name}); take it out.")
    for test in tests:
        if hashes[test.path] in train:
            raise PVChatError(f"The test clip {test.path.name} is also a training source; use another clip.")


def _version() -> str:
    try:
        return version("pvchat")
    except PackageNotFoundError:
        return "unknown"


class _Build:
    """One build: the stages share the engine, the seed and the reference."""

    def __init__(
        self, spec: SubjectSpec, recipe: Recipe, backends: Backends, engine: Engine, seed: int, writer: QAWriter | None
    ):
        self.spec, self.recipe, self.backends, self.engine = spec, recipe, backends, engine
        self.seed, self.writer = seed, writer
        self.people = People(engine, backends.quality, backends.embedder)
        self.refined: Counter = Counter()
        self.gallery_people: dict[str, int] = {}
        self.bank = load_bank()

    # -- the two splits ---------------------------------------------------------------------------------------------

    def train_rows(self, gallery: str | Path | None) -> list[VideoRow]:
        self.reference = self.people.ingest(self.spec.reference)
        try:
            self.subject = self.people.person(self.reference)
            self.embedding = self.people.embedding(self.reference)
        except Rejected as rejected:
            raise PVChatError(
                f"{self.spec.reference} cannot be the reference: {rejected}. "
                f"Use a clip with one person near the centre."
            ) from rejected
        self.engine.expect("verify", self.recipe.num_clips)
        clips: list[Clip] = []
        for row in self.recipe.rows:
            if row.origin in POSITIVE_ORIGINS:
                clips += self._positives(row)
        clips += self._negatives(gallery)
        for present, what in ((True, "positives"), (False, "negatives")):
            wanted = sum(r.count for r in self.recipe.rows if (r.origin in POSITIVE_ORIGINS) == present)
            kept = sum(c.subject_present == present for c in clips)
            if kept < MIN_KEPT * wanted:
                reasons = Counter(reject.reason for _, reject in self.engine.rejects).most_common(1)
                raise PVChatError(
                    f"Only {kept} of {wanted} {what} survived verification"
                    + (f" (most often: {reasons[0][0]})" if reasons else "")
                    + "; use a clearer reference clip or another gallery."
                )
        questions = {row.origin: row.questions for row in self.recipe.rows}
        return [self._row(clip, "train", self._ask(clip, questions[clip.origin])) for clip in clips]

    def test_rows(self, tests: Sequence[TestClip]) -> list[VideoRow]:
        rows = []
        for index, test in enumerate(tests):
            source = self.people.ingest(test.path)
            clip = self._clip(
                source.clip, test.origin, index, test.subject_present, (source.file_sha256,), "none", 0, False,
                truth=test.answers,
            )  # fmt: skip
            rows.append(self._row(clip, "test", self._ask(clip, self.recipe.test_questions, written=False)))
        return rows

    # -- clips ------------------------------------------------------------------------------------------------------

    def _positives(self, row: RecipeRow) -> list[Clip]:
        if row.origin == "original":
            clip = self._clip(
                self.reference.clip, "original", 0, True, (self.reference.file_sha256,), "none", 0, False, id_score=1.0
            )
            return [clip]
        clips = [self._positive(row, index) for index in range(row.count)]
        return [clip for clip in clips if clip is not None]

    def _positive(self, row: RecipeRow, index: int) -> Clip | None:
        if self.recipe.source is not None:
            stage = Stage(row.origin, 1, self.recipe.backends["scene"], ".mp4")

            def generate(seed: int) -> Generated:
                return Generated(*self.recipe.source(row.origin, index, seed))
        else:
            stage, generate = self._generator(row.origin, row, index, self.subject, self.reference)
        return self._verified(stage, generate, row.origin, index, True, self.reference.file_sha256)

    def _generator(
        self, style: str, row: RecipeRow, index: int, person: Person, source: Source
    ) -> tuple[Stage, Callable[[int], Generated]]:
        """How the style (scene, animated or portrait) shows this person as the row's clip `index`."""
        if style == "scene":
            return self._stage("scene"), lambda seed: self.backends.scene.generate(person, "", seed)
        drivers = row.drivers or ("yes",)
        driver = drivers[index % len(drivers)]
        if style == "animated":
            return self._stage("animate"), lambda seed: self.backends.animate.animate(person.still(), driver, seed)
        share = -(-row.count // (row.people or row.count))  # clips per still, rounded up
        still = self._portrait(person, source, index // share)
        return self._stage("animate"), lambda seed: self.backends.animate.animate(still, driver, seed)

    def _stage(self, role: str) -> Stage:
        return Stage(role, 1, getattr(self.backends, role).id, ".mp4")

    def _portrait(self, person: Person, source: Source, index: int) -> Person:
        seed = derive_seed(self.seed, source.file_sha256, "portrait", index)

        def make(target: Path) -> dict:
            still = self.backends.portrait.generate(person, "", seed)
            buffer = io.BytesIO()
            np.save(buffer, np.concatenate([still.frames[0], still.alpha[0][..., None]], -1))
            target.write_bytes(buffer.getvalue())
            return {"fps": still.fps}

        stage = Stage("portrait", 1, self.backends.portrait.id, ".npy")
        params = {"frames": len(person.frames)}
        inputs = [source.clip.sha256]
        art = self.engine.run(stage, make, item=f"portrait {index}", params=params, inputs=inputs, seed=seed)
        if isinstance(art, Reject):
            raise Rejected(art.reason)
        pixels = np.load(art.path)
        return Person(pixels[None, ..., :3], art.meta["fps"], pixels[None, ..., 3])

    def _negatives(self, gallery: str | Path | None) -> list[Clip]:
        rows = [row for row in self.recipe.rows if row.origin in NEGATIVE_ORIGINS]
        if not rows:
            return []
        people = self._choose_people(rows, gallery)
        styles = self._styles()
        clips = []
        for row in rows:
            chosen = people[row.origin]
            for index in range(row.count):
                # Raw clips come last; the others take the positives' styles in the positives' proportions.
                style = styles[index % len(styles)] if styles and index < row.count - row.raw else None
                share = -(-row.count // row.people) if row.people else 1
                clips.append(self._negative(row, index, chosen[(index // share) % len(chosen)], style))
        return [clip for clip in clips if clip is not None]

    def _choose_people(self, rows: list[RecipeRow], gallery: str | Path) -> dict[str, list[Match]]:
        """Look-alikes for the hard negatives, other people for the random ones; nobody is both."""
        from .backends.light.gallery import FolderGallery

        sources = {}

        def embed(path: Path, sha256: str) -> np.ndarray:
            sources[sha256] = self.people.ingest(path)
            return self.people.embedding(sources[sha256])

        self.sources = sources
        folder = FolderGallery(gallery, self.backends.embedder, embed)
        self.engine.expect("embed", len(folder.files) + 1)
        alike = folder.search(self.embedding, len(folder.files))
        for path, reason in sorted(folder.skipped.items()):
            self.engine.drop("gallery", path.name, reason)
        if len(alike) < 2:
            raise PVChatError(
                f"The gallery {folder.folder} has {len(alike)} usable other people; at least 2 are needed."
            )
        people: dict[str, list[Match]] = {}
        by_origin = {row.origin: row for row in rows}
        hard = by_origin.get("hard_negative")
        if hard is not None:
            room = len(alike) if len(by_origin) == 1 else max(1, len(alike) // 2)
            people["hard_negative"] = alike[: min(hard.people or hard.count, room)]
        row = by_origin.get("random_negative")
        if row is not None:
            taken = [m.sha256 for m in people.get("hard_negative", [])]
            seed = derive_seed(self.seed, "random_negative")
            allowed = {m.sha256 for m in alike}
            sample = folder.sample(len(folder.files), seed, exclude=taken)
            people["random_negative"] = [m for m in sample if m.sha256 in allowed][: row.count]
        self.gallery_people = {origin: len(matches) for origin, matches in people.items()}
        return people

    def _styles(self) -> list[str]:
        """The styles of the generated positives, each as often as it occurs there, evenly mixed. A recipe with a
        perfect source has none: its negatives stay as they are."""
        rows = [r for r in self.recipe.rows if r.origin in POSITIVE_ORIGINS and r.origin != "original"]
        if self.recipe.source is not None:
            return []
        slots = [((i + 0.5) / row.count, n, row.origin) for n, row in enumerate(rows) for i in range(row.count)]
        return [origin for _, _, origin in sorted(slots)]

    def _negative(self, row: RecipeRow, index: int, match: Match, style: str | None) -> Clip | None:
        source = self.sources[match.sha256]
        if style is None:
            return self._checked(source.clip, row.origin, index, False, source.file_sha256, "none", 0, synthetic=False)
        try:
            person = self.people.person(source, MAX_FRAMES if style == "scene" else STILL_FRAMES)
            shape = replace(row, people=None)
            stage, generate = self._generator(style, shape, index, person, source)
        except Rejected as rejected:
            self.engine.drop(row.origin, match.path.name, str(rejected))
            return None
        return self._verified(stage, generate, row.origin, index, False, source.file_sha256)

    def _verified(
        self, stage: Stage, generate: Callable[[int], Generated], origin: str, index: int, present: bool, parent: str
    ) -> Clip | None:
        """Generates with up to ATTEMPTS seeds until a clip passes verification."""
        for attempt in range(ATTEMPTS):
            seed = derive_seed(self.seed, self.reference.file_sha256, parent, origin, index, attempt)

            def make(target: Path, seed: int = seed) -> dict:
                made = generate(seed)
                write_video(target, made.frames, made.fps)
                _, height, width, _ = made.frames.shape
                return {
                    "fps": made.fps, "num_frames": len(made.frames), "height": height, "width": width,
                    "truth": made.truth,
                }  # fmt: skip

            params = {"origin": origin, "index": index}
            item = f"{origin} {index}"
            art = self.engine.run(stage, make, item=item, params=params, inputs=[parent], seed=seed)
            if isinstance(art, Reject):
                continue
            clip = self._checked(art, origin, index, present, parent, stage.backend, seed, synthetic=True)
            if clip is not None:
                return clip
        return None

    def _checked(
        self, art: Artefact, origin: str, index: int, present: bool, parent: str, backend: str, seed: int,
        synthetic: bool,
    ) -> Clip | None:  # fmt: skip
        """The clip with its similarity to the reference, or None when that contradicts its label."""
        embedder = self.backends.embedder

        def make(target: Path) -> dict:
            score = float(embedder.embed(Person(*read_video(art.path, max_frames=VERIFIED_FRAMES))) @ self.embedding)
            if present and score < embedder.different:
                raise Rejected(f"does not look like the subject (similarity below {embedder.different})")
            if not present and score >= embedder.same:
                raise Rejected(f"looks like the subject (similarity at or above {embedder.same})")
            target.write_text(json.dumps(score), encoding="utf-8")
            return {"score": round(score, 6)}

        stage = Stage("verify", 1, embedder.id, ".json")
        params = {"present": present, "same": embedder.same, "different": embedder.different}
        inputs = [art.sha256, self.reference.clip.sha256]
        outcome = self.engine.run(stage, make, item=f"{origin} {index}", params=params, inputs=inputs)
        if isinstance(outcome, Reject):
            return None
        return self._clip(
            art,
            origin,
            index,
            present,
            (parent,),
            backend,
            seed,
            synthetic,
            outcome.meta["score"],
            art.meta.get("truth"),
        )

    def _clip(
        self, art: Artefact, origin: str, index: int, present: bool, parents: tuple[str, ...], backend: str, seed: int,
        synthetic: bool, id_score: float | None = None, truth: dict | None = None,
    ) -> Clip:  # fmt: skip
        meta = art.meta
        made = {b.id: b.licences for b in (self.backends.scene, self.backends.animate)}
        return Clip(
            video_id=hash_text(self.spec.name, origin, index, art.sha256)[:12],
            path=art.path,
            sha256=art.sha256,
            origin=origin,
            subject_present=present,
            parent_ids=parents,
            backend=backend,
            seed=seed,
            fps=float(meta["fps"]),
            num_frames=meta["num_frames"],
            width=meta["width"],
            height=meta["height"],
            synthetic=synthetic,
            id_score=id_score,
            licences=tuple(made.get(backend, ("user",))),
            truth=truth,
        )

    # -- questions --------------------------------------------------------------------------------------------------

    def _ask(self, clip: Clip, counts: Questions, written: bool = True) -> list[QA]:
        """The clip's questions with their answers. written: whether the writer may answer."""
        name = self.spec.name
        seed = derive_seed(self.seed, self.reference.file_sha256, "questions", clip.video_id)
        questions = self.bank.existence(name, clip.subject_present, counts.existence, seed)
        for category in DESCRIPTIVE:
            count = getattr(counts, category)
            if count and not clip.subject_present:
                questions += self.bank.refuse(name, category, count, seed)
            elif count:
                asked = self.bank.ask(category, count, seed)
                questions += self._describe(clip, category, asked, written)
        return questions

    def _describe(self, clip: Clip, category: str, asked: list[str], written: bool) -> list[QA]:
        known = (clip.truth or {}).get(category)
        if known is not None:
            known = [known] if isinstance(known, str) else list(known)
            answers, source = [known[i % len(known)] for i in range(len(asked))], "truth"
        elif written and self.writer is not None:
            answers, source = self._written(clip, asked), "vlm"
        else:
            reason = f"nobody to answer about {category}" if written else f"no known answer about {category}"
            for question in asked:
                self.engine.drop("questions", f"{clip.video_id}: {question}", reason)
            return []
        kept = []
        for question, answer in zip(asked, answers, strict=True):
            if not answer.strip():
                self.engine.drop("questions", f"{clip.video_id}: {question}", "empty answer")
                continue
            qa = QA(fill(question, self.spec.name), fill(answer.strip(), self.spec.name), category, source)
            qa = self.backends.refiner.refine(qa, self.spec)
            self.refined[qa.refined_by] += 1
            kept.append(qa)
        return kept

    def _written(self, clip: Clip, asked: list[str]) -> list[str]:
        plain = [fill(question, f"the {self.spec.noun}") for question in asked]

        def make(target: Path) -> dict:
            answers = list(self.writer.write(clip.path, plain))
            if len(answers) != len(plain):
                raise ValueError(f"the writer {self.writer.id} gave {len(answers)} answers to {len(plain)} questions")
            target.write_text(json.dumps(answers), encoding="utf-8")
            return {}

        stage = Stage("answers", 1, self.writer.id, ".json")
        params = {"questions": plain}
        art = self.engine.run(stage, make, item=clip.video_id, params=params, inputs=[clip.sha256])
        return json.loads(art.path.read_text(encoding="utf-8"))

    def _row(self, clip: Clip, split: str, questions: list[QA]) -> VideoRow:
        rows = tuple(
            QARow(
                qa_id=f"{clip.video_id}-{number:02d}",
                video_id=clip.video_id,
                subject=self.spec.name,
                split=split,
                category=qa.category,
                question=qa.question,
                answer=qa.answer,
                subject_present=clip.subject_present,
                source=qa.source,
                refined_by=qa.refined_by,
                still_ok=qa.still_ok,
            )
            for number, qa in enumerate(questions)
        )
        shared = {k: getattr(clip, k) for k in Clip.__dataclass_fields__ if k != "truth"}
        return VideoRow(**shared, subject=self.spec.name, split=split, qa=rows)
