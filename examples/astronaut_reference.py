"""A reference clip with a real face, and clips of other people, without a camera and without downloads.

    python examples/astronaut_reference.py real/
    pvchat build real/reference.mp4 --name "<Nz>" --noun woman --gallery real/others --i-have-consent --out real/dataset

The clip is a camera that travels over the portrait of Eileen Collins that comes with scikit-image (NASA, public
domain), 5 s at 25 fps. The others are drawn: no library brings pictures of many people (scikit-image's 100 faces of
LFW are 25 pixels wide and show nothing but the face, which leaves nothing to cut out). So the dataset shows that the
pipeline handles what nobody drew; a model learns nothing from it but to tell a photograph from a drawing. What came
out is described in docs/real_content.md.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from pvchat.dataset_builder.cartoon import write_population
from pvchat.dataset_builder.video_io import write_video

FPS, SECONDS, SIDE = 25, 5, 384
START, END = (70, 0, 330), (115, 25, 250)  # left, top and side of what the camera sees, in pixels of the portrait
OTHERS = 80  # the light recipe shows up to 55 of them


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
    out.mkdir(parents=True, exist_ok=True)
    write_video(out / "reference.mp4", camera_travel(skimage.data.astronaut()), FPS)
    write_population(out / "others", people=OTHERS)
    print(out / "reference.mp4")


if __name__ == "__main__":
    main()
