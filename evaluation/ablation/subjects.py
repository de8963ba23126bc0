"""Whom an ablation is trained on: members of the cartoon cast, or datasets that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...dataset_builder import get_recipe, load_local
from ...dataset_builder.cartoon import CastMember, oracle_source, write_gallery, write_reference, write_test_clips
from ...dataset_builder.merge import load_subject, parts_of
from ...dataset_builder.recipe import Recipe, oracle_recipe
from ...errors import PVChatError
from ...runs import build


@dataclass(frozen=True)
class Subject:
    """One subject of a built dataset; `hash` of its part of the dataset."""

    name: str
    folder: str
    hash: str

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.name.strip('<>')}-{self.hash[:8]}"

    def dataset(self):
        return load_subject(self.folder, self.name)


@dataclass(frozen=True)
class CastFiles:
    """What a user would have of a cast member, and a fair test; see `dataset_builder.cartoon.world`."""

    reference: Path
    gallery: Path
    test_clips: list[tuple[Path, bool, str, dict[str, str]]]


def write_cast_files(member: CastMember, folder: Path, seed: int, positives: int) -> CastFiles:
    """Renders the files of a member; those that are there are kept. positives: test clips that show the member."""
    folder.mkdir(parents=True, exist_ok=True)
    reference = folder / "reference.mp4"
    if not reference.exists():
        write_reference(member, reference, seed)
    return CastFiles(
        reference,
        write_gallery(member, folder / "gallery", seed),
        write_test_clips(member, folder / "test", seed, positives=positives),
    )


def cast_recipe(name: str, member: CastMember, seed: int) -> Recipe:
    """A recipe by its name; `oracle` lets the renderer play a perfect generator of this member."""
    if name == "oracle":
        return oracle_recipe(oracle_source(member, seed), f"renderer:{member.name}:{seed}")
    return get_recipe(name)


def build_cast_dataset(
    member: CastMember, folder: Path, *, base: str, recipe: str, seed: int, positives: int
) -> Subject:
    """Builds (or finds) the dataset of a cast member from one rendered clip."""
    files = write_cast_files(member, folder, seed, positives)
    dataset = build(
        files.reference,
        member.name,
        base=base,
        out=folder / "dataset",
        recipe=cast_recipe(recipe, member, seed),
        gallery=files.gallery,
        test_clips=files.test_clips,
        work=folder / "work",
        seed=seed,
    )
    return Subject(member.name, str(folder / "dataset"), dataset.hash)


def read_subjects(folders: Sequence[str | Path]) -> list[Subject]:
    """The subjects of built datasets; a merged dataset has several.

    Raises:
        PVChatError: a folder is no dataset, or a subject has no clips to train or to test on.
    """
    subjects = []
    for folder in folders:
        dataset = load_local(folder)
        for part in parts_of(dataset.manifest):
            subjects.append(Subject(part["subject"], str(folder), part["dataset_hash"]))
    for subject in subjects:
        dataset = subject.dataset()
        if not dataset.split("train") or not any(_existence(video) for video in dataset.split("test")):
            raise PVChatError(
                f"The dataset {subject.folder} has nothing to train {subject.name} on, or no existence question in "
                f"its test split; build it with test clips."
            )
    return subjects


def _existence(video: Any) -> bool:
    return any(qa.category == "existence" for qa in video.qa)
