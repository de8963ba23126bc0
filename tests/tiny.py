"""What all tests share: a model of a few ten thousand parameters, its processor, drawn clips and a small dataset.

Import it as `from tests.tiny import tiny_model, tiny_processor, ...`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from pvchat.modeling_pvchat.configuration_pvchat import PVChatConfig

SUBJECT = "<Nz>"
IMAGE_SIZE = 32
NUM_FRAMES = 4
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<video>", "<sks>", "[INST]", "[/INST]")
QUESTIONS = {
    "existence": ("Is {name} in this video?", "Yes, {name} is in the video.", "No, {name} is not in the video."),
    "appearance": ("What does {name} look like?", "{name} has red hair.", "I do not see {name}."),
    "action": ("What is {name} doing?", "{name} is moving to the right.", "I do not see {name}."),
    "location": ("Where is {name}?", "{name} is in a green place.", "I do not see {name}."),
}


def tiny_config(routing: str = "none", tile_grid: tuple[int, int] | None = None, tie: bool = False) -> PVChatConfig:
    """Vision 32 x 3 layers, Q-Former 32 x 4 layers (2 shared + 2 routed heads from layer 2), Mistral 32 x 2 layers."""
    return PVChatConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": 8,
            "num_frames": NUM_FRAMES,
            "layer_scale_init_value": 0.3,
        },
        qformer_config={
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "has_text_branch": False,
            "routing": routing,
            "routing_start_layer": 2,
            "num_shared_heads": 2,
            "num_routed_heads": 2,
            "num_active_heads": 1,
        },
        text_config={
            "model_type": "mistral",
            "vocab_size": len(tiny_tokenizer()),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "sliding_window": None,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "tie_word_embeddings": tie,
        },
        num_query_tokens=4,
        num_extra_query_tokens=2,
        num_subject_tokens=3,
        tile_grid=tile_grid,
        video_token_id=SPECIAL_TOKENS.index("<video>"),
        subject_token_id=SPECIAL_TOKENS.index("<sks>"),
        tie_word_embeddings=tie,
    )


def tiny_model(seed: int = 0, **config):
    """A `PVChatForConditionalGeneration` with random weights (fixed by `seed`), float32, eval mode."""
    from pvchat.modeling_pvchat.modeling_pvchat import PVChatForConditionalGeneration

    torch.manual_seed(seed)
    return PVChatForConditionalGeneration(tiny_config(**config)).eval()


def randomised(model, std: float = 0.2, seed: int = 1):
    """All weights random, so that nothing hides behind zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model


def pixels(videos: int = 1, tiles: int = 1, seed: int = 0) -> torch.Tensor:
    """(videos, tiles, NUM_FRAMES, 3, 32, 32) noise."""
    size = (videos, tiles, NUM_FRAMES, 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def prompt(rows: int = 1, tiles: int = 1, text: int = 6, seed: int = 0) -> torch.Tensor:
    """(rows, 1 + 9 * tiles + text) ids: start, the slots of one video, random text."""
    words = torch.randint(5, 300, (rows, text), generator=torch.Generator().manual_seed(seed))
    slots = torch.full((rows, 9 * tiles), SPECIAL_TOKENS.index("<video>"))
    return torch.cat([torch.ones(rows, 1, dtype=torch.long), slots, words], dim=1)


def tiny_tokenizer(special_tokens: tuple[str, ...] = SPECIAL_TOKENS):
    """Byte-level BPE over the test sentences: any text can be encoded. Ids are 0, 1, ... for `special_tokens`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    corpus = [text.format(name="the person") for texts in QUESTIONS.values() for text in texts]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        additional_special_tokens=list(special_tokens[3:]),
    )


def tiny_processor(tile_grid: tuple[int, int] | None = None):
    """The `PVChatProcessor` that fits `tiny_config(tile_grid=tile_grid)`."""
    from pvchat.modeling_pvchat.processing_pvchat import PVChatProcessor
    from pvchat.modeling_pvchat.video_processing_pvchat import PVChatVideoProcessor

    config = tiny_config(tile_grid=tile_grid)
    video_processor = PVChatVideoProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, num_frames=NUM_FRAMES, tile_grid=tile_grid
    )
    return PVChatProcessor(
        video_processor=video_processor,
        tokenizer=tiny_tokenizer(),
        num_tiles=config.num_tiles,
        tokens_per_tile=config.tokens_per_tile,
    )


def tiny_base(folder: Path, seed: int = 0, **config) -> Path:
    """Saves model and processor as a checkpoint folder and returns it."""
    tiny_model(seed, **config).save_pretrained(folder)
    tiny_processor(config.get("tile_grid")).save_pretrained(folder)
    return folder


def tiny_clip(subject_present: bool, seed: int = 0, frames: int = 8, size: int = IMAGE_SIZE) -> np.ndarray:
    """A square that moves to the right, (T, H, W, 3) uint8: red for the subject, blue for everybody else."""
    rng = np.random.default_rng(seed)
    clip = np.empty((frames, size, size, 3), np.uint8)
    clip[:] = rng.integers(60, 120, size=3)
    side, top, left = size // 3, int(rng.integers(0, size // 2)), int(rng.integers(0, size // 3))
    colour = (220, 30, 30) if subject_present else (30, 30, 220)
    for t in range(frames):
        x = min(left + t, size - side)
        clip[t, top : top + side, x : x + side] = colour
    return clip


def tiny_videos(
    folder: Path, positives: int = 3, negatives: int = 5, qa_copies: int = 1, split: str = "train", draw=tiny_clip
):
    """Writes clips as mp4 under `folder/clips` and returns their `VideoRow`s, each with its questions.

    Every clip gets the questions of `QUESTIONS`, `qa_copies` times. `draw(subject_present, seed)` gives its frames.
    """
    from pvchat.dataset_builder.records import STILL_CATEGORIES, QARow, VideoRow
    from pvchat.dataset_builder.video_io import write_video

    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(positives + negatives):
        present = index < positives
        seed = index + (1000 if split == "test" else 0)
        video_id = f"{split}-{index:03d}"
        path = folder / "clips" / f"{video_id}.mp4"
        clip = draw(present, seed)
        write_video(path, clip, fps=8.0)
        qa = [
            QARow(
                qa_id=f"{video_id}-{category}-{copy}",
                video_id=video_id,
                subject=SUBJECT,
                split=split,
                category=category,
                question=question.format(name=SUBJECT),
                answer=(yes if present else no).format(name=SUBJECT),
                subject_present=present,
                source="template",
                refined_by="none",
                still_ok=category in STILL_CATEGORIES,
            )
            for copy in range(qa_copies)
            for category, (question, yes, no) in QUESTIONS.items()
        ]
        rows.append(
            VideoRow(
                video_id=video_id,
                subject=SUBJECT,
                split=split,
                subject_present=present,
                origin="original" if index == 0 else ("animated" if present else "random_negative"),
                parent_ids=(),
                backend="tests",
                seed=seed,
                id_score=None,
                fps=8.0,
                num_frames=len(clip),
                width=clip.shape[2],
                height=clip.shape[1],
                licences=("CC0-1.0",),
                synthetic=True,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                path=path,
                qa=tuple(qa),
            )
        )
    return rows


def tiny_dataset(
    folder: Path, positives: int = 3, negatives: int = 5, qa_copies: int = 1, test: int = 0, draw=tiny_clip
):
    """A `LocalDataset` of drawn clips; `test` clips of each kind go to the test split."""
    from pvchat.dataset_builder import LocalDataset

    rows = tiny_videos(folder, positives, negatives, qa_copies, draw=draw)
    if test:
        rows += tiny_videos(folder, test, test, qa_copies, split="test", draw=draw)
    digest = hashlib.sha256("".join(row.sha256 for row in rows).encode()).hexdigest()
    manifest = {"format_version": 1, "subject": SUBJECT, "noun": "person", "dataset_hash": digest}
    return LocalDataset(subject=SUBJECT, manifest=manifest, videos=rows, root=folder)
