"""Evaluation: does the model know the subject, and would anything simpler do as well?

    scores = evaluate(chat, load_local("runs/nz/dataset"), "runs/nz/report", wrong_adapters=["runs/lena/adapter"])

Importing this package is cheap: names are loaded when they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "presence": ("parse_presence",),
    "scoring": ("score_answers", "score_lines", "read_lines", "rescore"),
    "runner": ("evaluate",),
    "findings": ("verdict",),
    "table": ("scores_table",),
    "lmms_eval": ("export_lmms_eval",),
    "modules": ("load_metric", "metric_path"),
    "report": ("write_report",),
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
