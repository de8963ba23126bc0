"""From one reference video of a person to a dataset of clips and questions.

    spec = SubjectSpec("<Nz>", "clip.mp4", consent=ConsentRecord("N. Z.", "2026-01-31", "train a model for me"))
    dataset = build_dataset(spec, RECIPES["light"], "out/nz", gallery="others/")

Importing this package is cheap: names are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "records": ("ConsentRecord", "SubjectSpec", "Clip", "QA", "QARow", "VideoRow", "Reject", "normalise_name"),
    "recipe": ("Recipe", "RecipeRow", "Questions", "RECIPES", "DRIVERS", "get_recipe", "oracle_recipe"),
    "engine": ("Engine", "Stage", "Task", "Artefact", "Rejected"),
    "questions": ("Bank", "load_bank"),
    "refine": ("RuleRefiner",),
    "build": ("build_dataset", "TestClip", "Stopped"),
    "catalogue": ("Backends", "check_backends", "check_licences"),
    "estimate": ("costs",),
    "consent": ("read_consent", "require_consent"),
    "merge": ("merge_datasets", "load_subject", "restore_clips"),
    "publish": ("push_dataset",),
    "assemble": ("LocalDataset", "assemble_dataset", "load_local", "dataset_hash", "FORMAT_VERSION"),
    "builder": ("PVChatDataset",),
    "authors_json": ("read_authors_json", "write_authors_json"),
    "video_io": ("probe_video", "read_video", "write_video", "VideoInfo"),
}
_MODULES = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
