"""A reference clip with a real face, from a photograph that comes with scikit-image, and drawn people as the others.

    python examples/astronaut_reference.py real/
    pvchat build real/reference.mp4 --name "<Nz>" --gallery real/others --i-have-consent --out real/dataset

The clip is a camera that travels over the portrait of Eileen Collins (NASA, public domain), 5 s at 25 fps. The others
are 80 people of the cartoon world, as no library brings photographs of many people. This shows the pipeline run on
something that nobody drew. It is nothing to learn a person from: a photograph is told from drawings without looking at
who is in it.
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
OTHERS = 80


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
