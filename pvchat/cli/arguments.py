"""Arguments that several commands share, and what they turn into."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..errors import PVChatError

TEST_FOLDERS = {
    "subject": (True, "user"),
    "lookalikes": (False, "hard_negative"),
    "strangers": (False, "random_negative"),
}
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


def add_subject(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF.mp4", type=Path, help="a video in which the person is seen")
    parser.add_argument("--name", required=True, help='the name to learn, such as "<Nz>"')
    parser.add_argument(
        "--noun", default="person", help="what the text calls them: person, woman, man (default: person)"
    )
    whom = parser.add_mutually_exclusive_group()
    whom.add_argument(
        "--subject-box", metavar="X0,Y0,X1,Y1", help="where the person is in the first frame, in pixels, among several"
    )
    whom.add_argument(
        "--subject-photo",
        type=Path,
        metavar="PHOTO",
        help="or a picture of them, with recipes that find faces (default: whoever is longest on screen)",
    )
    parser.add_argument("--gallery", type=Path, help="folder of other people, one person per picture or video")
    parser.add_argument("--test", type=Path, help="folder with subject/, lookalikes/, strangers/: clips to test on")
    parser.add_argument(
        "--consent", type=Path, metavar="FILE", help="consent record (JSON: given_by, date, scope, expires)"
    )
    parser.add_argument(
        "--i-have-consent", action="store_true", help="declare it: writes the record of an adult, dated today"
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="light", help="light (CPU, no downloads) or paper (default: light)")


def add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", help="checkpoint folder or Hub name (default: the embedded pvchat-cartoon)")


def add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", choices=("light", "paper"), default="light", help="adapter size (default: light)")
    parser.add_argument("--attention", choices=("remoh", "moh", "none"), default="remoh", help="default: remoh")
    parser.add_argument("--config", type=Path, metavar="YAML", help="training settings: adapter, train, '1', '2'")


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")


def read_settings(path: Path | None) -> dict[str, dict[str, Any]]:
    """The mapping in a YAML file of training settings.

    Raises:
        PVChatError: the file cannot be read or does not map groups to settings.
    """
    if path is None:
        return {}
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise PVChatError(f"The settings {path} cannot be read as YAML: {error}.") from error
    if not isinstance(data, dict) or not all(isinstance(group, dict) for group in data.values()):
        raise PVChatError(f"The settings {path} must map groups (adapter, train, 1, 2) to settings.")
    return {str(key): group for key, group in data.items()}


def read_test_clips(folder: Path | None) -> list[tuple[Path, bool, str, None]]:
    """Test clips in the layout of `--test`.

    Raises:
        PVChatError: no such folder, or nothing to test on in it.
    """
    if folder is None:
        return []
    clips = [
        (path, present, origin, None)
        for name, (present, origin) in TEST_FOLDERS.items()
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in VIDEO_SUFFIXES
    ]
    if not any(present for _, present, _, _ in clips) or all(present for _, present, _, _ in clips):
        raise PVChatError(
            f"The test folder {folder} needs videos in subject/ and in lookalikes/ or strangers/; "
            f"found {len(clips)} usable video(s)."
        )
    return clips


def subject_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_subject`, `add_recipe`, `add_base` and `add_seed` ask for, as arguments of `personalize` and `build`.

    Raises:
        PVChatError: the name, the box, the test folder or the consent file cannot be used.
    """
    from ..dataset_builder import normalise_name
    from ..runs import given_consent

    name = normalise_name(args.name)
    return {
        "reference": args.reference,
        "name": name,
        "base": args.base,
        "recipe": args.recipe,
        "gallery": args.gallery,
        "test_clips": read_test_clips(args.test),
        "consent": given_consent(args.consent, args.i_have_consent, args.reference, name),
        "noun": args.noun,
        "box": None if args.subject_box is None else read_box(args.subject_box),
        "photo": args.subject_photo,
        "seed": args.seed,
        "progress": args.progress,
    }


def read_box(text: str) -> tuple[float, ...]:
    """Raises PVChatError when the text is not numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise PVChatError(f"A box is X0,Y0,X1,Y1 in pixels, such as 20,10,300,470; got {text!r}.") from error


def adapter_folder(path: Path) -> Path:
    """The adapter of a run folder, or the folder itself if it is an adapter.

    Raises:
        PVChatError: neither.
    """
    for folder in (path / "adapter", path):
        if (folder / "adapter_config.json").exists():
            return folder
    raise PVChatError(f"{path} is neither a run nor an adapter: no adapter_config.json. Pass for example runs/Nz.")


def find_adapter(place: str) -> Path:
    """As `adapter_folder`, and a local copy of an adapter on the Hub ("USER/NAME").

    Raises:
        PVChatError: none of these.
    """
    from ..hub import subject_folder

    return adapter_folder(subject_folder(place))
