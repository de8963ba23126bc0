"""All jobs of some ablation tables: what there is to do, how long it takes, doing it, and the tables.

    <out>/subjects/<name>/     reference, gallery, test clips and dataset of a cast member
    <out>/features/            encoder states of all clips, shared by all jobs
    <out>/runs/<subject>/seed-<n>/<variant>/
    <out>/ablation_<table>.{json,md}

A variant that stands in several tables is trained once; a finished job is not done again.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ...base_model import load_base
from ...dataset_builder import get_recipe
from ...dataset_builder.cartoon import CastMember, cast
from ...errors import PVChatError
from ...files import write_json, write_text
from ...passport import passport
from ...session import EMBEDDED_BASE
from ...trainers.adapter import AdapterSettings, base_hash
from ...trainers.run import base_settings, check_settings, merged_settings
from ..scoring import read_lines
from .jobs import Job, finished, run_job
from .subjects import Subject, build_cast_dataset, read_subjects
from .tables import markdown, table_of
from .variants import FULL, Table, tables_for

OWN = ("subjects", "features", "runs")
# Of a demo run with the embedded base, one thread of an AMD EPYC that other work shared (dataset 61 s, stages 34 s,
# and about 10 s for 320 questions); used until jobs of the study itself are finished.
DATASET_SECONDS, JOB_SECONDS = 61.0, 45.0

Run = Callable[..., Iterator[Any]]
Progress = Callable[[str, int, int, str], None]  # (what, done, total, the last one)


@dataclass(frozen=True)
class Study:
    """What to train and on whom.

    Args:
        tables: names, see `variants.TABLES`, or tables of one's own.
        out: folder of everything; a study in it goes on where it stopped.
        subjects: how many of the cartoon cast, when there is no `data`.
        seeds: how many; of training alone, each subject's dataset is the same for all.
        data: folders of built datasets, in place of the cast.
        base: checkpoint folder or Hub name; None for the embedded base.
        recipe: of the cast's datasets; `oracle` stands for a perfect generator. positives: test clips of each member.
        profile, settings: as in `train_subject`.
        seed: picks the cast, and is the first seed of training.
        workers, threads: jobs at a time, and processor threads of each (None: PyTorch's choice).
    """

    tables: tuple[str | Table, ...]
    out: Path
    subjects: int = 8
    seeds: int = 3
    data: tuple[Path, ...] = ()
    base: str | None = None
    recipe: str = "light"
    positives: int = 20
    profile: str = "light"
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    seed: int = 0
    workers: int = 1
    threads: int | None = None

    def __post_init__(self):
        for name in ("subjects", "seeds", "positives", "workers"):
            if getattr(self, name) < 1:
                raise PVChatError(f"{name} must be at least 1, got {getattr(self, name)}.")
        check_settings(self.settings, ("1", "2"))
        if not self.data and self.recipe != "oracle":
            get_recipe(self.recipe)
        _check_folder(self.out)

    @property
    def checkpoint(self) -> str:
        return str(EMBEDDED_BASE if self.base is None else self.base)

    @property
    def training_seeds(self) -> list[int]:
        return list(range(self.seed, self.seed + self.seeds))

    def members(self) -> list[CastMember]:
        """The cast members that are learned; none when datasets are given."""
        return [] if self.data else cast(self.subjects, seed=self.seed)


def plan(study: Study) -> dict[str, Any]:
    """What a study would do: `tables`, `jobs`, `finished`, `datasets` to build, and `seconds` with their `source`.

    The time of a job is the median of this study's finished ones; before there are any, what was measured with the
    embedded base; None for another base.

    Raises:
        PVChatError: the base, a dataset or a table is unknown.
    """
    tables, fingerprint = _about_base(study)
    variants = _variants(tables)
    members = study.members()
    unbuilt = [m for m in members if not (_member_folder(study, m) / "dataset" / "dataset.json").exists()]
    known = read_subjects(study.data) if study.data else []
    count = len(known) + len(members)
    total = len(variants) * count * study.seeds
    subjects = known + [_built(study, member) for member in members if member not in unbuilt]
    results = [finished(job) for job in _jobs(study, tables, fingerprint, subjects)]
    done = [result for result in results if result is not None]
    if done:
        each, source = statistics.median(sum(r["seconds"].values()) for r in done), "the finished jobs of this study"
    elif study.base is None:
        each, source = JOB_SECONDS, "one thread of an AMD EPYC, with the default settings"
    else:
        each, source = None, "unknown until the first job is done"
    seconds = None
    if each is not None:
        seconds = ((total - len(done)) * each + len(unbuilt) * DATASET_SECONDS) / study.workers
    return {
        "tables": {table.name: [row.title for row in table.rows] for table in tables},
        "variants": [variant.name for variant in variants],
        "subjects": count,
        "seeds": study.training_seeds,
        "jobs": total,
        "finished": len(done),
        "datasets": len(unbuilt),
        "seconds_per_job": each,
        "seconds": seconds,
        "source": source,
    }


def run_study(
    study: Study,
    *,
    command: str = "pvchat.evaluation.ablation.study.run_study()",
    write: str | Path | None = None,
    progress: Progress = lambda what, done, total, last: None,
) -> dict[str, Any]:
    """Trains what is not trained yet and returns the tables by name, as `table_of` does, each with its passport.

    They are also written to `out`, and to the folder `write`, as JSON and Markdown.

    Raises:
        PVChatError: something that is asked for is unknown or unusable.
    """
    tables, fingerprint = _about_base(study)
    subjects = read_subjects(study.data) if study.data else []
    with _workers(study) as run:
        build = partial(_build, study=study)
        for number, (member, subject) in enumerate(run(build, study.members()), 1):
            subjects.append(subject)
            progress("datasets", number, study.subjects, member.name)
        subjects.sort(key=lambda subject: subject.key)
        jobs = _jobs(study, tables, fingerprint, subjects)
        results: dict[str, list[dict[str, Any]]] = {}
        for number, (job, result) in enumerate(run(run_job, jobs), 1):
            results.setdefault(job.variant.name, []).append(result)
            progress("jobs", number, len(jobs), f"{job.title} {result['scores']['balanced_accuracy']:.3f}")
    for own in results.values():
        own.sort(key=lambda result: (result["subject"], result["seed"]))
    lines = {
        name: [
            line
            for job in jobs
            if job.variant.name == name
            for line in read_lines(job.folder / "answers.jsonl")
        ]
        for name in results
    }  # fmt: skip
    about = passport(command, _config(study, subjects), study.seed)
    found = {}
    for table in tables:
        found[table.name] = table_of(table, results, lines, study.seed) | {"passport": about}
        for folder in filter(None, (study.out, write)):
            write_json(Path(folder) / f"ablation_{table.name}.json", found[table.name])
            write_text(Path(folder) / f"ablation_{table.name}.md", markdown(found[table.name]))
    return found


def _about_base(study: Study) -> tuple[list[Table], str]:
    """The tables, which depend on the base's number of subject tokens, and the hash of its weights."""
    model, _ = load_base(study.checkpoint)
    return tables_for(study.tables, model.config.num_subject_tokens), base_hash(model)


def _variants(tables: Sequence[Table]):
    """The variants of all tables, each once, the full system first."""
    found = {FULL.name: FULL} | {row.variant.name: row.variant for table in tables for row in table.rows}
    return list(found.values())


def _jobs(study: Study, tables: Sequence[Table], fingerprint: str, subjects: Sequence[Subject]) -> list[Job]:
    return [
        Job(
            variant=variant,
            subject=subject,
            seed=seed,
            base=study.checkpoint,
            base_hash=fingerprint,
            profile=study.profile,
            settings=study.settings,
            folder=study.out / "runs" / subject.key / f"seed-{seed}" / variant.name,
            features=study.out / "features",
        )
        for seed in study.training_seeds
        for subject in subjects
        for variant in _variants(tables)
    ]


def _member_folder(study: Study, member: CastMember) -> Path:
    return study.out / "subjects" / member.name.strip("<>")


def _build(member: CastMember, study: Study) -> Subject:
    return build_cast_dataset(
        member,
        _member_folder(study, member),
        base=study.checkpoint,
        recipe=study.recipe,
        seed=study.seed,
        positives=study.positives,
    )


def _built(study: Study, member: CastMember) -> Subject:
    return read_subjects([_member_folder(study, member) / "dataset"])[0]


@contextmanager
def _workers(study: Study) -> Iterator[Run]:
    """Yields `run(function, items)`, an iterator of (item, result) in the order in which they are done."""
    if study.workers == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(study.threads or before)
        try:
            yield lambda function, items: ((item, function(item)) for item in items)
        finally:
            torch.set_num_threads(before)
        return
    pool = ProcessPoolExecutor(study.workers, get_context("spawn"), _start_worker, (study.threads,))

    def run(function, items):
        futures: dict[Future, Any] = {pool.submit(function, item): item for item in items}
        return ((futures[future], future.result()) for future in as_completed(futures))

    try:
        yield run
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, what runs ends and the rest is left


def _start_worker(threads: int | None) -> None:
    from ...cli import calm_libraries

    calm_libraries()
    if threads is not None:
        torch.set_num_threads(threads)


def _config(study: Study, subjects: Sequence[Subject]) -> dict[str, Any]:
    settings = merged_settings(base_settings(study.checkpoint), study.settings)
    shape = AdapterSettings(**{"profile": study.profile} | settings["adapter"])
    init = {"reference": "the reference clip", "base": "the base's own"}[shape.subject_init]
    data = "Given datasets" if study.data else f"Cartoon cast, recipe {study.recipe}"
    return {
        "data": data,
        "subjects": len(subjects),
        "seeds": study.training_seeds,
        "base": Path(study.checkpoint).name,
        "profile": study.profile,
        "settings": settings,
        "subject_init": f"subject tokens start from {init}",
        "datasets": {subject.key: subject.hash for subject in subjects},
        "workers": study.workers,
        "threads": study.threads,
    }


def _check_folder(out: Path) -> None:
    """Raises PVChatError when the folder holds something else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise PVChatError(f"The output folder {out} is a file; pass --out with a new folder.")
    others = sorted(p.name for p in out.iterdir() if p.name not in OWN and not p.name.startswith("ablation_"))
    if others:
        raise PVChatError(f"The folder {out} holds something else ({others[0]}); pass --out with a new folder.")
