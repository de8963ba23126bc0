"""The card of a base model: what it is made of, how to ask it, and whatever its folder's own README.md says.

Sizes come from `config.json` and from the headers of the weights; scores, where there are some, from
`pretraining.json`. The licence is taken from the README.md beside the weights or given: it cannot be computed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import PVChatError
from ..hub import weights_header

TEMPLATE = Path(__file__).with_name("base_card.md.j2")
KEPT = ("language", "license", "license_name", "license_link", "base_model", "datasets", "tags")  # of an older card


def base_card(folder: str | Path, *, repo: str | None = None, licence: str | None = None):
    """The card as a `huggingface_hub.ModelCard`; `str(card)` is the text of README.md.

    Args:
        folder: a checkpoint folder.
        repo: its name on the Hub, for the example; without it the example names the folder.
        licence: the Hub's word for it, such as "apache-2.0"; `None` takes that of the folder's README.md.

    Raises:
        PVChatError: no licence is known, or the weights cannot be read.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    folder = Path(folder)
    kept, about = _own_card(folder)
    licence = licence or kept.pop("license", None)
    if not licence:
        raise PVChatError(
            f"Nobody said under which licence {folder.name} is: pass --licence, such as --licence apache-2.0."
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pretraining = _pretraining(folder)
    place = repo or folder.name
    results = [
        EvalResult(
            task_type="video-text-to-text",
            dataset_type="pvchat",
            dataset_name=pretraining["test"],
            metric_type="accuracy",
            metric_name=name.replace("_", " "),
            metric_value=value,
        )
        for name, value in pretraining.get("scores", {}).items()
    ]
    tags = list(kept.pop("tags", None) or [])
    data = ModelCardData(
        **{"language": ["en"]} | kept | {"license": licence},
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        tags=["pvchat", "video", *tags],
        **({"model_name": place, "eval_results": results} if results else {}),
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        place=place,
        config=config,
        parameters=sum(_size(tensor["shape"]) for tensor in _tensors(folder)),
        dtypes=sorted({tensor["dtype"] for tensor in _tensors(folder)}),
        tiles=1 if config.get("tile_grid") is None else config["tile_grid"][0] * config["tile_grid"][1] + 1,
        pretraining=pretraining,
        about=about,
    )


def _own_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text, without its title, of the README.md that a folder brings."""
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.is_file():
        return {}, ""
    card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    lines = card.text.strip().splitlines()
    if lines and lines[0].startswith("# "):
        lines = lines[1:]
    metadata = card.data.to_dict()
    return {name: metadata[name] for name in KEPT if metadata.get(name)}, "\n".join(lines).strip()


def _pretraining(folder: Path) -> dict[str, Any]:
    path = folder / "pretraining.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _tensors(folder: Path) -> list[dict[str, Any]]:
    headers = (weights_header(path) for path in sorted(folder.glob("*.safetensors")))
    return [tensor for header in headers for name, tensor in header.items() if name != "__metadata__"]


def _size(shape: list[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
