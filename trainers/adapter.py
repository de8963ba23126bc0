"""One subject = one plain PEFT folder, plus a small `subject.json` that says whom it knows and which base it fits.

| profile | trained, besides subject tokens and `<sks>` rows                               | at full scale, bfloat16 |
|---------|--------------------------------------------------------------------------------|-------------------------|
| `light` | LoRA (rank 8) on the language model and on the Q-Former, head routers          | 45 MB                   |
| `paper` | LoRA (rank 16) on the language model, the Q-Former, the encoder's last blocks  | 395 MB                  |

A base has a plain Q-Former. Head routers are inserted before the adapter is attached, and start as the identity, so
that the base with the adapter switched off stays what it was, bit for bit. `load_subject_adapter` puts them there;
for plain `PeftModel.from_pretrained(base, folder)`, load the base with `qformer_config={"routing": "remoh"}`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from .. import __version__
from ..errors import PVChatError
from ..files import replace_folder
from ..modeling_pvchat.modeling_qformer import PVChatQFormerModel, insert_routers

# PEFT 0.21 asks the model by an old name; nobody who reads this can change that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

LORA_RANKS = {"light": 8, "paper": 16}
PROFILES = tuple(LORA_RANKS)
ROUTINGS = ("remoh", "moh", "none")
SUBJECT_INITS = ("base", "reference")
SUBJECT_FILE = "subject.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FORMAT_VERSION = 1
SAMPLES_PER_TENSOR = 256

_TEXT_LINEARS = r"model\.language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
_QFORMER_LINEARS = (
    r"model\.qformer\.encoder\.layer\.\d+\."
    r"((attention|crossattention)\.(attention\.(query|key|value)|output\.dense)|(intermediate|output)_query\.dense)"
)
_LIGHT_MODULES = {"subject_tokens", "head_router"}
_ROUTER_FIELDS = ("routing", "routing_start_layer", "num_shared_heads", "num_routed_heads", "num_active_heads")


@dataclass(frozen=True)
class AdapterSettings:
    """Shape of a subject's adapter.

    Args:
        profile: `"light"` or `"paper"`, see the module's table.
        routing: attention of the Q-Former: `"remoh"`, `"moh"` or `"none"`.
        rank: of every LoRA; `None` for 8 in `light` and the reference's 16 in `paper`.
        alpha: of every LoRA; `None` for twice the rank, as in the reference.
        dropout: of the LoRA inputs and inside the Q-Former. Reference 0.1 for both.
        num_vision_layers: encoder blocks, counted from the last, that `paper` trains in stage 2. The reference
            unfreezes the upper half, without effect (they are not in its optimiser).
        routing_start_layer, num_shared_heads, num_routed_heads, num_active_heads: `None` takes the base's settings.
        subject_init: where subject tokens start: `"base"`, from the base's own (reference), or `"reference"`, from
            what the base says about the training clips of the subject (`PVChatModel.propose_subject_tokens`).
    """

    profile: str = "light"
    routing: str = "remoh"
    rank: int | None = None
    alpha: int | None = None
    dropout: float = 0.1
    num_vision_layers: int = 2
    routing_start_layer: int | None = None
    num_shared_heads: int | None = None
    num_routed_heads: int | None = None
    num_active_heads: int | None = None
    subject_init: str = "base"

    def __post_init__(self):
        if self.profile not in PROFILES:
            raise PVChatError(f"The profile must be one of {', '.join(PROFILES)}, got {self.profile!r}.")
        if self.routing not in ROUTINGS:
            raise PVChatError(f"The attention must be one of {', '.join(ROUTINGS)}, got {self.routing!r}.")
        if self.subject_init not in SUBJECT_INITS:
            raise PVChatError(f"subject_init must be one of {', '.join(SUBJECT_INITS)}, got {self.subject_init!r}.")
        if not 0.0 <= self.dropout < 1.0:
            raise PVChatError(f"dropout must be 0 or more and below 1, got {self.dropout}.")
        rank = LORA_RANKS[self.profile] if self.rank is None else self.rank
        object.__setattr__(self, "rank", rank)
        object.__setattr__(self, "alpha", 2 * rank if self.alpha is None else self.alpha)
        if self.rank < 1 or self.num_vision_layers < 0:
            raise PVChatError(
                f"rank must be at least 1 and num_vision_layers at least 0, got {self.rank}, {self.num_vision_layers}."
            )


def build_subject_model(base, settings: AdapterSettings, seed: int = 0) -> PeftModel:
    """Turns a base into a model that can learn one subject. Changes `base` (routers, dropout, PEFT layers).

    Trained values start in float32 whatever the base's dtype; the outputs start equal to the base's (with `"moh"`
    routing they cannot).

    Args:
        base: a `PVChatForConditionalGeneration` with or without routers.
        seed: of the LoRA matrices.

    Raises:
        PVChatError: the base is routed in another way, or has fewer encoder blocks than are to be trained.
    """
    blocks = len(base.model.vision_tower.layers)
    if settings.profile == "paper" and settings.num_vision_layers > blocks:
        raise PVChatError(
            f"num_vision_layers is {settings.num_vision_layers}, but this base has {blocks} encoder blocks."
        )
    route_heads(
        base.model.qformer, settings.routing, **{n: getattr(settings, n) for n in _ROUTER_FIELDS if n != "routing"}
    )
    set_qformer_dropout(base.model.qformer, settings.dropout)
    config = lora_config(base, settings)
    torch.manual_seed(seed)
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:  # PEFT leaves copied modules in the base's dtype, where small updates vanish
            parameter.data = parameter.data.float()
    return model


def route_heads(qformer: PVChatQFormerModel, routing: str, **fields: int | None) -> None:
    """Inserts head routers into a plain Q-Former, or checks that those it has are the wanted ones.

    Raises:
        PVChatError: it is routed in another way.
    """
    wanted = {"routing": routing} | {name: value for name, value in fields.items() if value is not None}
    if qformer.config.routing == "none" and routing != "none":
        insert_routers(qformer, **wanted)
        return
    if routing == "none":
        wanted = {"routing": "none"}
    found = {name: getattr(qformer.config, name) for name in wanted}
    if found != wanted:
        raise PVChatError(
            f"The base's Q-Former is routed as {found}, but {wanted} is asked for; load the base again to change it."
        )


def set_qformer_dropout(qformer: PVChatQFormerModel, dropout: float) -> None:
    """Sets every dropout of the Q-Former."""
    qformer.config.attention_probs_dropout_prob = dropout  # read in every forward
    for module in qformer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout


@torch.no_grad()
def start_from_clips(model: PeftModel, processor, clips: Sequence[str | Path]) -> None:
    """Sets the adapter's subject tokens to the mean of what the base proposes for these clips of the subject."""
    inner = model.get_base_model().model
    training = model.training
    model.eval()
    pixels = processor.video_processor(videos=[str(clip) for clip in clips], return_tensors="pt")[
        "pixel_values_videos"
    ]
    weight = inner.vision_layernorm.weight
    with model.disable_adapter():
        proposals = [inner.propose_subject_tokens(video[None].to(weight.device, weight.dtype)) for video in pixels]
    tokens = inner.subject_tokens.modules_to_save[model.active_adapter].weight
    tokens.copy_(torch.cat(proposals).mean(dim=0))
    model.train(training)


def lora_config(base, settings: AdapterSettings) -> LoraConfig:
    """The PEFT configuration of a profile for this base."""
    light = settings.profile == "light"
    rows = {"embed_tokens": [base.config.subject_token_id]}
    if base.lm_head.weight is not base.get_input_embeddings().weight:
        rows["lm_head"] = [base.config.subject_token_id]  # PEFT trains a tied head along with the embedding
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        task_type="CAUSAL_LM",
        target_modules=f"({_TEXT_LINEARS})|({_QFORMER_LINEARS})" if light else _TEXT_LINEARS,
        modules_to_save=["subject_tokens", *(_routers(base) if light else _paper_modules(base, settings))],
        trainable_token_indices=rows,
    )


def _routers(base) -> list[str]:
    return ["head_router"] if base.model.qformer.config.routing != "none" else []


def _paper_modules(base, settings: AdapterSettings) -> list[str]:
    """Q-Former parts that queries pass through (not its text branch), and the last encoder blocks."""
    names = ["qformer.embeddings.layernorm"]
    for index, layer in enumerate(base.model.qformer.encoder.layer):
        parts = ("attention", "crossattention", "intermediate_query", "output_query")
        names += [f"qformer.encoder.layer.{index}.{p}" for p in parts if getattr(layer, p) is not None]
    blocks = len(base.model.vision_tower.layers)
    return names + [f"vision_tower.layers.{i}" for i in range(blocks - settings.num_vision_layers, blocks)]


# -- which base -------------------------------------------------------------------------------------------------------


def weights_hash(named: Mapping[str, torch.Tensor]) -> str:
    """Fingerprint of weights: names, shapes, and up to 256 evenly spaced values of each, rounded to bfloat16.

    Tells checkpoints apart (also two fine-tunings of one model), whatever dtype they were loaded in; no protection
    against weights that were changed in order to collide.
    """
    digest = hashlib.sha256()
    for name in sorted(named):
        values = named[name].detach().flatten()
        picks = torch.linspace(0, len(values) - 1, min(SAMPLES_PER_TENSOR, len(values)), dtype=torch.float64)
        samples = values[picks.round().long().to(values.device)].to(torch.bfloat16).cpu()
        digest.update(f"{name}{tuple(named[name].shape)}".encode())
        digest.update(samples.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def base_hash(base) -> str:
    """Fingerprint of a base, with or without adapters and routers on it, quantised language model included.

    The linears of the language model are left out: quantisation changes them, and the rest tells models apart.
    """
    base = base.get_base_model() if isinstance(base, PeftModel) else base
    named = {}
    for name, parameter in base.named_parameters():
        if any(part in name for part in (".lora_", ".modules_to_save.", ".trainable_tokens_", ".head_router.")):
            continue
        name = name.replace(".token_adapter.", ".").replace(".original_module.", ".").replace(".base_layer.", ".")
        if name.startswith("model.language_model.layers.") and name.endswith("_proj.weight"):
            continue
        named[name] = parameter
    return weights_hash(named)


def base_id(base) -> str:
    """The base's Hub name, or the last part of its local path."""
    name = str(getattr(base.config, "_name_or_path", "") or "")
    return Path(name).name if os.path.isabs(name) or os.path.isdir(name) else name


# -- folders ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SubjectRecord:
    """`subject.json`: whom an adapter knows and what it fits.

    Args:
        subject: the name as in the questions, such as `<Nz>`.
        base: `{"id", "weights_hash"}`, and its commit (`"revision"`) when it was loaded from the Hub.
        qformer: routing of the Q-Former the adapter was trained with.
        profile, dataset_hash, stages, seed: how it was made.
        versions: of the libraries that made it.
    """

    subject: str
    base: dict[str, str]
    qformer: dict[str, Any]
    profile: str
    dataset_hash: str
    stages: list[str]
    seed: int
    versions: dict[str, str]
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: str | Path) -> SubjectRecord:
        """Raises PVChatError when the folder is not a subject's adapter, or of a newer format."""
        path = Path(folder) / SUBJECT_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            known = {f.name for f in fields(cls)}
            record = cls(**{name: value for name, value in data.items() if name in known})
        except FileNotFoundError:
            raise PVChatError(
                f"{folder} is not a subject's adapter: it has no {SUBJECT_FILE}. Pass the adapter folder of a run."
            ) from None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise PVChatError(f"{path} cannot be read ({error}); train the adapter again.") from error
        if record.format_version > FORMAT_VERSION:
            raise PVChatError(
                f"{folder} has format {record.format_version}, this version reads up to {FORMAT_VERSION}; "
                f"update pvchat."
            )
        return record


def subject_record(
    model: PeftModel, subject: str, profile: str, dataset_hash: str, stages: Iterable[str], seed: int
) -> SubjectRecord:
    """The record of the model's adapter."""
    base = model.get_base_model()
    config = base.model.qformer.config
    commit = getattr(base.config, "_commit_hash", None)  # of the Hub
    return SubjectRecord(
        subject=subject,
        base={"id": base_id(base), "weights_hash": base_hash(base), **({"revision": commit} if commit else {})},
        qformer={name: getattr(config, name) for name in _ROUTER_FIELDS},
        profile=profile,
        dataset_hash=dataset_hash,
        stages=list(stages),
        seed=seed,
        versions={
            "pvchat": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    )


def save_subject_adapter(
    model: PeftModel, folder: str | Path, record: SubjectRecord, dtype: torch.dtype | None = None
) -> Path:
    """Writes `adapter_config.json`, `adapter_model.safetensors` and `subject.json`; the folder appears whole.

    Args:
        dtype: of the values in the file; `None` keeps them as they were trained (float32), for a stage that others go
            on from.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    config = model.peft_config["default"]
    before = config.base_model_name_or_path, config.revision
    config.base_model_name_or_path, config.revision = record.base["id"], record.base.get("revision")
    try:
        model.save_pretrained(temporary, selected_adapters=["default"], save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's card names local paths
        if dtype is not None:
            values = load_file(temporary / WEIGHTS_FILE)
            save_file({n: v.to(dtype) for n, v in values.items()}, temporary / WEIGHTS_FILE, {"format": "pt"})
        (temporary / SUBJECT_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        temporary.chmod(0o755)
        replace_folder(temporary, folder)
    finally:
        config.base_model_name_or_path, config.revision = before
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def check_fits(base, folder: Path, record: SubjectRecord) -> None:
    """Raises PVChatError when the folder has no weights, or was made for another base."""
    if not (folder / WEIGHTS_FILE).exists():
        raise PVChatError(f"{folder} has no {WEIGHTS_FILE}; train the subject again.")
    found = base_hash(base)
    if found != record.base["weights_hash"]:
        at = f" at {record.base['revision'][:8]}" if "revision" in record.base else ""
        raise PVChatError(
            f"The adapter of {record.subject} was made for the base {record.base['id'] or '(unnamed)'}{at} "
            f"(weights {record.base['weights_hash'][:8]}), this base is {base_id(base) or '(unnamed)'} "
            f"(weights {found[:8]}); load that base or train the subject on this one."
        )


def load_subject_adapter(base, folder: str | Path, adapter_name: str = "default") -> PeftModel:
    """Attaches a saved subject to a base, or one more subject to a base that has some, and makes it the active one.

    Args:
        base: `PVChatForConditionalGeneration`, or the `PeftModel` that an earlier call returned.
        adapter_name: how to call it in `set_adapter`.

    Raises:
        PVChatError: the folder is no adapter, was made for another base or another routing, or the name is taken.
    """
    folder = Path(folder)
    record = SubjectRecord.read(folder)
    check_fits(base, folder, record)
    inner = base.get_base_model() if isinstance(base, PeftModel) else base
    loaded = base.peft_config if isinstance(base, PeftModel) else {}
    if adapter_name in loaded:
        raise PVChatError(f"The name {adapter_name!r} is taken; pass another adapter_name.")
    if any(
        (set(config.modules_to_save) <= _LIGHT_MODULES) != (record.profile == "light") for config in loaded.values()
    ):
        # The copies of one profile would hold, or be, the LoRA layers of the other.
        raise PVChatError("Adapters of the profiles 'light' and 'paper' do not fit into one base; load another copy.")
    if not (record.qformer["routing"] == "none" and inner.model.qformer.config.routing == "remoh"):
        route_heads(inner.model.qformer, **record.qformer)  # unused ReMoH routers change nothing, so they may stay
    if not isinstance(base, PeftModel):
        return PeftModel.from_pretrained(base, folder, adapter_name=adapter_name)
    base.load_adapter(folder, adapter_name)
    base.set_adapter(adapter_name)
    return base
