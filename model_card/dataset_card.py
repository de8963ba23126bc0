"""The card of a dataset: YAML metadata that the Hub and `load_dataset` read, and a page for people.

Every number comes from `dataset.json` and from the columns of the parquet files; nothing is typed in by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("dataset_card.md.j2")
SPLITS = ("train", "test")
OPEN_LICENCES = {"Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "user"}
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
ORIGINS = {
    "original": "the reference clip of the subject",
    "scene": "the subject in a new scene",
    "portrait": "a new portrait of the subject, animated",
    "animated": "the reference, animated",
    "hard_negative": "somebody who looks like the subject",
    "random_negative": "somebody else",
    "user": "a clip to test on, as it was given to the builder",
}


@dataclass
class Facts:
    """What the rows say. Keys of the counters: split; (split, origin); category; source of an answer; ...

    `made_by` and `licences` hold the backends and licence tags by (split, origin), `files` the hashes of clips and of
    what they were made from by split.
    """

    videos: Counter = field(default_factory=Counter)
    positives: Counter = field(default_factory=Counter)
    questions: Counter = field(default_factory=Counter)
    origins: Counter = field(default_factory=Counter)
    synthetic: Counter = field(default_factory=Counter)
    categories: Counter = field(default_factory=Counter)
    sources: Counter = field(default_factory=Counter)
    unrefined: int = 0
    made_by: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    licences: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    sizes: Counter = field(default_factory=Counter)
    seconds: float = 0.0
    files: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Facts:
        """Reads `folder/videos/*.parquet` without the clips themselves."""
        facts = cls()
        for row in _rows(folder):
            facts._add(row)
        return facts

    def _add(self, row: dict[str, Any]) -> None:
        split, origin = row["split"], row["origin"]
        self.videos[split] += 1
        self.positives[split] += row["subject_present"]
        self.questions[split] += len(row["qa"])
        self.origins[split, origin] += 1
        self.synthetic[split, origin] += row["synthetic"]
        self.sizes[f"{row['width']}x{row['height']}"] += 1
        self.seconds += row["num_frames"] / row["fps"] if row["fps"] else 0.0
        self.made_by.setdefault((split, origin), set()).add(row["backend"])
        self.licences.setdefault((split, origin), set()).update(row["licences"])
        self.files.setdefault(split, set()).update([row["sha256"], *row["parent_ids"]])
        for qa in row["qa"]:
            self.categories[qa["category"]] += 1
            self.sources[qa["source"]] += 1
            self.unrefined += qa["source"] == "vlm" and qa["refined_by"] == "none"

    @property
    def splits(self) -> list[str]:
        return [split for split in SPLITS if self.videos[split]]

    @property
    def shared(self) -> int:
        """How many clips, or sources of clips, are in both splits."""
        return len(set.intersection(*self.files.values())) if len(self.files) > 1 else 0

    @property
    def synthetic_share(self) -> float:
        return self.synthetic.total() / max(1, self.videos.total())

    def licence(self, fictional: bool) -> str:
        """Apache-2.0 for drawn people made with open tools; everything else is bound to consent and terms."""
        tags = set().union(*self.licences.values())
        return "apache-2.0" if fictional and tags <= OPEN_LICENCES else "other"


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    for split in SPLITS:
        path = folder / "videos" / f"{split}.parquet"
        if not path.is_file():
            continue
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name != "video"]
            for index in range(file.num_row_groups):
                yield from file.read_row_group(index, columns).to_pylist()


def dataset_card(
    manifest: dict[str, Any],
    folder: str | Path,
    *,
    repo: str | None = None,
    left_out: int = 0,
    consents: Sequence[Any] = (),
):
    """The card as a `huggingface_hub.DatasetCard`; `str(card)` is the text of README.md.

    Args:
        manifest: the content of dataset.json, of one subject or of several (`parts`).
        folder: where `videos/<split>.parquet` lie; neither README.md nor dataset.json need be there yet.
        repo: the name on the Hub, for the example; without it the example names the folder.
        left_out: reference clips that are not published.
        consents: the records (`ConsentRecord`) under which real people are published; who gave them stays private.

    Raises:
        ValueError: the metadata are not valid YAML for a card.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    facts = Facts.read(Path(folder))
    parts = manifest.get("parts") or [manifest]
    fictional = all(part.get("fictional", False) for part in parts)
    title = (
        f"Videos and questions about {parts[0]['subject']}"
        if len(parts) == 1
        else f"Videos and questions about {len(parts)} people"
    )
    licence = facts.licence(fictional)
    data = DatasetCardData(
        pretty_name=title,
        language=["en"],
        license=licence,
        **({"license_name": "consent-of-the-people-shown"} if licence == "other" else {}),
        task_categories=["video-text-to-text", "visual-question-answering"],
        tags=["pvchat", "video", "personalization", *(["synthetic"] if facts.synthetic.total() else [])],
        size_categories=[size_category(facts.questions.total())],
        annotations_creators=["machine-generated"],
        configs=[_config(name, facts.splits, manifest["dataset_hash"]) for name in ("qa", "videos")],
    )
    return DatasetCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title.replace("<", "`<").replace(">", ">`"),
        subjects=[part["subject"] for part in parts],
        place=repo or "FOLDER",
        facts=facts,
        origins=[_origin_row(facts, *key) for key in sorted(facts.origins, key=_origin_order)],
        fictional=fictional,
        real=[part for part in parts if not part.get("fictional", False)],
        consents=consents,
        licence=licence,
        tags=sorted(set().union(*facts.licences.values())),
        made=sorted({_how(part) for part in parts}),
        writers=sorted({part["writer"] for part in parts if part.get("writer")}),
        dataset_hash=manifest["dataset_hash"],
        left_out=left_out,
        limits=_limits(facts, fictional),
    )


def size_category(examples: int) -> str:
    """The Hub's word for a number of examples."""
    return next((name for limit, name in SIZES if examples < limit), "10M<n<100M")


def _config(name: str, splits: Sequence[str], dataset_hash: str) -> dict[str, Any]:
    """One config. The hash in it is for the cache of `datasets`: that tells local folders apart by their last name and
    their configs, and would otherwise give the rows of one person's `dataset/` for those of another's."""
    files = [{"split": split, "path": f"{name}/{split}.parquet"} for split in splits]
    default = {"default": True} if name == "qa" else {}
    return {"config_name": name, "data_files": files, **default, "description": f"content {dataset_hash[:16]}"}


def _origin_order(key: tuple[str, str]) -> tuple[int, int, str]:
    split, origin = key
    known = list(ORIGINS)
    return SPLITS.index(split), known.index(origin) if origin in known else len(known), origin


def _origin_row(facts: Facts, split: str, origin: str) -> dict[str, Any]:
    return {
        "split": split,
        "origin": origin,
        "meaning": ORIGINS.get(origin, origin),
        "clips": facts.origins[split, origin],
        "synthetic": facts.synthetic[split, origin],
        "made_by": ", ".join(sorted(facts.made_by[split, origin])),
        "licences": ", ".join(sorted(facts.licences[split, origin])),
    }


def _how(part: dict[str, Any]) -> str:
    """One line about how a subject's part was made; equal for parts that were made alike."""
    recipe = part.get("recipe")
    name = recipe["name"] if isinstance(recipe, dict) else recipe
    backends = ", ".join(f"{role} {what}" for role, what in sorted((part.get("backends") or {}).items()))
    by = part.get("created_by") or "pvchat"
    seed = f", seed {part['seed']}" if "seed" in part else ""
    return f"{by}, recipe `{name}`{seed}" + (f"; {backends}" if backends else "")


def _limits(facts: Facts, fictional: bool) -> list[str]:
    limits = []
    if fictional:
        limits.append("The people are drawn. What holds for them need not hold for anybody real.")
    if facts.sources["template"]:
        limits.append(
            f"{facts.sources['template']:,} of {facts.questions.total():,} answers come from a fixed bank of "
            "sentences; a model can learn their wording."
        )
    if facts.sources["vlm"]:
        limits.append(
            f"{facts.sources['vlm']:,} answers were written by a model that watched the clip, and no person checked "
            f"them; {facts.unrefined:,} of them could not be reworded to name the subject."
        )
    if facts.sources["truth"]:
        limits.append(f"{facts.sources['truth']:,} answers state what the generator of the clip knew.")
    if facts.shared:
        limits.append(f"{facts.shared} clips, or sources of clips, are in both splits: test scores are too good.")
    if "test" not in facts.splits:
        limits.append("There is no test split: nothing here says how well a model has learned.")
    elif 2 * facts.positives["test"] != facts.videos["test"]:
        limits.append(
            f"The test split is not balanced: {facts.positives['test']} of {facts.videos['test']} clips show the "
            "subject. Use balanced accuracy."
        )
    limits.append(
        "Each subject was learned from one clip: what the person looks like in other light, other years or another "
        "camera is guessed by the generators, and all positives share that clip's view of the person."
    )
    limits.append("Negatives are people that the builder had at hand, not a sample of any population.")
    return limits
