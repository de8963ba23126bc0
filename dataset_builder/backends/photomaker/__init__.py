"""PhotoMaker: portraits of a person from a few pictures and a prompt, on Stable Diffusion XL.

    encoder    the identity encoders V1 and V2 (pictures + prompt embeddings -> prompt embeddings)
    prompt     the trigger word and the preparation of the pictures
    pipeline   identity embeddings from a denoising step on, on top of diffusers' StableDiffusionXLPipeline
    portraits  the backend

Li et al., "PhotoMaker: Customizing Realistic Human Photos via Stacked ID Embedding" (2312.04461). The networks load
the files of TencentARC/PhotoMaker and TencentARC/PhotoMaker-V2 by name.
"""

from .encoder import PhotoMakerIDEncoder, PhotoMakerIDEncoderV2
from .portraits import PhotoMakerPortraits

__all__ = ["PhotoMakerIDEncoder", "PhotoMakerIDEncoderV2", "PhotoMakerPortraits"]
