"""Many people, each learned by a run of its own: what `pvchat personalize` makes, several at a time.

    runs/<name>/    a run folder per person
    runs/.shared/   `work`, artefacts of the dataset builder: what depends on a gallery only is made once for all; and
                    `features`, encoder states: a clip of several datasets is encoded once

A run that fails costs no other one. Finished runs are kept as they are, and unfinished ones go on where they stopped.
`.shared` is deleted when all runs are finished; before, it lets the next call go on.
"""

from __future__ import annotations

import shutil
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import PVChatError
from .passport import usable_cores
from .run_folder import run_state
from .subject_list import Entry
from .workers import check_engine, run_all

SHARED = ".shared"
DIED = "its process died (out of memory, or a crash); the same command goes on where it stopped"

Progress = Callable[[str, int, int, str], None]  # (what, done, total, the last one)


@dataclass(frozen=True)
class Plan:
    """What all runs have in common; see `personalize`.

    out: folder of the run folders. declare: write a consent record for those who have none. threads: processor threads
    of each run (bits of a result can depend on it).
    """

    out: Path
    base: str | None = None
    recipe: str = "light"
    profile: str = "light"
    routing: str = "remoh"
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    declare: bool = False
    seed: int = 0
    threads: int = 1
    command: str = "pvchat.personalize_many()"

    @property
    def shared(self) -> Path:
        return self.out / SHARED


@dataclass(frozen=True)
class Job:
    """By value, so that another process can run it."""

    entry: Entry
    plan: Plan

    @property
    def folder(self) -> Path:
        return self.plan.out / self.entry.folder


@dataclass(frozen=True)
class Outcome:
    """How a run ended. state: "learned", "kept" (it had been finished before) or "failed", with the reason in `error`.

    seconds: of this call. balanced_accuracy: None without a test. adapter_sha256: of the adapter's weights. trace: the
    traceback, where the reason is a defect of this package.
    """

    name: str
    run: str
    state: str
    seconds: float = 0.0
    balanced_accuracy: float | None = None
    adapter_sha256: str | None = None
    error: str | None = None
    trace: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def personalize_many(
    entries: Sequence[Entry],
    plan: Plan,
    *,
    engine: str = "local",
    workers: int = 1,
    progress: Progress = lambda what, done, total, last: None,
) -> list[Outcome]:
    """Learns everybody of a list and returns how it went, in the list's order.

    Args:
        entries: see `read_subject_list`.
        engine: "local" or "ray", see `workers.run_all`; on a Ray cluster all machines must see all files under the
            same paths. Adapters are the same with both, and the same as `personalize` makes of one person alone.
        workers: runs at the same time.
        progress: called as (what, done, total, the last one) when a gallery or a subject is done.

    Raises:
        PVChatError: an unknown engine, recipe or setting, or another call is at work in the same folder.
    """
    from filelock import FileLock, Timeout

    from .dataset_builder import get_recipe
    from .trainers.run import check_settings

    check_engine(engine, workers)
    get_recipe(plan.recipe)
    check_settings(plan.settings, ("1", "2"))
    plan = replace(plan, out=plan.out.resolve(), base=_absolute(plan.base), recipe=_absolute(plan.recipe))
    plan.shared.mkdir(parents=True, exist_ok=True)
    lock = FileLock(plan.out / f"{SHARED}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PVChatError(f"Another personalize-many is at work in {plan.out}; wait, or pass --out.") from error
    try:
        outcomes = _learn_all([Job(entry, plan) for entry in entries], plan, engine, workers, progress)
        # States of people's clips do not outlive the call that made them; artefacts stay for the next one.
        unfinished = any(outcome.state == "failed" for outcome in outcomes)
        shutil.rmtree(plan.shared / "features" if unfinished else plan.shared, ignore_errors=True)
        return outcomes
    finally:
        lock.release()


def _learn_all(jobs: list[Job], plan: Plan, engine: str, workers: int, progress: Progress) -> list[Outcome]:
    galleries = _shared_galleries([job for job in jobs if run_state(job.folder) != "finished"], plan)
    for done, (number, _) in enumerate(run_all(look_at_gallery, galleries, engine, workers), 1):
        progress("galleries", done, len(galleries), galleries[number][0].name)
    found: dict[int, Outcome] = {}
    for number, outcome in run_all(learn, jobs, engine, workers):
        job = jobs[number]
        found[number] = outcome or Outcome(job.entry.name, str(job.folder), "failed", error=DIED)
        progress("subjects", len(found), len(jobs), f"{job.entry.name} {found[number].state}")
    return [found[number] for number in range(len(jobs))]


def learn(job: Job) -> Outcome:
    """Runs one person to the end; what goes wrong is part of the outcome."""
    import torch

    from .cli import calm_libraries
    from .runs import personalize

    calm_libraries()
    plan, name, folder = job.plan, job.entry.name, job.folder
    start, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        if not plan.shared.is_dir():
            raise PVChatError(
                f"The machine {socket.gethostname()} does not see {plan.out}; with --engine ray, all files must be on "
                f"a disk that every machine mounts under the same path."
            )
        run = personalize(
            **subject_arguments(job),
            out=folder,
            base=plan.base,
            recipe=plan.recipe,
            profile=plan.profile,
            routing=plan.routing,
            settings=plan.settings,
            work=plan.shared / "work",
            features=plan.shared / "features",
            keep_finished=True,
            seed=plan.seed,
            command=plan.command,
        )
    except PVChatError as error:
        return Outcome(name, str(folder), "failed", _since(start), error=" ".join(str(error).split()))
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return Outcome(name, str(folder), "failed", _since(start), error=reason, trace=traceback.format_exc())
    finally:
        torch.set_num_threads(threads)
    return Outcome(
        name,
        str(folder),
        "kept" if run.kept else "learned",
        _since(start),
        None if run.scores is None else run.scores["existence"]["balanced_accuracy"],
        run.hashes["adapter"],
    )


def subject_arguments(job: Job) -> dict[str, Any]:
    """A person of the list as arguments of `personalize`. Raises PVChatError as `personalize` does for them."""
    from .cli.arguments import read_test_clips
    from .runs import given_consent

    entry = job.entry
    return {
        "reference": entry.reference,
        "name": entry.name,
        "gallery": entry.gallery,
        "test_clips": read_test_clips(entry.test),
        "consent": given_consent(entry.consent, job.plan.declare, entry.reference, entry.name),
        "noun": entry.noun,
        "box": entry.box,
        "photo": entry.photo,
    }


def check(job: Job) -> dict[str, Any]:
    """What a run would start from, without starting it: `name`, `run`, `state` ("new", "unfinished", "finished"),
    `seconds` of the reference, `gallery` (files) and `problem` (None, or why it cannot start)."""
    from .dataset_builder import SubjectSpec, get_recipe
    from .dataset_builder.backends.light.gallery import list_gallery
    from .dataset_builder.inputs import check_request
    from .runs import known_consent

    entry, recipe = job.entry, get_recipe(job.plan.recipe)
    found: dict[str, Any] = {"name": entry.name, "run": str(job.folder), "state": run_state(job.folder)}
    found |= {"seconds": None, "gallery": None, "problem": None}
    try:
        consent = known_consent(subject_arguments(job)["consent"], entry.reference)
        spec = SubjectSpec(entry.name, entry.reference, consent, entry.noun, box=entry.box, photo=entry.photo)
        info = check_request([spec], recipe, job.folder / "dataset")
        found["seconds"] = round(info.num_frames / info.fps, 1)
        found["gallery"] = None if entry.gallery is None else len(list_gallery(entry.gallery))
        if recipe.needs_others and entry.gallery is None and not consent.fictional:
            raise PVChatError("A real person needs a gallery of others, one person per file.")
    except PVChatError as error:
        found["problem"] = " ".join(str(error).split())
    return found


def look_at_gallery(what: tuple[Path, Plan]) -> None:
    """Makes what depends on a gallery only: its clips, who is in them, cut out of still and of moving pictures.

    A gallery that cannot be used is the matter of those runs that use it, and they say so.
    """
    import torch

    from .dataset_builder.backends.light.gallery import list_gallery
    from .dataset_builder.catalogue import Backends
    from .dataset_builder.engine import Engine
    from .dataset_builder.people import Footage
    from .dataset_builder.recipe import get_recipe
    from .dataset_builder.stages import Build, faces, identities, ingest, select
    from .dataset_builder.stages.common import STILL_FRAMES
    from .dataset_builder.stages.negatives import moving

    gallery, plan = what
    recipe, threads = get_recipe(plan.recipe), torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        backends = Backends(recipe)
        build = Build([], recipe, backends, Engine(plan.shared / "work", backends), plan.seed, "")
        sources = ingest(build, list_gallery(gallery), optional=True)
        people = [Footage(source, source.clip, STILL_FRAMES) for source in sources]
        moving(build, select(build, identities(build, faces(build, people, STILL_FRAMES))))
    except (PVChatError, RuntimeError):
        return
    finally:
        torch.set_num_threads(threads)


def _shared_galleries(jobs: Sequence[Job], plan: Plan) -> list[tuple[Path, Plan]]:
    """The folders that several runs will look through from end to end."""
    from .dataset_builder import get_recipe

    recipe = get_recipe(plan.recipe)
    if recipe.backends.get("gallery") != "folder" or not recipe.needs_others:
        return []
    folders = [job.entry.gallery for job in jobs if job.entry.gallery is not None]
    return [(folder, plan) for folder in dict.fromkeys(folders) if folders.count(folder) > 1]


def _absolute(name: str | None) -> str | None:
    """A file or folder here by its full path, for processes that stand elsewhere; a name stays."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else name


def _since(start: float) -> float:
    return round(time.perf_counter() - start, 2)


def default_threads(workers: int) -> int:
    """Processor threads of each of so many runs on this machine."""
    return max(1, usable_cores() // workers)
