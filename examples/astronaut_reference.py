"""A reference video and a gallery for `pvchat build`, without a camera and without downloads.

python examples/astronaut_reference.py runs/astronaut
pvchat build runs/astronaut/reference.mp4 --name "<Nz>" --noun woman --gallery runs/astronaut/gallery \
    --consent runs/astronaut/consent.json --recipe light --out runs/astronaut/dataset

The video is the photograph of Eileen Collins that ships with scikit-image (NASA, public domain), filmed by a camera
that pans and zooms over head and shoulders for five seconds. The gallery is drawn: no library ships photographs of
many people, so the negatives of this dataset are easy. See docs/real_content.md.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from pvchat.dataset_builder.cartoon import write_population
from pvchat.dataset_builder.video_io import write_video

SECONDS, FPS = 5.0, 25
SIDE = 384  # pixels of the square frames
PEOPLE = 80  # in the gallery; the light recipe asks for up to 55
CONSENT = {
    "given_by": "NASA, who put the photograph into the public domain",
    "date": "2026-01-01",
    "scope": "show what the light recipe makes of a photograph; never publish",
}


def film() -> np.ndarray:
    """(125, 384, 384, 3) uint8. The camera goes there and back once, so the clip has no jump at its end."""
    photograph = Image.fromarray(data.astronaut())
    turn = 2 * np.pi * np.arange(round(SECONDS * FPS)) / (SECONDS * FPS)
    sides = 350 + 40 * np.cos(turn)  # pixels of the photograph
    left = 222 + 14 * np.sin(turn) - sides / 2
    top = np.maximum(0, 165 + 6 * np.sin(2 * turn) - sides / 2)  # the hair begins at 8
    boxes = zip(left, top, left + sides, top + sides, strict=True)
    return np.stack([np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box)) for box in boxes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / "reference.mp4", film(), FPS)
    write_population(folder / "gallery", people=PEOPLE)
    (folder / "consent.json").write_text(json.dumps(CONSENT, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
