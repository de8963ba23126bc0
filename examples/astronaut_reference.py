"""A reference clip with a real face, and pictures of other people, from pictures that come with scikit-image.

    python examples/astronaut_reference.py real/
    pvchat build real/reference.mp4 --name "<Nz>" --gallery real/others --i-have-consent --out real/dataset

The clip is a camera that travels over the portrait of Eileen Collins (NASA, public domain), 5 s at 25 fps. The others
are 100 faces of Labeled Faces in the Wild at 25 x 25 pixels, enlarged: enough to see the pipeline run on something
that nobody drew, far too little to learn from.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from pvchat.dataset_builder.video_io import write_video

FPS, SECONDS, SIDE = 25, 5, 384
START, END = (70, 0, 330), (115, 25, 250)  # left, top and side of what the camera sees, in pixels of the portrait
OTHERS, OTHER_SIDE = 100, 200


def camera_travel(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (T, SIDE, SIDE, 3) uint8."""
    image = Image.fromarray(picture)
    frames = []
    for t in np.linspace(0, 1, FPS * SECONDS):
        ease = t * t * (3 - 2 * t)
        left, top, side = (a + (b - a) * ease for a, b in zip(START, END, strict=True))
        box = (left, top, left + side, top + side)
        frames.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)))
    return np.stack(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for reference.mp4 and others/")
    out = parser.parse_args().out
    (out / "others").mkdir(parents=True, exist_ok=True)
    write_video(out / "reference.mp4", camera_travel(skimage.data.astronaut()), FPS)
    for number, face in enumerate(skimage.data.lfw_subset()[:OTHERS]):
        image = Image.fromarray((face.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
        image.resize((OTHER_SIDE, OTHER_SIDE), Image.Resampling.BICUBIC).save(
            out / "others" / f"face-{number:03d}.png"
        )
    print(out / "reference.mp4")


if __name__ == "__main__":
    main()
