"""Puts adapters and base models on the Hub: what goes there, and who must have agreed. Datasets: `publish.py`.

An adapter's repository is plain PEFT: README.md, adapter_config.json, adapter_model.safetensors, subject.json. That of
a base holds its weights, its processor and the code of the model, so that it loads with `trust_remote_code=True`.
Neither ever holds a video.
"""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import PVChatError, first_line
from .files import write_json, write_text
from .hub import ADAPTER, MODEL, SUBJECT_FILES, check_repo_name, send

WEIGHTS = "*.safetensors"
MODEL_EXTRAS = ("model.safetensors.index.json", "generation_config.json", "training.json", "pretraining.json")


def push_adapter(
    adapter: str | Path,
    repo: str,
    *,
    base: str | None = None,
    datasets: Sequence[str] = (),
    private: bool = True,
    consents: Sequence[Any] = (),
    i_have_consent: bool = False,
    dry_run: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Uploads a subject's adapter to `repo` ("USER/NAME"). Interrupted, the same call goes on where it stopped.

    Args:
        adapter: the adapter folder, of a run or alone.
        base: name of its base on the Hub; needed for the example in the card when it was trained on a local folder.
        datasets: names on the Hub of what it learned from, for the card.
        private: whether a new repository is private; an existing one must be what is asked for.
        consents: records, beside those of the run. A real person must have agreed in a scope that says "publish".
        i_have_consent: declare instead that the person agreed to this upload.
        dry_run: list what would be uploaded and stop; nothing is sent.
        progress: show bars.

    Returns:
        `repo`, `url`, `private`, `files` (path and bytes), `bytes`, `consents` (their numbers), `dry_run`.

    Raises:
        PVChatError: no such adapter, a bad name, no consent that covers it, something local or secret in the texts, or
            the Hub says no.
    """
    from .dataset_builder.consent import consent_id
    from .model_card import adapter_card
    from .trainers.adapter import SubjectRecord

    adapter = Path(adapter)
    for name in (repo, *([base] if base else []), *datasets):
        check_repo_name(name)
    record = SubjectRecord.read(adapter)
    for name in SUBJECT_FILES:
        if not (adapter / name).is_file():
            raise PVChatError(f"{adapter} has no {name}; train the subject again.")
    what = f"the adapter as {repo} ({'private' if private else 'public'})"
    records = _agreed(adapter, record, consents, i_have_consent, what)
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder)
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        subject = json.loads((adapter / "subject.json").read_text(encoding="utf-8"))
        if base is not None:
            config |= {"base_model_name_or_path": base, "revision": None}
            subject["base"] = {"id": base, "weights_hash": record.base["weights_hash"]}
        write_json(stage / "adapter_config.json", config)
        write_json(stage / "subject.json", subject)
        _put(adapter / "adapter_model.safetensors", stage)
        card = adapter_card(adapter, repo=repo, base=base, datasets=datasets, consents=records)
        write_text(stage / "README.md", str(card))
        sent = send(stage, repo, ADAPTER, private=private, dry_run=dry_run, progress=progress)
    return sent | {"consents": [consent_id(record) for record in records]}


def _agreed(adapter: Path, record: Any, consents: Sequence[Any], declared: bool, what: str) -> list[Any]:
    """The records that let an adapter be published; none for a person whom the run's files call drawn.

    Raises PVChatError when there is none, or one that does not cover it.
    """
    from .dataset_builder.consent import check_publishing, declare_consent
    from .dataset_builder.publish import publishing_records
    from .dataset_builder.records import ConsentRecord
    from .model_card.adapter_card import AdapterFacts

    facts = AdapterFacts.read(adapter)
    if facts.dataset is not None:
        return publishing_records(facts.dataset_folder, facts.dataset, consents, declared, what)
    if facts.fictional:
        return []
    own = (facts.owner or {}).get("consent")
    known = [*consents, *([ConsentRecord.from_json(own)] if own else [])]
    if declared:
        known = [declare_consent(record.subject, f"publish {what}")]
    if not known:
        raise PVChatError(
            f"There is no consent record of {record.subject} beside {adapter}, nor the data it was learned from: pass "
            f"--consent FILE, or --i-have-consent."
        )
    for consent in known:
        check_publishing(consent)
    return known


def push_model(
    folder: str | Path,
    repo: str,
    *,
    licence: str | None = None,
    private: bool = True,
    dry_run: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Uploads a base model, its processor and its code to `repo`; the weights are not loaded.

    Args:
        folder: a checkpoint folder with safetensors.
        licence: the Hub's word for it, such as "apache-2.0"; `None` takes that of the folder's README.md.
        private, dry_run, progress: see `push_adapter`.

    Returns:
        `repo`, `url`, `private`, `files` (path and bytes), `bytes`, `dry_run`.

    Raises:
        PVChatError: no such model, a bad name, no licence, something local or secret in the texts, or the Hub says no.
    """
    from .model_card import base_card

    folder = Path(folder)
    check_repo_name(repo)
    if not (folder / "config.json").is_file() or not any(folder.glob(WEIGHTS)):
        raise PVChatError(f"{folder} is not a model: it needs config.json and weights in safetensors.")
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary)
        _write_code(folder, stage)
        for path in (*sorted(folder.glob(WEIGHTS)), *(folder / name for name in MODEL_EXTRAS)):
            if path.is_file():
                _put(path, stage)
        write_text(stage / "README.md", str(base_card(folder, repo=repo, licence=licence)))
        return send(stage, repo, MODEL, private=private, dry_run=dry_run, progress=progress)


def _write_code(folder: Path, stage: Path) -> None:
    """Writes config and processor as this version saves them, and the code that `trust_remote_code` runs."""
    from transformers.dynamic_module_utils import get_relative_import_files

    from .modeling_pvchat import PVChatConfig, PVChatForConditionalGeneration, PVChatProcessor

    try:
        config = PVChatConfig.from_pretrained(folder)
        processor = PVChatProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = first_line(error, 200)
        raise PVChatError(f"{folder} is not a PVChat model ({reason}); convert it with `pvchat convert`.") from error
    config.save_pretrained(stage)
    processor.save_pretrained(stage)
    main = Path(inspect.getfile(PVChatForConditionalGeneration))
    for path in (main, *map(Path, get_relative_import_files(main))):
        shutil.copyfile(path, stage / path.name)


def _put(path: Path, stage: Path) -> None:
    """The file in the stage, by a link where the system has them: weights take gigabytes."""
    try:
        (stage / path.name).symlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, stage / path.name)
