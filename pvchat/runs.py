"""From a reference video to an adapter: dataset, stage 1, stage 2, scores, report, in one run folder.

    runs/<name>/{subject.json, dataset/, stage1/, stage2/, adapter/, report/, run.json}

The same call on an unfinished run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from .errors import PVChatError
from .files import write_json
from .passport import passport
from .run_folder import PASSPORT, RUN_FORMAT, Run, check_run_folder, finished_run
from .session import EMBEDDED_BASE


def personalize(
    reference: str | Path,
    name: str,
    *,
    base: str | Path | None = None,
    out: str | Path | None = None,
    recipe: str | Any = "light",
    gallery: str | Path | None = None,
    test_clips: Sequence[Any] = (),
    consent: str | Path | Any | None = None,
    noun: str = "person",
    box: Sequence[float] | None = None,
    photo: str | Path | None = None,
    profile: str = "light",
    routing: str = "remoh",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    wrong_adapters: Sequence[str | Path] = (),
    work: str | Path | None = None,
    features: str | Path | None = None,
    keep_finished: bool = False,
    seed: int = 0,
    progress: bool = False,
    command: str | None = None,
) -> Run:
    """Learns the person in `reference` under `name` and returns the run.

    Args:
        reference: a video in which the person is seen.
        name: the name as it will stand in questions, such as `<Nz>`.
        base: checkpoint folder or Hub name; `None` for the embedded cartoon model.
        out: run folder, by default `runs/<name>`.
        recipe: a recipe's name or a `Recipe`.
        gallery: folder of other people. May be left out for a drawn reference: then random people are drawn.
        test_clips: clips to test on, as `build_dataset` takes them; without any, nothing is scored.
        consent: a consent file or record. Not needed for a drawn person.
        box: where the person is in the first frame, in pixels, when several are seen.
        photo: or a picture of them, for recipes that find people by their faces; of several people the one who is
            longest on screen is meant when neither is given.
        profile, routing, settings: see `train_subject`.
        wrong_adapters: adapters of other subjects, for the control.
        work: folder for artefacts that several runs share.
        features: folder for encoder states that several runs share, see `train_subject`.
        keep_finished: return a finished run of the same inputs as it is, and do not score it again.

    Raises:
        PVChatError: unusable input; a run folder that holds something else or a run of other inputs.
    """
    from .dataset_builder import SubjectSpec, get_recipe, normalise_name
    from .model_card import write_adapter_card
    from .trainers.run import train_subject

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise PVChatError(
            "A launcher started several processes, but only training is shared by them: run pvchat build first, then "
            "accelerate launch -m pvchat train DATASET."
        )
    name = normalise_name(name)
    base = EMBEDDED_BASE if base is None else base
    recipe = get_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    reference = Path(reference)
    spec = SubjectSpec(name, reference, consent=known_consent(consent, reference), noun=noun, box=box, photo=photo)
    folder = Path(out) if out is not None else Path("runs") / name.strip("<>")
    inputs = {
        "name": name,
        "reference": _sha256(reference),
        "box": None if box is None else list(spec.box),
        "photo": None if photo is None else _sha256(spec.photo),
        "base": Path(base).name,
        "recipe": recipe.to_json(),
        "profile": profile,
        "routing": routing,
        "settings": {k: dict(v) for k, v in (settings or {}).items()},
        "seed": seed,
    }
    check_run_folder(folder, inputs)
    timer = _Timer()
    with timer("dataset"):
        dataset = build(
            reference,
            name,
            base=base,
            out=folder / "dataset",
            recipe=recipe,
            gallery=gallery,
            test_clips=test_clips,
            consent=spec.consent,
            noun=noun,
            box=spec.box,
            photo=spec.photo,
            work=work,
            seed=seed,
            progress=progress,
        )
    hashes = {"dataset": dataset.manifest["dataset_hash"]}
    if keep_finished and (run := finished_run(folder, hashes["dataset"])) is not None:
        return run
    write_json(folder / "subject.json", spec.to_json() | spec.file_names())
    record = {"format": RUN_FORMAT, "inputs": inputs, **passport(command or "pvchat.personalize()", inputs, seed)}
    write_json(folder / PASSPORT, record | {"state": "unfinished", "hashes": hashes, "seconds": {}})
    train_subject(
        base,
        dataset,
        folder,
        profile=profile,
        routing=routing,
        seed=seed,
        settings=settings,
        features=features,
        progress=progress,
    )
    for stage in ("stage1", "stage2"):
        timer.add(stage, json.loads((folder / stage / "stage.json").read_text(encoding="utf-8"))["seconds"])
    scores = None
    if dataset.split("test"):
        with timer("evaluate"):
            scores = evaluate_adapter(
                folder / "adapter",
                base=base,
                wrong_adapters=wrong_adapters,
                seed=seed,
                progress=progress,
                command=command,
            )["scores"]
    seconds = timer.total()
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    hashes["adapter"] = hashlib.sha256(adapter).hexdigest()
    write_json(folder / PASSPORT, record | {"state": "finished", "hashes": hashes, "seconds": seconds})
    write_adapter_card(folder / "adapter")
    return Run(folder, seconds, hashes, scores)


def build(
    reference: str | Path,
    name: str,
    *,
    base: str | Path | None = None,
    out: str | Path,
    recipe: str | Any = "light",
    gallery: str | Path | None = None,
    test_clips: Sequence[Any] = (),
    consent: str | Path | Any | None = None,
    noun: str = "person",
    box: Sequence[float] | None = None,
    photo: str | Path | None = None,
    also: Sequence[tuple[str, Any, Any]] = (),
    strangers: str | Path | None = None,
    drivers: str | Path | None = None,
    work: str | Path | None = None,
    only: str | None = None,
    licence_policy: str = "research",
    engine: str = "local",
    shard: Any | None = None,
    resume: bool = False,
    seed: int = 0,
    progress: bool = False,
):
    """Builds the dataset of a person and returns it (a `LocalDataset`); what is not said here, as in `personalize`.

    Args:
        also: other people of the video to learn: (name, box or None, consent file or record, None for a drawn person).
        strangers: where random people come from, if not from the gallery.
        drivers: folder with a driving clip per motion (yes.mp4, ...), for animators that take one.
        only: stop after this stage and return a `Stopped`.
        licence_policy: "permissive" refuses backends that are not for any use.
        engine, shard, resume: see `build_dataset`; a shard returns a `Stopped`.
    """
    from .dataset_builder import SubjectSpec, build_dataset, get_recipe

    reference, out = Path(reference), Path(out)
    recipe = get_recipe(recipe) if isinstance(recipe, str | Path) else recipe
    recipe = recipe if drivers is None else recipe.with_drivers(drivers)
    specs = [SubjectSpec(name, reference, consent=known_consent(consent, reference), noun=noun, box=box, photo=photo)]
    specs += [SubjectSpec(who, reference, known_consent(record, reference), box=place) for who, place, record in also]
    writer = None if "writer" in recipe.backends else partial(_writer, EMBEDDED_BASE if base is None else base)
    with stage_bars(progress) as bars:
        return build_dataset(
            specs,
            recipe,
            out,
            gallery=partial(_gallery, gallery, reference, recipe, out.parent, seed, progress),
            strangers=strangers,
            writer=writer,
            test_clips=test_clips,
            seed=seed,
            progress=bars,
            work=work,
            only=only,
            licence_policy=licence_policy,
            engine=engine,
            shard=shard,
            resume=resume,
        )


def evaluate_adapter(
    adapter: str | Path,
    *,
    data: str | Path | None = None,
    base: str | Path | None = None,
    out: str | Path | None = None,
    wrong_adapters: Sequence[str | Path] = (),
    seed: int = 0,
    progress: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Scores an adapter on the test split of a dataset and writes the report; one beside the adapter is in its card.

    Args:
        adapter: adapter folder.
        data: dataset folder; the one beside the adapter by default.
        out: folder of scores, answers and report; `report` beside the adapter by default.

    Returns:
        `run` (folder), `seconds`, `scores` (content of scores.json) and `report` (path of the page).

    Raises:
        PVChatError: no such dataset, or it has no test split.
    """
    from .dataset_builder import load_local
    from .evaluation import evaluate, write_report
    from .evaluation.head_activation import write_head_activation
    from .model_card import write_adapter_card
    from .session import VideoChat

    start = time.perf_counter()
    run = Path(adapter).parent
    out = run / "report" if out is None else Path(out)
    dataset = load_local(run / "dataset" if data is None else data)
    chat = VideoChat.from_pretrained(base, adapter)
    scores = evaluate(
        chat,
        dataset,
        out,
        wrong_adapters=list(wrong_adapters),
        seed=seed,
        progress=progress,
        command=command or "pvchat.evaluate_adapter()",
    )
    write_head_activation(chat, dataset, out, seed=seed)
    report = write_report(out, dataset, run)
    if out == run / "report":  # where the card looks for scores
        write_adapter_card(adapter)
    seconds = round(time.perf_counter() - start, 2)
    return {
        "run": str(run),
        "seconds": {"evaluate": seconds, "total": seconds},
        "scores": scores,
        "report": str(report),
    }


def given_consent(path: str | Path | None, i_have_consent: bool, reference: Path, name: str) -> Any | None:
    """The consent record of a command: from a file, written from a declaration, or None."""
    from .dataset_builder.consent import declare_consent, read_consent

    if path is not None:
        return read_consent(path)
    if not i_have_consent:
        return None
    return declare_consent(name, f"train a model that recognises this person, from {reference.name}")


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise PVChatError(f"{path} cannot be read: {error.strerror}.") from error


def known_consent(consent: Any, reference: Path) -> Any | None:
    """The record of a file or as it is; a drawn person needs none."""
    from .dataset_builder import ConsentRecord
    from .dataset_builder.cartoon import is_drawn
    from .dataset_builder.consent import read_consent

    if isinstance(consent, str | Path):
        consent = read_consent(consent)
    if consent is None and is_drawn(reference):
        return ConsentRecord.for_fiction()
    return consent


def _gallery(gallery, reference: Path, recipe, folder: Path, seed: int, progress: bool) -> Path | None:
    from .dataset_builder.cartoon import is_drawn, write_population

    if gallery is not None or not recipe.needs_others:
        return gallery
    if not is_drawn(reference):
        raise PVChatError(
            "The model must also see people who are not the subject: pass --gallery FOLDER with pictures or videos of "
            "others, one person per file."
        )
    with stage_bars(progress) as bars:
        write_population(folder / "gallery", seed, progress=partial(bars, "gallery"))
    return folder / "gallery"


def _writer(base: str | Path):
    from .session import VLMWriter

    return VLMWriter(base)


class _Timer:
    """Seconds by part."""

    def __init__(self):
        self.parts: dict[str, float] = {}

    def __call__(self, part: str) -> _Timer:
        self.part, self.start = part, time.perf_counter()
        return self

    def __enter__(self) -> _Timer:
        return self

    def __exit__(self, *error) -> None:
        self.add(self.part, time.perf_counter() - self.start)

    def add(self, part: str, seconds: float) -> None:
        self.parts[part] = round(seconds, 2)

    def total(self) -> dict[str, float]:
        return {**self.parts, "total": round(sum(self.parts.values()), 2)}


@contextmanager
def stage_bars(shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `show(stage, done, total)`, which keeps one progress bar per stage; it shows nothing if not `shown`."""
    from tqdm.auto import tqdm

    bars: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=stage, unit="item", leave=False, disable=not shown)
        bar = bars[stage]
        bar.total, bar.n = total, done
        bar.refresh()

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
