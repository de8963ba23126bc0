"""The card of a base model: what it is made of, how to ask it, and whatever its folder's own README.md says.

Sizes come from `config.json`, types from the headers of the weights; scores, where there are some, from
`pretraining.json`. The licence is taken from the README.md beside the weights or given: it cannot be computed.
`write_converted_card` writes that README.md for converted weights, whose origin is known.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import PVChatError
from ..files import write_text
from ..hub import REPO, weights_header

TEMPLATE = Path(__file__).with_name("base_card.md.j2")
CONVERTED_TEMPLATE = Path(__file__).with_name("converted.md.j2")
ABOUT = "<!-- What follows was written for these weights and is kept when the card is made anew. -->"
KEPT = ("language", "license", "license_name", "license_link", "base_model", "datasets", "tags")  # of an older card


def base_card(folder: str | Path, *, repo: str | None = None, licence: str | None = None, place: str | None = None):
    """The card as a `huggingface_hub.ModelCard`; `str(card)` is the text of README.md.

    Args:
        folder: a checkpoint folder.
        repo: its name on the Hub, for the example; without it the example names the folder.
        licence: the Hub's word for it, such as "apache-2.0"; `None` takes that of the folder's README.md.
        place: what the folder will be called when it is not yet where it will be.

    Raises:
        PVChatError: no licence is known, or the weights cannot be read.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    folder = Path(folder)
    kept, about = _own_card(folder)
    if licence:  # its name and its link are those of the other one
        kept = {name: value for name, value in kept.items() if not name.startswith("license")}
    licence = licence or kept.get("license")
    if not licence:
        raise PVChatError(
            f"Nobody said under which licence {folder.name} is: pass --licence, such as --licence apache-2.0."
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pretraining = _pretraining(folder)
    place = repo or place or folder.name
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
        tags=list(dict.fromkeys(["pvchat", "video", *tags])),
        **({"model_name": place, "eval_results": results} if results else {}),
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        place=place,
        config=config,
        parameters=_parameters(folder),
        dtypes=_dtypes(folder),
        tiles=1 if config.get("tile_grid") is None else config["tile_grid"][0] * config["tile_grid"][1] + 1,
        pretraining=pretraining,
        about=about,
        mark=ABOUT,
    )


def write_converted_card(folder: Path, report: dict[str, Any], place: str) -> None:
    """Writes the README.md of a folder that `pvchat convert` made: where its weights come from, and their licences.

    Args:
        folder: holds config.json and the weights.
        report: of `convert_checkpoint`.
        place: what the folder will be called.
    """
    from huggingface_hub import ModelCard, ModelCardData

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    source = report["source"] if REPO.fullmatch(report["source"]) else None
    data = ModelCardData(
        license="other", license_name="mit-and-apache-2.0", **({"base_model": [source]} if source else {})
    )
    words = {"report": report, "source": source, "routed": config["qformer_config"]["routing"] != "none"}
    about = ModelCard.from_template(data, template_path=str(CONVERTED_TEMPLATE), **words, version=__version__)
    write_text(folder / "README.md", str(about))  # which the card takes over like one that a person wrote
    write_text(folder / "README.md", str(base_card(folder, place=place)))


def _own_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text, without its title, of the README.md that a folder brings. Of a card that was made here, the
    text is what was written for these weights."""
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    if not path.is_file():
        return {}, ""
    card = ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    lines = card.text.partition(ABOUT)[2].strip().splitlines() or card.text.strip().splitlines()
    if lines and lines[0].startswith(("# ", "## About")):
        lines = lines[1:]
    metadata = card.data.to_dict()
    return {name: metadata[name] for name in KEPT if metadata.get(name)}, "\n".join(lines).strip()


def _pretraining(folder: Path) -> dict[str, Any]:
    path = folder / "pretraining.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _parameters(folder: Path) -> int:
    """Of the model that the config describes; weights in 4 bits are stored two in a byte."""
    import torch

    from ..modeling_pvchat import PVChatConfig, PVChatForConditionalGeneration

    with torch.device("meta"):
        model = PVChatForConditionalGeneration(PVChatConfig.from_pretrained(folder))
    return sum(parameter.numel() for parameter in model.parameters())


def _dtypes(folder: Path) -> list[str]:
    headers = [weights_header(path) for path in sorted(folder.glob("*.safetensors"))]
    return sorted({tensor["dtype"] for header in headers for name, tensor in header.items() if name != "__metadata__"})
