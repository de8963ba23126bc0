"""Tiny random models of the real classes that look at clips and answer questions, and their processors."""

from __future__ import annotations

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import make_batched_metadata

from pvchat.dataset_builder.backends.vlm import (
    ChatWriter,
)

QUESTIONS = ["What is the person doing in this video, in a few words?", "Where?", "What does the person wear?"]
TOKENS = 12
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>",
    "<|image_pad|>",
]  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|image_pad|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer():
    """Bytes, and the special tokens of Qwen as ids 0 to 6."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(QUESTIONS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=SPECIAL[0], eos_token=SPECIAL[2], chat_template=TEMPLATE,
        additional_special_tokens=SPECIAL[1:],
    )  # fmt: skip


def louder(model, factor: float = 8.0):
    """Larger weights, so that answers differ between questions and clips."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model.eval()


class VideoPatches(VideoProcessorMixin):
    """What Qwen3VLVideoProcessor makes of frames of fitting size, without torchvision: patches in its own order."""

    model_input_names = ["pixel_values_videos", "video_grid_thw"]
    patch_size, temporal_patch_size, merge_size = 8, 2, 2

    def preprocess(self, videos, video_metadata=None, return_tensors=None, **kwargs):
        from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

        patches, grids = [], []
        for frames in videos:
            pixels = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
            flat, *grid = Qwen3VLVideoProcessor.patchify(
                self, pixels, self.patch_size, self.merge_size, self.temporal_patch_size
            )
            patches.append(flat[0])
            grids.append(grid)
        data = {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)}
        made = BatchFeature(data, tensor_type=return_tensors)
        made["video_metadata"] = make_batched_metadata(videos, video_metadata=video_metadata)
        return made


def qwen_processor():
    from transformers import Qwen3VLProcessor

    class Processor(Qwen3VLProcessor):
        def check_argument_for_proper_class(self, name, argument):
            if name == "video_processor":  # looked up in a table that needs torchvision
                return VideoProcessorMixin
            return super().check_argument_for_proper_class(name, argument)

    from transformers import Qwen2VLImageProcessorPil

    return Processor(Qwen2VLImageProcessorPil(), tokenizer(), VideoPatches(), chat_template=TEMPLATE)


IDS = {
    "vision_start_token_id": 3, "vision_end_token_id": 4, "video_token_id": 5, "image_token_id": 6,
}  # fmt: skip
TEXT = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True,
    },
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 8, "temporal_patch_size": 2,
    "spatial_merge_size": 2, "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
}  # fmt: skip


def tiny_qwen3_vl():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(0)
    return louder(Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=TEXT, vision_config=VISION, **IDS)), 4.0)


def tiny_qwen3_5():
    """Has layers with a recurrent state, which cannot be shared."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    torch.manual_seed(0)
    text = TEXT | {
        "layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "rope_parameters": TEXT["rope_parameters"] | {"partial_rotary_factor": 1.0},
    }  # fmt: skip
    vision = {key: value for key, value in VISION.items() if key != "deepstack_visual_indexes"}
    return louder(Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **IDS)))


def tiny_llava():
    """Sees pictures only, and counts positions plainly."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    torch.manual_seed(1)
    text = LlamaConfig(**{k: v for k, v in TEXT.items() if k != "rope_parameters"})
    part = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**part, image_size=32, patch_size=16, projection_dim=32)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=6, vision_feature_layer=-1)
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer(),
        patch_size=16, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        image_token="<|image_pad|>", chat_template=TEMPLATE,
    )  # fmt: skip
    return louder(model), processor


def make_writer(kind: str) -> ChatWriter:
    if kind == "llava":
        model, processor = tiny_llava()
    else:
        model, processor = {"qwen3_vl": tiny_qwen3_vl, "qwen3_5": tiny_qwen3_5}[kind](), qwen_processor()
    return ChatWriter(lambda: (model, processor), f"tiny-{kind}@0", max_new_tokens=TOKENS)
