"""How much does it save to read a video once, and to answer questions and videos together?

    python -m benchmarks.inference --threads 1
    python -m benchmarks.inference --write docs/results
    python -m benchmarks.inference --size full --write docs/results        (a GPU with 24 GB)

Ratios of wall time, both sides measured in turn in one process, the fastest of some; and of processor time, which
other work on the machine changes less.

- second question: from a question to its first token, about a video that was read, against the first question, which
  reads it (file, encoder, Q-Former, language model up to the question).
- re-encoding: all questions about a video one after the other, each with the video again, as the authors' code asks
  them, against a conversation. Both are greedy (the authors sample with five beams, which costs both the same more).
- batch of questions: one video, all questions one by one in a conversation, against all of them together.
- batch of videos: a question about each of several videos, one by one against together.

`tiny` stands for the published model on a processor: its parts cost, in proportion, about what they cost there, which
is counted here for both (the full model without data, on PyTorch's meta device). Weights are random: speed does not
depend on them. `full` is the published size, in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pvchat.errors import PVChatError
from pvchat.modeling_pvchat.modeling_pvchat import PVChatForConditionalGeneration
from pvchat.passport import passport, passport_line
from pvchat.session import VideoChat

from .command import command_line, make_parser, publish
from .cost_setup import NAME, config_of, make_processor, make_rows
from .counters import count_flops

MEMORY_GB = 20  # 16.9 of weights, and caches
PARTS = ("vision", "prefix", "question")
TITLES = {
    "second_question": "second question against the first, to the first token",
    "re_encoding": "conversation against the video again for every question",
    "question_batch": "questions together against one by one",
    "video_batch": "videos together against one by one",
}


def make_chat(size: str, seed: int = 0) -> VideoChat:
    """A chat with random weights; `"full"` on the GPU.

    Raises:
        PVChatError: the full size is asked for, and there is no GPU with enough memory.
    """
    torch.manual_seed(seed)
    if size == "tiny":
        device, dtype = "cpu", torch.float32
    else:
        device, dtype = "cuda", torch.bfloat16
        check_gpu()
    config = config_of(size)
    with torch.device(device):
        model = PVChatForConditionalGeneration._from_config(config, dtype=dtype).eval()
    return VideoChat(model, make_processor(config), NAME)


def check_gpu() -> None:
    """Raises PVChatError when there is no GPU that holds the full model."""
    found = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    if found is None or found.total_memory < MEMORY_GB * 1e9:
        what = "there is none" if found is None else f"{found.name} has {found.total_memory / 1e9:.0f} GB"
        raise PVChatError(f"The full size needs an NVIDIA GPU with {MEMORY_GB} GB, and {what}; leave out --size full.")


# -- what the parts cost ----------------------------------------------------------------------------------------------


def flops_of_parts(size: str, question_tokens: int) -> dict[str, float]:
    """GFLOP of video encoder with Q-Former, of the language model up to the question, and of a question with the
    logits of its first answer token; counted on a model without data."""
    config = config_of(size)
    with torch.device("meta"):
        model = PVChatForConditionalGeneration._from_config(config).eval()
        vision = config.vision_config
        side = vision.image_size
        pixels = torch.empty(1, config.num_tiles, vision.num_frames, 3, side, side)
        start = len(make_processor(config).encode_prefix())
        prefix = torch.empty(1, start, config.text_config.hidden_size)
        question = torch.empty(1, question_tokens, config.text_config.hidden_size)
    language_model, caches = model.model.language_model, []

    def read() -> None:
        caches.append(language_model(inputs_embeds=prefix, use_cache=True).past_key_values)

    def ask() -> None:
        hidden = language_model(inputs_embeds=question, past_key_values=caches[0], use_cache=True).last_hidden_state
        model.lm_head(hidden[:, -1])

    with torch.no_grad():
        counts = [count_flops(part) for part in (lambda: model.get_video_features(pixels), read, ask)]
    return {name: count / 1e9 for name, count in zip(PARTS, counts, strict=True)}


def flops_of_questions(chat: VideoChat, video: Any, question: str) -> tuple[int, int]:
    """FLOPs from the question to its first token, for the first question about a video and for the second one, counted
    in what `VideoChat` really runs."""
    conversations = []

    def first() -> None:
        conversations.append(chat.conversation(video))
        to_first_token(conversations[0], question)

    return count_flops(first), count_flops(lambda: to_first_token(conversations[0], question))


def to_first_token(conversation, question: str) -> None:
    for _ in conversation.stream(question, max_new_tokens=1):
        pass


# -- what is compared -------------------------------------------------------------------------------------------------


def re_encoded(chat: VideoChat, video: Path, questions: Sequence[str], max_new_tokens: int) -> list[str]:
    """Answers as the authors' code finds them: the file, the whole model and the whole prompt for every question."""
    processor, device = chat.processor, chat.model.device
    answers = []
    for question in questions:
        pixels = processor.video_processor(videos=[video], return_tensors="pt")["pixel_values_videos"].to(device)
        ids = torch.tensor([processor.encode_prefix() + processor.encode_question(question, NAME)], device=device)
        with torch.inference_mode():
            output = chat.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values_videos=pixels,
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        answers.append(processor.decode_answer(output[0, ids.shape[1] :], NAME))
    return answers


def conversed(chat: VideoChat, video: Path, questions: Sequence[str], max_new_tokens: int) -> list[str]:
    """The same answers with the video read once."""
    conversation = chat.conversation(video)
    return [conversation.ask(question, max_new_tokens) for question in questions]


def comparisons(chat: VideoChat, videos: list[Path], questions: list[str], tokens: int) -> dict[str, tuple]:
    """Name -> (slow way, fast way), functions without arguments."""
    video, question = videos[0], questions[0]
    known = chat.conversation(video)
    return {
        "second_question": (
            lambda: to_first_token(chat.conversation(video), question),
            lambda: to_first_token(known, question),
        ),
        "re_encoding": (
            lambda: re_encoded(chat, video, questions, tokens),
            lambda: conversed(chat, video, questions, tokens),
        ),
        "question_batch": (
            lambda: conversed(chat, video, questions, tokens),
            lambda: chat.ask_many([video], [questions], tokens)[0],
        ),
        "video_batch": (
            lambda: [chat.ask(one, question, tokens) for one in videos],
            lambda: [answer for (answer,) in chat.ask_many(videos, [[question]] * len(videos), tokens)],
        ),
    }


def measure(slow: Callable[[], Any], fast: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Least seconds of both, taken in turn after one warm-up each, their ratio, that of the seconds that processors
    were busy, and the share of equal answers (None where there are none to compare)."""
    seconds: dict[str, list[float]] = {"slow": [], "fast": []}
    busy: dict[str, list[float]] = {"slow": [], "fast": []}
    answers = {}
    for repeat in range(repeats + 1):
        for name, function in (("slow", slow), ("fast", fast)):
            start, worked = time.perf_counter(), time.process_time()
            answers[name] = function()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - worked)
    least = {f"{name}_seconds": min(values) for name, values in seconds.items()}
    same = None
    if answers["slow"] is not None:
        same = sum(a == b for a, b in zip(*answers.values(), strict=True)) / len(answers["slow"])
    return least | {
        "ratio": least["slow_seconds"] / least["fast_seconds"],
        "processor_ratio": min(busy["slow"]) / min(busy["fast"]),
        "same_answers": same,
    }


def parts_of_reading(chat: VideoChat, video: Path, repeats: int) -> dict[str, float]:
    """Least seconds of what a first question does before the question is read: file to pixels, pixels to tokens of
    the language model, and these to its cache."""
    net, device = chat.model, chat.model.device
    ids = torch.tensor([chat.processor.encode_prefix()], device=device)
    steps: dict[str, list[float]] = {"file": [], "vision": [], "prefix": []}
    for repeat in range(repeats + 1):
        marks = [time.perf_counter()]
        pixels = chat.processor.video_processor(videos=[video], return_tensors="pt")["pixel_values_videos"]
        marks.append(time.perf_counter())
        with torch.inference_mode():
            features = net.get_video_features(pixels.to(device))
            wait(device)
            marks.append(time.perf_counter())
            net(input_ids=ids, mm_encoder_outputs={"video": features}, use_cache=True, logits_to_keep=1)
            wait(device)
        marks.append(time.perf_counter())
        if repeat:
            for name, start, end in zip(steps, marks, marks[1:], strict=False):
                steps[name].append(end - start)
    return {name: min(values) for name, values in steps.items()}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# -- the page ---------------------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The result as the page that is committed."""
    config = result["passport"]["config"]
    lines = [
        "# Inference: read once, answer together",
        "",
        passport_line(result["passport"]),
        "",
        f"Size {config['size']}, {config['questions']} questions of {config['question_tokens']} tokens, answers of "
        f"{config['answer_tokens']}, {config['videos']} videos.",
        "",
        "| | slow, s | fast, s | times faster | less processor time | same answers |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["ratios"].items():
        same = "" if row["same_answers"] is None else f"{row['same_answers']:.0%}"
        lines.append(
            f"| {TITLES[name]} | {row['slow_seconds']:.4f} | {row['fast_seconds']:.4f} | {row['ratio']:.1f} "
            f"| {row['processor_ratio']:.1f} | {same} |"
        )
    lines += [
        "",
        "| share of the FLOPs of a first question | video encoder, Q-Former | prefix | question | first : second |",
        "|---|---|---|---|---|",
    ]
    for size, parts in result["flops"].items():
        total = sum(parts.values())
        shares = " | ".join(f"{parts[name] / total:.1%}" for name in PARTS)
        lines.append(f"| {size} ({total:.1f} GFLOP) | {shares} | {total / parts['question']:.1f} |")
    seconds = result["reading_seconds"]
    lines += [
        "",
        f"Of a first question, {seconds['file']:.4f} s are the file (decoded, scaled, cut into tiles), "
        f"{seconds['vision']:.4f} s video encoder and Q-Former, {seconds['prefix']:.4f} s the language model up to "
        f"the question.",
        "",
        "Slow is what the second half of a line names. Weights are random; `benchmarks/inference.py` says what is "
        "compared.",
    ]
    return "\n".join(lines) + "\n"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("inference", __doc__, "inference.{json,md}")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny", help="full needs a GPU (default: tiny)")
    parser.add_argument("--questions", type=int, default=18, help="about one video (default: 18, as in training)")
    parser.add_argument("--tokens", type=int, default=22, help="of an answer (default: 22)")
    parser.add_argument("--videos", type=int, default=8, help="in a batch (default: 8)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each (default: 5)")
    parser.add_argument("--threads", type=int, help="processor threads (default: PyTorch's)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def run(args: argparse.Namespace, command: str) -> dict[str, Any]:
    chat = make_chat(args.size, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows(Path(folder), described=1, others=args.videos - 1, seed=args.seed)
        videos = [Path(row["path"]) for row in rows]
        questions = [qa["question"] for qa in rows[0]["qa"]][: args.questions]
        length = len(chat.processor.encode_question(questions[0], NAME))
        ratios = {
            name: measure(slow, fast, args.repeats)
            for name, (slow, fast) in comparisons(chat, videos, questions, args.tokens).items()
        }
        reading = parts_of_reading(chat, videos[0], args.repeats)
    config = {
        "size": args.size,
        "parameters": sum(parameter.numel() for parameter in chat.model.parameters()),
        "dtype": str(chat.model.dtype).removeprefix("torch."),
        "videos": len(videos),
        "questions": len(questions),
        "question_tokens": length,
        "answer_tokens": args.tokens,
        "repeats": args.repeats,
        "threads": torch.get_num_threads(),
    }
    flops = {size: flops_of_parts(size, length) for size in dict.fromkeys((args.size, "full"))}
    return {
        "ratios": ratios,
        "reading_seconds": reading,
        "flops": flops,
        "passport": passport(command, config, args.seed),
    }


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        result = run(args, command_line("inference", argv))
    except PVChatError as error:
        print(f"benchmarks.inference: {error}", file=sys.stderr)
        return 1
    publish(result, markdown(result), "inference", args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
