"""Checkpoints of the authors and of InternVideo2-Chat -> a folder of this package, and back.

    convert_checkpoint("OpenGVLab/InternVideo2_chat_8B_HD", "base", tokenizer="mistralai/Mistral-7B-Instruct-v0.3")
    convert_checkpoint("base", "theirs", to="authors")

Values pass through memory one shard at a time; nothing is read before everything is known to fit.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from .checkpoint_files import Checkpoint, write_checkpoint
from .errors import PVChatError, first_line
from .files import write_json
from .model_card import write_converted_card
from .modeling_pvchat import PVChatConfig, PVChatForConditionalGeneration, PVChatProcessor, PVChatVideoProcessor
from .modeling_pvchat.convert_back_pvchat import authors_config, to_authors_state_dict, unused_authors_tensors
from .modeling_pvchat.convert_pvchat import (
    LORA_ALPHA,
    LORA_RANK,
    config_from_reference,
    convert_state_dict,
    dead_names,
    to_reference_names,
)
from .modeling_pvchat.processing_pvchat import SUBJECT_TOKEN, VIDEO_TOKEN

DIRECTIONS = ("pvchat", "authors")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TILES = {"2x1": (2, 1), "none": None}
MAX_SHARD_SIZE = "1GB"
HUB_FILES = ["*.json", "*.safetensors", "*.bin", "*.model", "*.jinja", "*.txt"]
SUBJECT_TOKENS = "model.subject_tokens.weight"
VOCABULARY = ("model.language_model.embed_tokens.weight", "lm_head.weight")
# For the trainers: a step of one clip that recomputes activations fits 24 GB, and where subject tokens start from
# nothing, four times as many steps of a quarter of the size learn more (docs/training_cost.md).
TRAINING = {"gradient_checkpointing": True, "per_device_train_batch_size": 1}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_NOT_HD = re.compile(r"internvideo2[-_]chat[-_]8b", re.IGNORECASE)


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    to: str = "pvchat",
    tokenizer: str | Path | None = None,
    tiles: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
    seed: int = 0,
    dry_run: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Converts a checkpoint. What a killed call has finished is kept for the next one with the same arguments.

    A folder of this package gets a README.md, which names the licences of what was converted.

    Args:
        source: a folder, a file (`pytorch_model.bin`, `*.safetensors`), or a name on the Hub, which is downloaded.
        out: the folder to write; must not exist, or be empty.
        to: `"pvchat"`, or `"authors"` for the way back.
        tokenizer: folder or Hub name of the language model's tokenizer (Mistral-7B-Instruct-v0.3); `None` looks for
            it beside the weights; `"none"` writes no processor.
        tiles: `"2x1"` (the HD model and the authors') or `"none"` (one view); `None` decides by the source's name.
        dtype: of all weights, a key of `DTYPES`; `None` keeps each as it is.
        max_shard_size: of a weight file; about twice as much memory is used.
        seed: of the subject tokens, if the checkpoint has none.

    Returns:
        `source`, `out`, `to`, `tensors`, `bytes`, `files`, `dropped` (name -> reason), `made` (name -> how), `merged`
        (number of LoRA pairs), `tiles`, `dry_run`.

    Raises:
        PVChatError: the source cannot be read, has unknown, missing or ill-shaped parameters (all are named), has no
            tokenizer, or `out` is not empty.
    """
    out = Path(out)
    if to not in DIRECTIONS:
        raise PVChatError(f"A checkpoint is converted to one of {', '.join(DIRECTIONS)}, got {to!r}.")
    if tiles is not None and tiles not in TILES:
        raise PVChatError(f"tiles must be one of {', '.join(TILES)}, got {tiles!r}.")
    if dtype is not None and dtype not in DTYPES:
        raise PVChatError(f"The dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PVChatError(f"{out} exists and is not an empty folder; pass a new one.")
    checkpoint = Checkpoint(find_source(source))
    is_ours = checkpoint.config.get("model_type") == PVChatConfig.model_type
    if is_ours != (to == "authors"):
        kind = (
            "already is a checkpoint of pvchat; --to authors converts it back" if is_ours else "is not one of pvchat"
        )
        raise PVChatError(f"{source} {kind}.")
    try:
        if to == "authors":
            job: ToAuthors | ToPVChat = ToAuthors(checkpoint, DTYPES.get(dtype))
        else:
            grid = TILES[tiles or guess_tiles(str(source))]
            job = ToPVChat(checkpoint, str(tokenizer or checkpoint.folder), grid, DTYPES.get(dtype), seed)
    except PVChatError:
        raise
    except ValueError as error:  # the name tables know nothing of this package's errors
        raise PVChatError(f"{source} cannot be converted: {error}") from error
    report = {
        "source": Path(source).name if Path(source).exists() else str(source),
        "out": str(out),
        "to": to,
        "tensors": len(job.planned),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in job.planned.values()),
        "files": [],
        "dropped": job.dropped,
        "made": job.made,
        "merged": job.merged,
        "tiles": "none" if job.config.tile_grid is None else "{}x{}".format(*job.config.tile_grid),
        "dry_run": dry_run,
    }
    if dry_run:
        return report

    def finish(folder: Path) -> None:
        job.finish(folder)
        if to == "pvchat":
            write_converted_card(folder, report, out.name)

    key = [checkpoint.state(), to, report["tiles"], dtype, seed]
    files = write_checkpoint(out, job.planned, job.values, finish, max_shard_size, key, progress=progress)
    return report | {"files": files}


def find_source(source: str | Path) -> Path:
    """The local path of a checkpoint; a Hub name is downloaded (or found in the cache).

    Raises:
        PVChatError: there is no such path, and no such repository within reach.
    """
    path = Path(source)
    if path.exists():
        return path
    if not _HUB_NAME.fullmatch(str(source)):
        raise PVChatError(f"There is no {source}; pass a checkpoint folder, a weight file or a Hub name (USER/NAME).")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(str(source), allow_patterns=HUB_FILES))
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise PVChatError(
            f"{source} is no folder here and could not be fetched from the Hub ({first_line(error, 200)}); log in "
            f"with `hf auth login` if it is gated, or pass a folder."
        ) from error


def guess_tiles(source: str) -> str:
    """InternVideo2-Chat-8B without HD reads one view of a video; the HD model and the authors' read three."""
    name = source.rstrip("/").rpartition("/")[2]
    return "none" if _NOT_HD.search(name) and "hd" not in name.lower() else "2x1"


class ToPVChat:
    """The plan of a conversion to this package; see `convert_checkpoint`.

    Attributes:
        config: of the result.
        planned: our names -> meta tensors.
        dropped, made, merged: as in the report.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: str,
        tile_grid: tuple[int, int] | None,
        dtype: torch.dtype | None,
        seed: int,
    ):
        meta, settings = checkpoint.meta, checkpoint.config
        lora = settings.get("model_config", settings).get("llm", {})
        self.checkpoint, self.dtype, self.seed = checkpoint, dtype, seed
        self.alpha, self.rank = lora.get("lora_alpha", LORA_ALPHA), lora.get("lora_r", LORA_RANK)
        self.dropped = dead_names(meta)
        self.sources = {ours: [theirs, *_factors(theirs, meta)] for ours, theirs in to_reference_names(meta).items()}
        self.merged = sum(len(names) == 3 for names in self.sources.values())
        planned = convert_state_dict(meta, self.alpha, self.rank)
        self.config = config_from_reference(settings, meta)
        self.config.tile_grid = tile_grid
        self.words = max(self.config.video_token_id, self.config.subject_token_id) + 1
        self.config.text_config.vocab_size = self.words
        self.config.text_config.pad_token_id = 0
        self.made = {}
        for name in VOCABULARY:
            rows = planned[name].shape[0]
            self.made[name] = f"{self.words - rows} row(s) for new words: the mean of the others"
            planned[name] = torch.empty(self.words, planned[name].shape[1], dtype=planned[name].dtype, device="meta")
        if SUBJECT_TOKENS not in planned:
            table = planned["model.query_tokens.weight"]
            shape = (self.config.num_subject_tokens, table.shape[1])
            planned[SUBJECT_TOKENS] = torch.empty(shape, dtype=table.dtype, device="meta")
            self.made[SUBJECT_TOKENS] = f"normal, std {self.config.initializer_range}, seed {seed}"
        self.planned = {name: tensor.to(dtype or tensor.dtype) for name, tensor in planned.items()}
        self.config.dtype = _main_dtype(self.planned)
        self.model = _check_shapes(self.config, self.planned)
        self.processor = None if tokenizer == "none" else make_processor(tokenizer, self.config)

    def values(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Converted tensors of these names."""
        read = self.checkpoint.read(source for name in names for source in self.sources.get(name, ()))
        found = convert_state_dict(read, self.alpha, self.rank)
        if SUBJECT_TOKENS in names and SUBJECT_TOKENS not in found:
            noise = torch.randn(self.planned[SUBJECT_TOKENS].shape, generator=torch.Generator().manual_seed(self.seed))
            found[SUBJECT_TOKENS] = self.config.initializer_range * noise
        for name in set(VOCABULARY) & set(names):
            mean = found[name].mean(dim=0, dtype=torch.float32, keepdim=True).to(found[name].dtype)
            found[name] = torch.cat([found[name], mean.expand(self.words - len(found[name]), -1)])
        return {name: found[name].to(self.planned[name].dtype) for name in names}

    def finish(self, folder: Path) -> None:
        """Configuration, code and processor, as `save_pretrained` writes them."""
        from transformers.dynamic_module_utils import custom_object_save

        self.config.architectures = [type(self.model).__name__]
        custom_object_save(self.model, folder, config=self.config)
        self.config.save_pretrained(folder)
        write_json(folder / "training.json", {"train": TRAINING})
        self.model.generation_config.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)


class ToAuthors:
    """The plan of the way back; see `ToPVChat`."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype | None):
        self.checkpoint, self.dropped, self.merged = checkpoint, {}, 0
        self.config = PVChatConfig.from_dict(checkpoint.config)
        if self.config.tie_word_embeddings:
            raise PVChatError(
                "The authors' language model has a head of its own; tied embeddings cannot be converted."
            )
        _check_shapes(self.config, checkpoint.meta)
        planned = to_authors_state_dict(checkpoint.meta, self.config)
        self.sources = dict(zip(planned, checkpoint.meta, strict=True))
        self.unused = unused_authors_tensors(self.config, _main_dtype(planned), "meta")
        self.made = dict.fromkeys(self.unused, "not used by the authors' model, but loaded by it")
        self.planned = {
            name: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
            for name, tensor in (planned | self.unused).items()
        }

    def values(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Converted tensors of these names."""
        read = self.checkpoint.read(self.sources[name] for name in names if name in self.sources)
        found = to_authors_state_dict(read, self.config)
        if set(names) & set(self.unused):
            found |= unused_authors_tensors(self.config, self.config.dtype or torch.float32)
        return {name: found[name].to(self.planned[name].dtype) for name in names}

    def finish(self, folder: Path) -> None:
        write_json(folder / "config.json", authors_config(self.config))


def make_processor(tokenizer: str, config: PVChatConfig) -> PVChatProcessor:
    """The processor of a converted model: the language model's tokenizer with `<video>` and `<sks>` added.

    Raises:
        PVChatError: no tokenizer is there, or it is not that of the language model.
    """
    from transformers import PreTrainedTokenizerFast

    new = sorted([(config.video_token_id, VIDEO_TOKEN), (config.subject_token_id, SUBJECT_TOKEN)])
    hint = "pass --tokenizer with Mistral-7B-Instruct-v0.3's, or --tokenizer none to do without a processor"
    try:
        loaded = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    except (OSError, ValueError, TypeError) as error:
        raise PVChatError(f"There is no tokenizer in {tokenizer} ({first_line(error, 120)}); {hint}.") from error
    if len(loaded) != new[0][0]:
        raise PVChatError(f"The tokenizer of {tokenizer} has {len(loaded)} words, the model {new[0][0]}; {hint}.")
    loaded.add_tokens([word for _, word in new], special_tokens=True)
    loaded.pad_token = loaded.unk_token
    vision = config.vision_config
    video_processor = PVChatVideoProcessor(
        size=vision.image_size, num_frames=vision.num_frames, tile_grid=config.tile_grid
    )
    try:
        return PVChatProcessor(
            video_processor, loaded, num_tiles=config.num_tiles, tokens_per_tile=config.tokens_per_tile
        )
    except ValueError as error:
        raise PVChatError(f"The tokenizer of {tokenizer} does not fit ({error}); {hint}.") from error


def _factors(name: str, meta: dict[str, torch.Tensor]) -> list[str]:
    """The LoRA factors beside a weight of the authors, if it has any."""
    module = name.removesuffix(".weight").removesuffix(".base_layer")
    names = [f"{module}.lora_{factor}.default.weight" for factor in "AB"]
    return names if names[0] in meta else []


def _main_dtype(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """The floating dtype of most values."""
    count: Counter = Counter()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            count[tensor.dtype] += tensor.numel()
    return count.most_common(1)[0][0]


def _check_shapes(config: PVChatConfig, planned: dict[str, torch.Tensor]) -> PVChatForConditionalGeneration:
    """The model of this config on the meta device, if these are its parameters.

    Raises:
        PVChatError: parameters are missing, superfluous or of another shape; all are named.
    """
    with torch.device("meta"):
        model = PVChatForConditionalGeneration(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in planned.items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} has no place" for name in found if name not in expected]
    problems += [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise PVChatError(f"The checkpoint does not fit its model in {len(problems)} place(s): {'; '.join(problems)}.")
    return model


def describe(report: dict[str, Any]) -> str:
    """A report of `convert_checkpoint` in a few lines."""
    files = f"{len(report['files'])} file(s) in {report['out']}" if report["files"] else "nothing written"
    lines = [
        f"{report['tensors']} tensors, {report['bytes'] / 1e9:.2f} GB, {report['merged']} LoRA pairs merged; {files}",
        f"tiles: {report['tiles']}",
    ]
    lines += [f"made     {name}: {how}" for name, how in report["made"].items()]
    reasons: dict[str, list[str]] = {}
    for name, reason in report["dropped"].items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"dropped  {names[0]}{more}: {reason}")
    return "\n".join(lines)


__all__ = ["convert_checkpoint", "describe", "find_source", "guess_tiles", "make_processor"]
