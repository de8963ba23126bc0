"""A `datasets` builder over a finished dataset folder, with the configs `qa` (one row per question, the default) and
`videos` (one row per clip with its mp4 bytes).

    from pvchat.dataset_builder.builder import PVChatDataset
    builder = PVChatDataset("videos", data_dir=folder, cache_dir=cache)
    builder.download_and_prepare()
    dataset = builder.as_dataset("train")

Plain `load_dataset(folder, "qa")` gives the same rows without this package.
"""

from __future__ import annotations

import datasets
import pyarrow.parquet as pq

from ..errors import PVChatError
from .assemble import SPLITS, load_local


class PVChatDataset(datasets.GeneratorBasedBuilder):
    """data_dir: a folder written by `build_dataset` or `assemble_dataset`. Raises PVChatError when it is not one."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIGS = [
        datasets.BuilderConfig(name="qa", version=VERSION, description="one row per question"),
        datasets.BuilderConfig(name="videos", version=VERSION, description="one row per clip, with its mp4 bytes"),
    ]
    DEFAULT_CONFIG_NAME = "qa"

    def _files(self) -> dict[str, str]:
        if self.config.data_dir is None:
            raise PVChatError("PVChatDataset needs data_dir, a folder made by pvchat build.")
        root = load_local(self.config.data_dir).root
        paths = {split: root / self.config.name / f"{split}.parquet" for split in SPLITS}
        return {split: str(path) for split, path in paths.items() if path.is_file()}

    def _info(self) -> datasets.DatasetInfo:
        schema = pq.read_schema(next(iter(self._files().values())))
        return datasets.DatasetInfo(
            description="Videos of one person and of others, with questions about that person.",
            features=datasets.Features.from_arrow_schema(schema),
        )

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(split, gen_kwargs={"path": path}) for split, path in self._files().items()]

    def _generate_examples(self, path: str):
        key = 0
        for batch in pq.ParquetFile(path).iter_batches(batch_size=16):
            for row in batch.to_pylist():
                yield key, row
                key += 1
