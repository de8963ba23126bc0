"""The demonstration: a drawn person is learned from one clip, with the real pipeline and the real trainers.

The pipeline sees the pixels of the reference clip only. The drawn world supplies what a user would have at hand: a
gallery of other people and, for the scores, clips of the person and of others that no training step has seen.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from .files import write_json
from .run_folder import Run, check_run_folder
from .runs import personalize, stage_bars

ASSETS = Path(__file__).parent / "assets" / "demo"
NAME = "<Nz>"


def demo(
    out: str | Path, *, seed: int = 0, progress: bool = False, command: str | None = None
) -> tuple[Run, list[dict[str, str]]]:
    """Learns the bundled cast member and asks five questions.

    Returns the run, and per question `{"clip", "truth", "question", "answer"}`.

    Raises:
        PVChatError: `out` holds something else.
    """
    from .dataset_builder.cartoon import cast, write_gallery, write_test_clips
    from .session import VideoChat

    out = Path(out)
    check_run_folder(out)
    member = cast(1)[0]
    with stage_bars(progress) as bars:
        write_gallery(member, out / "gallery", progress=partial(bars, "gallery"))
    test_clips = write_test_clips(member, out / "test")
    other = ASSETS / "other-subject"
    run = personalize(
        ASSETS / "reference.mp4",
        NAME,
        out=out,
        gallery=out / "gallery",
        test_clips=test_clips,
        wrong_adapters=[other] if other.is_dir() else [],
        seed=seed,
        progress=progress,
        command=command,
    )
    chat = VideoChat.from_pretrained(None, run.adapter)
    answers = ask(chat, test_clips)
    write_json(out / "report" / "demo_answers.json", answers)
    return run, answers


def ask(chat, test_clips) -> list[dict[str, str]]:
    """Five questions: three about an unseen clip of the person, one each about a look-alike and a stranger."""
    here = next(clip for clip in test_clips if clip[1])
    alike = next(clip for clip in test_clips if clip[2] == "hard_negative")
    stranger = next(clip for clip in test_clips if clip[2] == "random_negative")
    asked = [
        (here, "the subject", f"Is {NAME} in this video?"),
        (here, "the subject", f"What is {NAME} wearing?"),
        (here, "the subject", f"What is {NAME} doing?"),
        (alike, "a look-alike", f"Is {NAME} in this video?"),
        (stranger, "a stranger", f"Does {NAME} appear in the clip?"),
    ]
    answers = chat.ask_many([clip[0] for clip, _, _ in asked], [[question] for _, _, question in asked])
    return [
        {"clip": clip[0].name, "truth": truth, "question": question, "answer": answer[0]}
        for (clip, truth, question), answer in zip(asked, answers, strict=True)
    ]
