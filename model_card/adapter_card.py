"""The card of a subject's adapter: metadata that the Hub reads, and a page for people.

Every number comes from the files of the run: `subject.json` and the weights of the adapter, `run.json` (passport and
seconds), `report/scores.json`, `dataset/dataset.json`. What a file does not say, the card says is unknown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation import verdict
from ..evaluation.table import COLUMNS, number
from ..files import write_text
from ..hub import weights_header
from .dataset_card import OPEN_LICENCES

TEMPLATE = Path(__file__).with_name("adapter_card.md.j2")
EMBEDDED_BASE = "pvchat-cartoon"  # comes with the package
TASK = {"task_type": "video-text-to-text", "task_name": "Is the subject in the video?"}
TEXT_METRICS = ("bleu1", "bleu4", "es", "dc")
METRICS = {  # of scores.json -> metric of the Hub and its name
    "balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
    "accuracy": ("accuracy", "accuracy"),
    "auroc": ("roc_auc", "AUROC of the yes/no margin"),
    "false_accept_lookalike": ("false_accept_rate", "false accepts of look-alikes"),
    "false_accept_stranger": ("false_accept_rate", "false accepts of strangers"),
}


@dataclass
class AdapterFacts:
    """What the files beside an adapter say; `None` where there is no such file.

    record: `subject.json` of the adapter. config: `adapter_config.json`. run: `run.json`. owner: `subject.json` of the
    run. scores: `scores.json`. dataset: `dataset.json` of the data it learned from, which lies in `dataset_folder`.
    """

    record: dict[str, Any]
    config: dict[str, Any]
    values: int
    dtypes: list[str]
    bytes: int
    run: dict[str, Any] | None
    owner: dict[str, Any] | None
    scores: dict[str, Any] | None
    dataset: dict[str, Any] | None
    dataset_folder: Path

    @classmethod
    def read(cls, adapter: Path) -> AdapterFacts:
        """Reads an adapter folder and the run around it; raises PVChatError when the weights cannot be read."""
        run = adapter.resolve().parent
        weights = adapter / "adapter_model.safetensors"
        tensors = {name: t for name, t in weights_header(weights).items() if name != "__metadata__"}
        record = _read(adapter / "subject.json") or {}
        dataset = _read(run / "dataset" / "dataset.json")
        learned = dataset is not None and dataset.get("dataset_hash") == record.get("dataset_hash")
        owner = _read(run / "subject.json")
        return cls(
            record=record,
            config=_read(adapter / "adapter_config.json") or {},
            values=sum(_product(t["shape"]) for t in tensors.values()),
            dtypes=sorted({t["dtype"] for t in tensors.values()}),
            bytes=weights.stat().st_size,
            run=_read(run / "run.json"),
            owner=owner if owner and owner.get("name") == record.get("subject") else None,
            scores=_scores(run, record.get("subject")),
            dataset=dataset if learned else None,
            dataset_folder=run / "dataset",
        )

    @property
    def fictional(self) -> bool:
        """Whether the files say that the person is drawn."""
        consent = (self.owner or {}).get("consent") or {}
        return bool((self.dataset or {}).get("fictional") or consent.get("fictional"))

    @property
    def seconds(self) -> dict[str, float]:
        return (self.run or {}).get("seconds") or {}


def _scores(run: Path, subject: str | None) -> dict[str, Any] | None:
    scores = _read(run / "report" / "scores.json")
    return scores if scores and scores.get("details", {}).get("subject") == subject else None


def adapter_card(
    adapter: str | Path,
    *,
    repo: str | None = None,
    base: str | None = None,
    datasets: Sequence[str] = (),
    consents: Sequence[Any] = (),
):
    """The card as a `huggingface_hub.ModelCard`; `str(card)` is the text of README.md.

    Args:
        adapter: the adapter folder, of a run or alone.
        repo: its name on the Hub, for the example; without it the example names the folder.
        base: name of the base on the Hub, where it is not the one it was trained on.
        datasets: names on the Hub of what it learned from.
        consents: the records (`ConsentRecord`) under which a real person's adapter is published; who gave them stays
            private.

    Raises:
        PVChatError: the adapter's weights cannot be read.
    """
    from huggingface_hub import ModelCard, ModelCardData

    adapter = Path(adapter)
    facts = AdapterFacts.read(adapter)
    record = facts.record
    subject, place = record["subject"], repo or adapter.name
    base, revision = base or record["base"]["id"], None if base else record["base"].get("revision")
    licence = "apache-2.0" if facts.fictional and _open(facts) else "other"
    results = _eval_results(facts, datasets)
    data = ModelCardData(
        language=["en"],
        license=licence,
        **({"license_name": "consent-of-the-person-learned"} if licence == "other" else {}),
        library_name="peft",
        pipeline_tag="video-text-to-text",
        tags=["pvchat", "lora", "personalization", "video"],
        **({"base_model": base, "base_model_relation": "adapter"} if "/" in base else {}),
        **({"datasets": list(datasets)} if datasets else {}),
        **({"model_name": place, "eval_results": results} if results else {}),
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        facts=facts,
        record=record,
        subject=subject,
        place=place,
        base=base,
        revision=revision,
        embedded=base == EMBEDDED_BASE,
        routing=record["qformer"]["routing"],
        routers=_routers(record["qformer"]),
        consents=consents,
        licence=licence,
        datasets=datasets,
        scores=facts.scores,
        rows=_score_rows(facts.scores) if facts.scores else [],
        texts=_text_rows(facts.scores) if facts.scores else [],
        columns=list(COLUMNS.values()),
        verdict=verdict(facts.scores).text if facts.scores and facts.scores.get("paired") else None,
        number=number,
        hardware=_hardware(facts.run),
        limits=_limits(facts),
    )


def write_adapter_card(adapter: str | Path) -> Path:
    """Writes the card into the adapter folder and returns its path."""
    path = Path(adapter) / "README.md"
    write_text(path, str(adapter_card(adapter)))
    return path


def _open(facts: AdapterFacts) -> bool:
    """Whether all that the drawn clips were made with is under an open licence, as far as the files say."""
    if facts.dataset is None:
        return False
    from .dataset_card import Facts

    return set().union(*Facts.read(facts.dataset_folder).licences.values()) <= OPEN_LICENCES


def _routers(qformer: dict[str, Any]) -> str:
    """What `from_pretrained` of the base needs so that the adapter's head routers find their place."""
    if qformer["routing"] == "none":
        return ""
    return ", ".join(f'"{name}": {json.dumps(value)}' for name, value in qformer.items())


def _eval_results(facts: AdapterFacts, datasets: Sequence[str]) -> list[Any]:
    from huggingface_hub import EvalResult

    scores = facts.scores
    if scores is None:
        return []
    name = f"Clips with and without {facts.record['subject']}"
    where = {
        "dataset_type": datasets[0] if datasets else "pvchat",
        "dataset_name": name,
        "dataset_split": scores["details"]["split"],
    }
    found = [
        EvalResult(**TASK, **where, metric_type=kind, metric_name=title, metric_value=scores["existence"][key])
        for key, (kind, title) in METRICS.items()
        if scores["existence"].get(key) is not None
    ]
    if scores.get("bleu4") is not None:
        title = "BLEU-4 of all answers"
        found.append(EvalResult(**TASK, **where, metric_type="bleu", metric_name=title, metric_value=scores["bleu4"]))
    return found


def _score_rows(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table: the adapter, then the controls that were run, whichever these are."""
    systems = [(f"**`{scores['details']['subject']}`**", scores["existence"], scores["intervals"]["existence"])]
    for name, found in scores["controls"].items():
        if found:
            systems.append((name.replace("_", " "), found, scores["intervals"]["controls"].get(name)))
    return [
        {"title": title, "cells": [number(found.get(name), (spans or {}).get(name)) for name in COLUMNS]}
        for title, found, spans in systems
    ]


def _text_rows(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """What was computed about the texts: `title`, `value`, `interval`, and the base's value."""
    base, intervals = scores["controls"].get("no_adapter") or {}, scores["intervals"]
    rows = [(f"{name}", scores.get(name), intervals.get(name), base.get(name)) for name in TEXT_METRICS]
    if scores.get("bertscore"):
        title = f"bertscore F1 ({scores['bertscore']['backbone']})"
        rows.append((title, scores["bertscore"]["f1"], intervals.get("bertscore"), None))
    for category, found in scores["categories"].items():
        own = (base.get("categories") or {}).get(category) or {}
        spans = intervals["categories"].get(category) or {}
        title = f"{category}: exactly right, where the truth is known"
        rows.append((title, found.get("exact"), spans.get("exact"), own.get("exact")))
    return [dict(zip(("title", "value", "interval", "base"), row, strict=True)) for row in rows if row[1] is not None]


def _hardware(run: dict[str, Any] | None) -> str | None:
    """One line about the machine of the passport."""
    hardware = (run or {}).get("hardware")
    if not hardware:
        return None
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in hardware.get("gpus") or ())
    return f"{gpus or 'no GPU'}; {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB"


def _limits(facts: AdapterFacts) -> list[str]:
    limits = []
    if facts.fictional:
        limits.append("The person is drawn. What holds here need not hold for anybody real.")
    limits.append(
        "The person was learned from one clip: other light, other years, another camera or a disguise may fail, in "
        "both directions. An answer is no proof of identity, and must not decide anything about anybody."
    )
    limits.append("Each question is answered on its own; earlier turns of a conversation are not seen.")
    if facts.scores is None:
        limits.append("Nothing was measured: how often it is wrong is unknown.")
    else:
        details = facts.scores["details"]
        limits.append(
            f"The scores rest on {details['questions']} questions about {details['videos']} clips; look at the "
            "intervals before you compare."
        )
        if facts.scores["passport"]["config"].get("dataset") == facts.record.get("dataset_hash"):
            limits.append("The test clips were prepared along with the training clips, by the same tools.")
    return limits


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _read(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; `None` when there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
