"""Checkpoint folders too large for memory: names and shapes at once, values file by file.

Reads `model.safetensors` and `pytorch_model.bin`, whole or in shards, and single files of both kinds. Writes sharded
safetensors into a folder that appears when it is complete.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from .errors import PVChatError, first_line
from .files import write_json

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WHOLE = ("model.safetensors", "pytorch_model.bin")
PICKLES = (".bin", ".pt", ".pth")
PLAN = ".plan.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Checkpoint:
    """The tensors of a checkpoint.

    Args:
        source: a folder, or one file.

    Attributes:
        folder: where it lies; `config.json` and the tokenizer are looked for there.
        meta: name -> tensor on the meta device, in the order of the files.

    Raises:
        PVChatError: no weights are there, a file is missing or damaged, holds something else than tensors, or lacks
            tensors that the index promises.
    """

    def __init__(self, source: Path):
        self.folder = source if source.is_dir() else source.parent
        promised = _promised(source)
        self.meta: dict[str, torch.Tensor] = {}
        self._files: dict[str, Path] = {}
        for path, names in promised.items():
            found = _read_meta(path)
            if absent := sorted(set(names or found) - set(found)):
                raise PVChatError(
                    f"{path.name} lacks {len(absent)} tensor(s) of its index, first {absent[0]}; fetch it again."
                )
            if twice := sorted(set(found) & set(self.meta)):
                raise PVChatError(
                    f"{twice[0]} is in {self._files[twice[0]].name} and in {path.name}; remove one file."
                )
            self.meta |= found
            self._files |= dict.fromkeys(found, path)

    @property
    def config(self) -> dict[str, Any]:
        """`config.json`; empty if there is none."""
        path = self.folder / "config.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise PVChatError(f"{path} cannot be read as JSON ({error}); fetch it again.") from error

    def state(self) -> list[list[Any]]:
        """Name, bytes and time of every file: another list means other weights."""
        files = sorted(set(self._files.values()))
        return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Values of some tensors. Files are opened anew for each call, so that pages read before are let go."""
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self._files[name], []).append(name)
        found: dict[str, torch.Tensor] = {}
        for path, inside in wanted.items():
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    found |= {name: file.get_tensor(name) for name in inside}
            else:
                tensors = _load_pickle(path, "cpu")
                found |= {name: tensors[name] for name in inside}
        return found


def _promised(source: Path) -> dict[Path, list[str] | None]:
    """The files of a checkpoint -> the names that an index expects of each, or `None` without an index."""
    if source.is_file():
        if source.suffix != ".safetensors" and source.suffix not in PICKLES:
            raise PVChatError(f"{source} is no checkpoint: its name must end in .safetensors, {', '.join(PICKLES)}.")
        return {source: None}
    for name in INDEXES:
        if (source / name).exists():
            weight_map = json.loads((source / name).read_text(encoding="utf-8")).get("weight_map", {})
            shards: dict[Path, list[str]] = {}
            for tensor, file in weight_map.items():
                shards.setdefault(source / Path(file).name, []).append(tensor)
            missing = [path.name for path in shards if not path.exists()]
            if missing or not shards:
                raise PVChatError(
                    f"{source} lacks {len(missing)} of {len(shards)} weight files that {name} lists"
                    f"{', first ' + min(missing) if missing else ''}; download them."
                )
            return dict(sorted(shards.items()))
    for name in WHOLE:
        if (source / name).exists():
            return {source / name: None}
    raise PVChatError(
        f"{source} has no weights: looked for {', '.join((*INDEXES, *WHOLE))}. Pass another folder or a file."
    )


def _read_meta(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix != ".safetensors":
        return _load_pickle(path, "meta")
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            return {
                name: torch.empty(view.get_shape(), dtype=DTYPES[view.get_dtype()], device="meta")
                for name, view in slices.items()
            }
    except (SafetensorError, OSError, KeyError) as error:
        raise PVChatError(f"{path} cannot be read as safetensors ({error}); fetch it again.") from error


def _load_pickle(path: Path, device: str) -> dict[str, torch.Tensor]:
    """Tensors of a file that `torch.save` wrote, mapped, not read. Code in it is refused, not run."""
    try:
        tensors = torch.load(path, map_location=device, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise PVChatError(
            f"{path} holds more than tensors, or is damaged; only plain state dicts are read."
        ) from error
    except (RuntimeError, OSError, EOFError) as error:
        raise PVChatError(f"{path} cannot be read ({first_line(error)}); fetch it again, or save it anew.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise PVChatError(f"{path} is no state dict: it must map names to tensors and nothing else.")
    return dict(tensors)


def write_checkpoint(
    out: Path,
    planned: Mapping[str, torch.Tensor],
    values: Callable[[list[str]], Mapping[str, torch.Tensor]],
    finish: Callable[[Path], None],
    max_shard_size: str,
    key: Any,
    progress: bool,
) -> list[str]:
    """Writes shard after shard into `.NAME.partial` beside `out`, then renames the folder.

    Args:
        planned: name -> tensor on the meta device.
        values: some of these names -> their values; at most one shard is asked for at a time.
        finish: writes everything else into the folder.
        key: JSON value of everything that decides the content; shards that an earlier call with the same key wrote
            are kept.

    Returns:
        The weight files' names.

    Raises:
        PVChatError: the disk is too small.
    """
    shards = split_state_dict_into_shards_factory(
        dict(planned),
        get_storage_size=lambda tensor: tensor.numel() * tensor.element_size(),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    partial = out.with_name(f".{out.name}.partial")
    plan = json.loads(json.dumps({"key": key, "files": shards.filename_to_tensors}))
    if not (partial / PLAN).exists() or json.loads((partial / PLAN).read_text(encoding="utf-8")) != plan:
        shutil.rmtree(partial, ignore_errors=True)
        write_json(partial / PLAN, plan)
    missing = {file: names for file, names in shards.filename_to_tensors.items() if not (partial / file).exists()}
    size = sum(planned[name].numel() * planned[name].element_size() for names in missing.values() for name in names)
    if (free := shutil.disk_usage(partial).free) < size:
        raise PVChatError(f"{out.parent} has {free / 1e9:.1f} GB free, {size / 1e9:.1f} GB are needed; free some.")
    with tqdm(total=size, desc="convert", unit="B", unit_scale=True, disable=not progress) as bar:
        for file, names in missing.items():
            found = values(names)
            tensors = {name: found[name].contiguous() for name in names}
            save_file(tensors, partial / f"{file}.tmp", metadata={"format": "pt"})
            (partial / f"{file}.tmp").chmod(0o644)  # safetensors writes for the owner alone
            os.replace(partial / f"{file}.tmp", partial / file)
            bar.update(sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))
            del found, tensors  # before the next shard is read
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_json(partial / INDEXES[0], index)
    finish(partial)
    (partial / PLAN).unlink()
    if out.exists():
        out.rmdir()  # checked to be empty before
    os.replace(partial, out)
    return list(shards.filename_to_tensors)
