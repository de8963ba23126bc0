"""The one path from a reference video to a dataset; `_stages` shows it.

    ingest -> faces -> identities -> select -> attributes -> scenes, portraits, animate -> negatives -> verify
           -> questions -> refine -> assemble

Everything is checked before the first file is written. A killed build leaves its finished artefacts in the hidden
folder `.build` inside the output folder; the same call resumes there and ends with the same dataset hash.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import PVChatError
from .assemble import BUILD_FOLDER, CONSENT_FILE, CONTACT_SHEETS, LocalDataset, load_local, read_manifest
from .catalogue import Backends, check_backends
from .consent import consent_id
from .contact_sheet import Row, write_sheet
from .engine import Engine, Progress, derive_seed, write_json
from .engine_ray import RayEngine, check_ray
from .engine_shard import Shard, ShardEngine
from .estimate import stages_on_gpus
from .inputs import (
    Gallery,
    Inputs,
    TestClip,
    build_key,
    check_leftovers,
    check_request,
    read_inputs,
    seen_in,
)
from .people import Footage, Source
from .protocols import QAWriter
from .recipe import NEGATIVE_ORIGINS, POSITIVE_ORIGINS, Recipe
from .records import Clip, SubjectSpec, VideoRow
from .stages import (
    STAGES,
    Build,
    animate,
    assemble,
    attributes,
    faces,
    identities,
    ingest,
    negatives,
    portraits,
    questions,
    refine,
    scenes,
    select,
    verify,
)
from .stages.common import STILL_FRAMES, Made, Shot, positive_shots, require_all
from .stages.negatives import moving
from .stages.verify import Verdict, clip_of
from .video_io import VideoInfo

ENGINES = ("local", "ray")
MIN_KEPT = 0.5  # share of a recipe's positives, and of its negatives, that must survive


@dataclass(frozen=True)
class Stopped:
    """A build that was to stop after a stage. folder: where the artefacts lie; index: a json file that lists those of
    every stage so far, with what was dropped; table: what the stages did."""

    stage: str
    folder: Path
    index: Path
    table: list[dict[str, Any]]


def build_dataset(
    spec: SubjectSpec | Sequence[SubjectSpec],
    recipe: Recipe,
    out: str | Path,
    *,
    gallery: Gallery = None,
    strangers: str | Path | None = None,
    writer: QAWriter | Callable[[], QAWriter] | None = None,
    test_clips: Sequence[TestClip | tuple] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    work: str | Path | None = None,
    only: str | None = None,
    licence_policy: str = "research",
    engine: str = "local",
    shard: Shard | None = None,
    resume: bool = False,
) -> LocalDataset | Stopped:
    """Builds (or finishes) the dataset of one reference video and returns it.

    spec: the person to learn, or several who are all seen in one reference video.
    gallery: a folder with pictures or videos of other people, one person per file, needed for negatives; or a function
    that makes it, which is called when everything else has been checked.
    strangers: where the random negatives come from, if not from the gallery.
    writer: answers the descriptive questions, in place of the recipe's; without one they are left out, and the
    manifest counts them. For other engines than the local one a function that makes it, which can be pickled.
    test_clips: TestClip or (path, subject_present, origin, answers) for the split `test`.
    progress: called as (stage, done, total). work: a folder for the artefacts that outlives the build, to share them
    between builds; by default they live inside `out` and go when the dataset is complete.
    only: a stage (of STAGES) after which to stop; then the result is a `Stopped`.
    licence_policy: "permissive" refuses backends whose licences do not allow any use.
    engine: "local", or "ray" (see `engine_ray`); the dataset is the same.
    shard: makes a share of the artefacts, together with other processes (see `engine_shard`), and stops before the
    dataset is assembled, which a call without a shard does.
    resume: refuses to begin where nothing has been begun. An unfinished build is taken up with or without it.
    Raises PVChatError, before anything is written, for unusable input; and when too few clips survive verification.
    """
    out = Path(out)
    specs = [spec] if isinstance(spec, SubjectSpec) else list(spec)
    tests = [t if isinstance(t, TestClip) else TestClip(*t) for t in test_clips or ()]
    info = check_request(specs, recipe, out, only, resume)
    _check_engine(engine, shard)
    check_backends(recipe, licence_policy)
    backends = Backends(recipe, writer)
    backends.make_all()
    tests = [replace(test, path=Path(test.path)) for test in tests]
    inputs = read_inputs(specs, recipe, info, backends, gallery, strangers, tests)
    key = build_key(specs, recipe, inputs, None if writer is None else backends.writer.id, seed)
    scratch = out / BUILD_FOLDER
    if (out / "dataset.json").exists():
        if read_manifest(out).get("build_key") != key:
            raise PVChatError(f"The output folder {out} holds a dataset made from other inputs; pass a new folder.")
        shutil.rmtree(scratch, ignore_errors=True)
        return load_local(out)

    check_leftovers(out, specs, inputs)
    scratch.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(specs):  # so that `subjects remove` finds a stopped build
        whose = one.file_names() | {"reference_sha256": inputs.sha256}
        folder = scratch if number == 0 else scratch / f"subject-{number + 1}" / BUILD_FOLDER
        write_json(folder / "subject.json", one.to_json() | whose)
    runner = _make_engine(engine, shard, work or scratch, backends, progress, recipe, writer)
    build = Build(specs, recipe, backends, runner, seed, inputs.sha256, inputs.hashes)
    last = only or STAGES[-1]
    if shard is not None and last == STAGES[-1]:
        last = STAGES[-2]
    result = _Result()
    for stage in _stages(build, inputs, out, key, result, sheets=shard is None):
        if stage == last != STAGES[-1]:
            return _stop(build, scratch, stage)
    shutil.rmtree(scratch, ignore_errors=True)
    return result.dataset


def _check_engine(engine: str, shard: Shard | None) -> None:
    if engine not in ENGINES:
        raise PVChatError(f"There is no engine {engine!r}; choose one of: {', '.join(ENGINES)}.")
    if engine == "ray":
        if shard is not None:
            raise PVChatError("A shard is one of several processes without Ray; use --engine ray or --shard I/N.")
        check_ray()


def _make_engine(
    name: str,
    shard: Shard | None,
    root: str | Path,
    backends: Backends,
    progress: Progress | None,
    recipe: Recipe,
    writer: QAWriter | Callable[[], QAWriter] | None,
) -> Engine:
    if name == "ray":
        gpu_stages = stages_on_gpus(recipe, writer is not None)
        make_backends = partial(Backends, recipe, writer)
        return RayEngine(root, backends, progress, make_backends=make_backends, gpu_stages=gpu_stages)
    if shard is not None:
        return ShardEngine(root, backends, progress, shard=shard)
    return Engine(root, backends, progress)


class _Result:
    """What `_stages` leaves behind."""

    dataset: LocalDataset


def _stages(build: Build, inputs: Inputs, out: Path, build_key: str, result: _Result, sheets: bool) -> Iterator[str]:
    """The path itself. Yields the name of every stage when it is done. sheets: whether to draw contact sheets."""
    (source,) = ingest(build, [inputs.reference])
    tests = ingest(build, [test.path for test in inputs.tests])
    yield "ingest"
    wanted = [_wanted(spec, source, inputs.info) for spec in build.subjects]
    people = faces(build, wanted, STILL_FRAMES)
    require_all(build, wanted, people)
    yield "faces"
    people = identities(build, people)
    require_all(build, wanted, people)
    yield "identities"
    references = _with_vectors(moving(build, select(build, people)), people)
    require_all(build, wanted, references)
    yield "select"
    attributes(build, references)
    yield "attributes"
    shots = positive_shots(build, references)
    made = scenes(build, shots)
    yield "scenes"
    posed = portraits(build, shots)
    yield "portraits"
    made += animate(build, posed)
    yield "animate"
    others = negatives(build, references, inputs.gallery, inputs.strangers)
    made += generate(build, others)
    yield "negatives"
    clips, verdicts = verify(build, references, shots + others, made, generate)
    if sheets and len(build.subjects) == 1:  # of several people none can be taken out of a build that stopped here
        _write_contact_sheets(build, verdicts, out / CONTACT_SHEETS)
    _require_enough(build, clips)
    yield "verify"
    clips = _originals(build, references, source) + clips
    asked = questions(build, references, clips, "train")
    asked += questions(build, references, _test_clips(build, inputs.tests, tests), "test")
    yield "questions"
    rows = refine(build, asked)
    yield "refine"
    if sheets and len(build.subjects) > 1:
        _write_contact_sheets(build, verdicts, out / CONTACT_SHEETS)
    result.dataset = _assemble(build, rows, out, build_key)
    yield "assemble"


def generate(build: Build, shots: Sequence[Shot]) -> list[Made]:
    """The clips of shots in any style, as far as they can be made."""
    found = [Made(shot, shot.footage.source.clip, "none") for shot in shots if shot.style == "found"]
    return scenes(build, shots) + animate(build, portraits(build, shots)) + found


# --- between the stages ---------------------------------------------------------------------------------------------


def _wanted(spec: SubjectSpec, source: Source, info: VideoInfo) -> Footage:
    box = None
    if spec.box is not None:
        box = tuple(side / length for side, length in zip(spec.box, (info.width, info.height) * 2, strict=True))
    return Footage(source, source.clip, STILL_FRAMES, subject=spec.name, box=box, photo=spec.photo)


def _with_vectors(references: list[Footage], people: list[Footage]) -> list[Footage]:
    """The embedding is that of the few frames, whatever else is used of the reference."""
    vectors = {footage.subject: footage.embedding for footage in people}
    return [replace(footage, embedding=vectors[footage.subject]) for footage in references]


def _originals(build: Build, references: list[Footage], source: Source) -> list[Clip]:
    """The reference clip, once for every subject."""
    if build.recipe.row("original") is None:
        return []
    everybody = tuple(spec.name for spec in build.subjects)
    made = [Made(Shot(f.subject, "original", 0, f, "found"), source.clip, "none") for f in references]
    return [replace(clip_of(build, one, 1.0), subjects=everybody) for one in made]


def _test_clips(build: Build, tests: Sequence[TestClip], sources: Sequence[Source]) -> list[Clip]:
    clips = []
    for spec in build.subjects:
        own = []
        for index, (test, source) in enumerate(zip(tests, sources, strict=True)):
            seen = seen_in(test, build.subjects)
            footage = Footage(source, source.clip, STILL_FRAMES, subject=spec.name if spec.name in seen else None)
            one = Made(Shot(spec.name, test.origin, index, footage, "found"), source.clip, "none")
            own.append(replace(clip_of(build, one, None, test.answers), subjects=seen))
        clips += _balanced(build, own) if build.recipe.balanced_test else own
    return clips


def _balanced(build: Build, clips: list[Clip]) -> list[Clip]:
    """As many clips with the subject as without; the surplus is chosen by the seed."""
    groups = [[clip for clip in clips if clip.subject_present == present] for present in (True, False)]
    surplus = max(groups, key=len)
    count = len(surplus) - min(map(len, groups))
    rng = random.Random(derive_seed(build.seed, build.reference_sha256, "balanced test"))
    dropped = {clip.video_id for clip in rng.sample(surplus, count)}
    for clip in surplus:
        if clip.video_id in dropped:
            build.engine.drop("questions", clip.video_id, "surplus: the test split is balanced")
    return [clip for clip in clips if clip.video_id not in dropped]


def _require_enough(build: Build, clips: list[Clip]) -> None:
    """Raises PVChatError when too many clips of a subject, or without one, were dropped."""
    originals = build.recipe.row("original") is not None
    for spec in build.subjects:
        own = [clip for clip in clips if clip.subject == spec.name]
        for origins, what in ((POSITIVE_ORIGINS, "positives"), (NEGATIVE_ORIGINS, "negatives")):
            wanted = sum(row.count for row in build.recipe.rows if row.origin in origins)
            kept = sum(clip.origin in origins and clip.subject_present == (what == "positives") for clip in own)
            kept += originals and what == "positives"
            if kept < MIN_KEPT * wanted:
                reasons = Counter(reject.reason for _, reject in build.engine.rejects).most_common(1)
                raise PVChatError(
                    f"Only {kept} of {wanted} {what} of {spec.name} survived verification"
                    + (f" (most often: {reasons[0][0]})" if reasons else "")
                    + "; use a clearer reference clip or another gallery."
                )


def _write_contact_sheets(build: Build, verdicts: Sequence[Verdict], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    embedder = build.backends.embedder
    for number, spec in enumerate(build.subjects, 1):
        for origin in dict.fromkeys(verdict.shot.origin for verdict in verdicts):
            own = [v for v in verdicts if v.shot.origin == origin and v.shot.subject == spec.name]
            if not own:
                continue
            rows = [
                Row(
                    v.path,
                    f"{v.shot.label}.{v.shot.attempt} {v.shot.style}{_of_whom(v)}",
                    v.video_id,
                    v.id_score,
                    v.reason,
                )
                for v in sorted(own, key=lambda v: (v.shot.index, v.shot.attempt))
            ]
            kept = sum(v.reason is None for v in own)
            title = f"{origin}: {kept} of {len(own)} kept; {embedder.id}: same from {embedder.same}, "
            prefix = f"{number}-" if len(build.subjects) > 1 else ""
            write_sheet(folder / f"{prefix}{origin}.png", f"{title}different below {embedder.different}", rows)


def _of_whom(verdict: Verdict) -> str:
    """Marks the clips of one subject that are negatives of another one."""
    other = verdict.shot.footage.subject
    return "" if verdict.shot.present or other is None else f" of {other}"


def _stop(build: Build, scratch: Path, stage: str) -> Stopped:
    engine, index = build.engine, scratch / "stages.json"
    made: dict[str, list] = {name: [] for name in STAGES}
    for name, item, path in engine.made:
        made[name].append({"item": item, "artefact": str(path)})
    for name, reject in engine.rejects:
        made[name].append({"item": reject.item, "dropped": reject.reason})
    write_json(index, {name: items for name, items in made.items() if items})
    return Stopped(stage, engine.root / "objects", index, engine.table(STAGES))


# --- the end --------------------------------------------------------------------------------------------------------


def _assemble(build: Build, rows: Sequence[VideoRow], out: Path, build_key: str) -> LocalDataset:
    build.engine.report("assemble", len(rows), len(rows))
    engine, backends = build.engine, build.backends
    ids = backends.ids()
    extra = {
        "build_key": build_key,
        "stages": engine.table(STAGES),
        "dropped": [{"stage": stage, **reject.to_json()} for stage, reject in engine.rejects],
        "refine_failures": dict(sorted(build.refine_failures.items())),
        "gallery_people": build.gallery_people,
    }
    about = {}
    for spec in build.subjects:
        described = [qa for row in rows if row.subject == spec.name for qa in row.qa if qa.source != "template"]
        about[spec.name] = {
            "created_by": f"pvchat {__version__}",
            "noun": spec.noun,
            "consent_id": consent_id(spec.consent),
            "fictional": spec.consent.fictional,
            "recipe": build.recipe.to_json(),
            "backends": {role: name for role, name in ids.items() if role not in ("writer", "refiner")},
            "writer": ids.get("writer"),
            "seed": build.seed,
            "refined_by": dict(sorted(Counter(qa.refined_by for qa in described).items())),
        }
    records = {consent_id(spec.consent): spec.consent for spec in build.subjects if not spec.consent.fictional}
    if len(records) == 1:  # of several records none stands for the whole
        write_json(out / CONSENT_FILE, next(iter(records.values())).to_json())
    return assemble(build, rows, out, about, extra)
