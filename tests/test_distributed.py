"""Training in two processes, with gloo on the processor, against training in one."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pvchat.errors import PVChatError
from pvchat.runs import personalize
from pvchat.trainers.adapter import AdapterSettings, build_subject_model
from pvchat.trainers.collator import training_rows
from pvchat.trainers.config import Stage2Config
from pvchat.trainers.distributed import FullBatches, blank_row
from pvchat.trainers.run import train_subject
from pvchat.trainers.video_stage import VideoStageTrainer
from tests.tiny import tiny_base, tiny_dataset, tiny_model, tiny_processor

# 9 clips in batches of 4: the last batch of an epoch has one clip, and nothing for the second process.
BATCH = 4
SETTINGS = {
    "adapter": {"dropout": 0.0, "rank": 2},  # without dropout, for its masks are drawn by each process
    "train": {"router_learning_rate": 0.05, "qa_per_video": 3},
    "1": {"num_train_epochs": 1},
    "2": {"num_train_epochs": 3},
}
# Both trainings, then the gradients of a step of a sharded model, in one start of two processes.
SCRIPT = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import torch
    from tests import test_distributed as own

    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    own.train(root, root / "two", processes=2)
    own.train_with_a_stop(root, root / "stopped", processes=2)
    own.save_gradients(root, root / "sharded.safetensors", shard=True)
    torch.distributed.destroy_process_group()
    """
)


def train(root: Path, out: Path, processes: int):
    dataset = pickle.loads((root / "dataset.pickle").read_bytes())
    size = {"per_device_train_batch_size": BATCH // processes}
    return train_subject(root / "base", dataset, out, settings=SETTINGS | {"train": SETTINGS["train"] | size})


def train_with_a_stop(root: Path, out: Path, processes: int):
    """Stops behind the second checkpoint of stage 2, and is called again."""

    class Stop(Exception):
        pass

    def save_and_stop(trainer, *args):
        save(trainer, *args)
        if trainer.state.global_step == 6:
            raise Stop

    save = VideoStageTrainer._save_checkpoint
    VideoStageTrainer._save_checkpoint = save_and_stop
    with pytest.raises(Stop):
        train(root, out, processes)
    VideoStageTrainer._save_checkpoint = save
    assert (out / "stage2" / "checkpoints").is_dir()
    return train(root, out, processes)


def save_gradients(root: Path, target: Path, shard: bool):
    """Gradients of one step on 7 clips; sharded, the two processes have 4 and 3 of them, and a blank row."""
    rows = training_rows(pickle.loads((root / "dataset.pickle").read_bytes()).split("train"), still=False)[:7]
    model = build_subject_model(tiny_model(), AdapterSettings(profile="paper", num_vision_layers=1, dropout=0.0))
    args = Stage2Config(str(root / "unused"))
    trainer = VideoStageTrainer(model, args, rows, tiny_processor(), "paper")
    trainer.current_gradient_accumulation_steps = 1
    trainer.controller.beta = 1.0
    model.train()
    own = [rows[:4], [*rows[4:], blank_row(rows)]][args.process_index] if shard else rows
    if shard:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        inner = model.get_base_model().model
        for layer in [*inner.vision_tower.layers, *inner.qformer.encoder.layer, *inner.language_model.layers]:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    count = (trainer.data_collator(rows)["labels"] != -100).sum()
    loss = trainer.compute_loss(model, trainer.data_collator(own), num_items_in_batch=count)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if shard:
        gradients = {name: gradient.full_tensor() for name, gradient in gradients.items()}
    if args.process_index == 0:
        save_file(gradients, target)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a base, a dataset, `one/` (one process), `two/` and `stopped/` (two), and gradients."""
    root = tmp_path_factory.mktemp("distributed")
    tiny_base(root / "base")
    dataset = tiny_dataset(root / "data", positives=4, negatives=5, qa_copies=2)
    (root / "dataset.pickle").write_bytes(pickle.dumps(dataset))
    (root / "script.py").write_text(SCRIPT)
    launch = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no".split()
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "--main_process_port", "0"]
    place = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [*command, str(root / "script.py"), str(root)],
        env=os.environ | {"PYTHONPATH": place, "OMP_NUM_THREADS": "1"}, cwd=root,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(root, root / "one", processes=1)
        save_gradients(root, root / "whole.safetensors", shard=False)
        output, _ = process.communicate(timeout=280)
    finally:
        torch.set_num_threads(threads)
        process.kill()
    assert process.returncode == 0, output[-4000:]
    return root


def history(run: Path, stage: int) -> list[dict]:
    return json.loads((run / f"stage{stage}" / "history.json").read_text())["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("stage, steps", [(1, 3), (2, 9)])
def test_two_processes_have_the_losses_and_the_sparsity_state_of_one(root, stage, steps):
    one, two = history(root / "one", stage), history(root / "two", stage)
    assert len(one) == steps
    assert len({round(step["active_heads"], 3) for step in one}) > 1, "nothing was routed"
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, abs=5e-6)
    states = [json.loads((root / run / f"stage{stage}" / "controller.json").read_text()) for run in ("one", "two")]
    assert states[0]["beta"] == pytest.approx(states[1]["beta"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["two", "stopped"])
def test_two_processes_end_with_the_weights_of_one(root, run):
    """Also when both were stopped and went on from their checkpoint."""
    one, two = (load_file(root / name / "adapter" / "adapter_model.safetensors") for name in ("one", run))
    assert one.keys() == two.keys()
    for name, expected in one.items():
        assert (expected - two[name]).abs().max() < 1e-5, name  # a hundredth of a step: Adam divides noise by noise


@pytest.mark.slow
def test_one_process_writes_and_leaves_what_one_process_leaves(root):
    files = [sorted(str(p.relative_to(root / run)) for p in (root / run).rglob("*")) for run in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_step_of_a_sharded_model_has_the_gradients_of_one_process(root):
    whole, sharded = load_file(root / "whole.safetensors"), load_file(root / "sharded.safetensors")
    assert whole.keys() == sharded.keys()
    assert {"vision_tower", "qformer", "language_model", "subject_tokens", "head_router", "lm_head"} <= {
        part for name in whole for part in name.split(".")
    }
    for name, expected in whole.items():
        scale = expected.abs().max().clamp(min=1e-3)
        assert (expected - sharded[name]).abs().max() < 1e-5 * scale, name


@pytest.mark.parametrize("rows, processes", [(9, 2), (8, 2), (1, 2), (11, 3), (12, 3)])
def test_blank_rows_fill_up_the_last_batch_of_all_processes_and_no_other(rows, processes):
    inner = torch.utils.data.BatchSampler(range(rows), 2, drop_last=False)
    batches = list(FullBatches(inner, blank=-1, processes=processes))
    assert len(batches) == len(FullBatches(inner, -1, processes)) and len(batches) % processes == 0
    assert {len(batch) for batch in batches} == {2}
    flat = [index for batch in batches for index in batch]
    assert flat[:rows] == list(range(rows)) and set(flat[rows:]) <= {-1}
    assert len(flat) - rows < 2 * processes


def test_personalize_in_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PVChatError, match="accelerate launch -m pvchat train"):
        personalize(tmp_path / "clip.mp4", "Nz", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ungrouped_training_in_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Stage2Config, "world_size", 2)
    model = build_subject_model(tiny_model(), AdapterSettings())
    with pytest.raises(PVChatError, match="one process"):
        VideoStageTrainer(model, Stage2Config(str(tmp_path)), [], tiny_processor(), "light", grouped=False)
