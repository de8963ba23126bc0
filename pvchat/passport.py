"""The passport of a result: what produced it, with which settings, versions and hardware.

It holds nothing that names a machine or a user: paths are cut to their last part.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import __version__

LIBRARIES = ("torch", "transformers", "peft", "trl", "datasets", "numpy", "av", "sacrebleu", "bert-score")
# A path from the root, the home folder or a drive, wherever it stands in a text; not the "//" of an address.
_PATH = re.compile(r"(?<![\w.:/~-])(?:~|[A-Za-z]:(?=[\\/]))?[\\/](?![\\/])[^\s'\",;=()\[\]{}]*")


def passport(command: str | Sequence[str], config: dict[str, Any], seed: int) -> dict[str, Any]:
    """Everything that is needed to repeat and to compare a result.

    Args:
        command: as typed, in one text or in words.
        config: the settings that were in force; JSON-able values and paths.
        seed: of everything that was drawn.

    Returns:
        `command`, `config`, `seed`, `created` (UTC, seconds), `versions` (None: not installed), `hardware`.
    """
    line = command if isinstance(command, str) else shlex.join(command)
    return {
        "command": _without_paths(line),
        "config": _without_paths(config),
        "seed": seed,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": versions(),
        "hardware": hardware(),
    }


def passport_line(about: dict[str, Any]) -> str:
    """The passport in one line of Markdown, for the top of a page: command, seed, day, hardware, versions."""
    machine = about["hardware"]
    parts = [f"{machine['cpu']}, {machine['cores']} cores", *(gpu["name"] for gpu in machine["gpus"])]
    known = ", ".join(f"{name} {about['versions'][name]}" for name in ("pvchat", "torch") if about["versions"][name])
    return " · ".join([f"`{about['command']}`", f"seed {about['seed']}", about["created"][:10], *parts, known])


def versions() -> dict[str, str | None]:
    """Version of Python, of this package and of the libraries that results depend on."""
    found: dict[str, str | None] = {"python": platform.python_version(), "pvchat": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def hardware() -> dict[str, Any]:
    """Processor model, usable cores, memory in GiB, and the GPUs by name with their memory in GiB."""
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "gpus": [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
    }


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _without_paths(value: Any) -> Any:
    """The same JSON with every absolute path cut to its last part."""
    if isinstance(value, dict):
        return {str(key): _without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        return _PATH.sub(lambda match: re.split(r"[\\/]", match[0].rstrip("\\/"))[-1], value)
    return value
