"""The two stages: what moves, what the losses do, and that a run can be stopped and resumed anywhere."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from pvchat.dataset_builder.cartoon import Scene, cast, render_clip
from pvchat.errors import PVChatError
from pvchat.session import EMBEDDED_BASE
from pvchat.trainers.adapter import AdapterSettings, SubjectRecord, build_subject_model, load_subject_adapter
from pvchat.trainers.base import STATE_FILE, last_checkpoint
from pvchat.trainers.collator import training_rows
from pvchat.trainers.config import Stage1Config, Stage2Config
from pvchat.trainers.features import FeatureCache
from pvchat.trainers.freezing import kind_of
from pvchat.trainers.image_stage import ImageStageTrainer
from pvchat.trainers.run import train_subject
from pvchat.trainers.sparsity import SparsityController, quantile_spr_loss
from pvchat.trainers.video_stage import VideoStageTrainer
from tests.tiny import SUBJECT, tiny_base, tiny_config, tiny_dataset, tiny_model, tiny_processor

TRAINERS = {1: (ImageStageTrainer, Stage1Config), 2: (VideoStageTrainer, Stage2Config)}
# What each profile trains, as parts of parameter names: stage 1, stage 2.
MOVES = {
    "light": (
        ("subject_tokens", "trainable_tokens_delta", "head_router", "qformer.lora", "language_model.lora"),
        ("subject_tokens", "trainable_tokens_delta", "head_router", "qformer.lora", "language_model.lora"),
    ),
    "paper": (
        ("subject_tokens", "trainable_tokens_delta", "head_router", "qformer", "language_model.lora"),
        ("subject_tokens", "trainable_tokens_delta", "head_router", "qformer", "language_model.lora", "vision_tower"),
    ),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("dataset"), positives=3, negatives=5, qa_copies=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


def make_trainer(folder, dataset, stage=2, profile="light", shape=None, head=1.0, **args):
    trainer_class, config_class = TRAINERS[stage]
    shape = AdapterSettings(profile=profile, num_vision_layers=1, **(shape or {}))
    base = tiny_model()
    base.lm_head.weight.data *= head
    model = build_subject_model(base, shape, seed=0)
    processor = tiny_processor()
    rows = training_rows(dataset.split("train"), still=trainer_class.still)
    inner = model.get_base_model().model
    layers_done = len(inner.vision_tower.layers) - (profile == "paper" and stage == 2)
    features = FeatureCache(inner, processor, folder / "features", layers_done, trainer_class.still).fill(rows)
    options = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"} | args
    config = config_class(str(folder / "out"), **options)
    return trainer_class(model, config, rows, processor, profile, features=features)


def part(name):
    """Name of a parameter as in MOVES, or None for a value of the base."""
    kind = kind_of(name)
    if kind == "base":
        return None
    for key in ("head_router", "subject_tokens", "trainable_tokens_delta"):
        if key in name:
            return key
    module = next(key for key in ("qformer", "language_model", "vision_tower") if f".{key}." in name)
    return f"{module}.lora" if kind == "lora" else module


@pytest.mark.parametrize("profile", ["light", "paper"])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_stage_moves_its_parameters_and_no_others(tmp_path, dataset, stage, profile):
    rate = {f"{name}_learning_rate": 1e-2 for name in ("subject", "router", "qformer", "lora", "vision")}
    trainer = make_trainer(tmp_path, dataset, stage, profile, max_steps=3, shape={"dropout": 0.0}, **rate)
    before = {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    expected = {name for name, _ in trainer.model.named_parameters() if part(name) in MOVES[profile][stage - 1]}
    assert not moved - expected
    assert not {name for name in expected - moved if not name.endswith("key.bias")}  # cancels in the softmax
    assert {part(name) for name in moved} == set(MOVES[profile][stage - 1])


def test_each_group_learns_at_its_own_rate(tmp_path, dataset):
    rates = {"subject": 1e-2, "router": 2e-2, "qformer": 3e-2, "lora": 4e-2, "vision": 5e-2}
    trainer = make_trainer(
        tmp_path, dataset, profile="paper", max_steps=1, **{f"{k}_learning_rate": v for k, v in rates.items()}
    )
    groups = trainer.create_optimizer().param_groups
    assert {(g["name"], g["lr"]) for g in groups} == set(rates.items())
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert sum(p.numel() for g in groups for p in g["params"]) == trained
    for group in groups:
        assert all(p.ndim > 1 for p in group["params"]) or group["weight_decay"] == 0.0


def test_the_subject_is_learned(tmp_path, dataset):
    rates = {f"{name}_learning_rate": 5e-3 for name in ("subject", "qformer", "lora")}
    # The random head is frozen, and too small to prefer any token.
    trainer = make_trainer(tmp_path, dataset, head=30.0, num_train_epochs=40, shape={"dropout": 0.0}, **rates)
    trainer.train()
    losses = [record["lm_loss"] for record in trainer.history]
    assert sum(losses[-4:]) < 0.3 * sum(losses[:4])


# -- sparsity ---------------------------------------------------------------------------------------------------------


def draw_cartoon(present, seed):
    """One of the cast, or one of four others, in a random scene."""
    people = cast(5)
    member = people[0] if present else people[1 + seed % 4]
    return render_clip(member.identity, Scene.random(np.random.default_rng(seed)))


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Share of active heads on cartoon clips and the embedded base, with SPR and HAE and without.

    12 epochs of 8 steps, read from the history that a run saves; the mean of each epoch.
    """
    dataset = tiny_dataset(tmp_path_factory.mktemp("cartoon"), 6, 10, draw=draw_cartoon)
    found = {}
    for name, losses in {"with": True, "without": False}.items():
        out = tmp_path_factory.mktemp(name)
        settings = {
            "adapter": {"dropout": 0.0},
            "train": {"spr": losses, "hae": losses, "qa_per_video": 1, "use_cpu": True, "save_strategy": "no"},
            "2": {"num_train_epochs": 12, "per_device_train_batch_size": 2},
        }
        train_subject(EMBEDDED_BASE, dataset, out, stages=("2",), settings=settings)
        history = json.loads((out / "stage2" / "history.json").read_text())
        found[name] = np.reshape([record["active_heads"] for record in history["steps"]], (12, 8)).mean(axis=1)
    return found


@pytest.mark.slow
def test_spr_and_hae_bring_the_active_heads_to_their_target_and_hold_them(curves):
    assert curves["with"][0] == 1.0
    assert np.abs(curves["with"][-5:] - 0.5).max() < 0.1


@pytest.mark.slow
def test_without_them_the_heads_do_not_come_near(curves):
    assert np.abs(curves["without"] - 0.5).min() > 0.1


@pytest.mark.parametrize("target", [0.25, 0.5, 0.75])
def test_quantile_spr_is_zero_where_the_target_share_is_silent(target):
    scores = torch.randn(4, 200, 3, generator=torch.Generator().manual_seed(0)).exp()  # far from symmetric
    shifted = scores - scores.flatten(0, 1).quantile(target, dim=0)
    assert quantile_spr_loss((shifted,), target) == pytest.approx(0.0, abs=1e-6)
    assert (shifted < 0).float().mean() == pytest.approx(target, abs=0.01)
    assert quantile_spr_loss((shifted + 1.0,), target) == pytest.approx(3**0.5, rel=1e-4)


def test_quantile_spr_shifts_all_scores_of_a_head_alike():
    scores = torch.randn(2, 5, 3, requires_grad=True)
    quantile_spr_loss((scores,), 0.5).backward()
    assert torch.allclose(scores.grad, scores.grad[:1, :1].expand_as(scores), atol=1e-7)


def controller(**args):
    config = tiny_config(routing=args.pop("routing", "remoh")).qformer_config
    return SparsityController(Stage2Config("out", use_cpu=True, **args), config)


def test_beta_grows_while_too_many_heads_are_on_and_shrinks_while_too_few_are():
    on, off = torch.ones(1, 4, 2), -torch.ones(1, 4, 2)
    state = controller(spr_start=0.01, sparsity_gain=0.8)
    betas = []
    for logits in (on, on, off, off):
        state.terms((logits,), training=True)
        state.step(lambda rate: rate)
        betas.append(state.beta)
    assert betas[0] == pytest.approx(0.01 * 2.718281828**0.4)
    assert betas[1] > betas[0] and betas[3] < betas[2] < betas[1]
    assert betas[3] == pytest.approx(0.01)


def test_beta_moves_by_the_mean_over_micro_batches_and_ranks():
    state = controller(spr_start=0.01)
    state.terms((torch.ones(1, 4, 2),), training=True)
    state.terms((-torch.ones(1, 4, 2),), training=True)
    seen = []
    state.step(lambda rate: seen.append(rate.item()) or torch.tensor(0.5))
    assert seen == [0.5] and state.beta == pytest.approx(0.01)


def test_beta_stays_within_its_range():
    state = controller(spr_start=0.5, spr_max=0.6)
    for _ in range(5):
        state.terms((torch.ones(1, 4, 2),), training=True)
        state.step(lambda rate: rate)
    assert state.beta == 0.6


@pytest.mark.parametrize("variant", ["quantile", "paper", "reference"])
def test_evaluation_never_moves_the_controller(variant):
    state = controller(spr_variant=variant)
    state.terms((torch.ones(1, 4, 2),), training=True)
    state.step(lambda rate: rate)
    before = json.dumps(state.state_dict())
    state.terms((torch.ones(1, 4, 2),), training=False)
    state.step(lambda rate: rate)
    assert json.dumps(state.state_dict()) == before


@pytest.mark.parametrize("variant", ["quantile", "paper", "reference"])
def test_switched_off_losses_add_nothing(variant):
    logits = (torch.randn(1, 4, 2),)
    assert controller(spr_variant=variant, spr=False, hae=False).terms(logits, True).loss == 0
    assert controller(spr_variant=variant, spr_start=1.0, hae=False).terms(logits, True).loss != 0


def test_moh_uses_its_balance_loss_and_is_always_on_target():
    terms = controller(routing="moh").terms((torch.randn(1, 8, 2),), True)
    assert terms.active_heads == 0.5 and terms.loss > 0 and terms.spr == terms.hae == 0


def test_evaluate_reports_the_parts_and_leaves_the_state_alone(tmp_path, dataset):
    trainer = make_trainer(tmp_path, dataset, max_steps=2)
    trainer.train()
    before = json.dumps(trainer.state_dict())
    rows = training_rows(dataset.split("train")[:2], still=False)
    metrics = trainer.evaluate(Dataset.from_list(rows))
    assert json.dumps(trainer.state_dict()) == before
    logged = trainer.state.log_history[-1]
    assert {"eval_loss", "eval_lm_loss", "eval_spr", "eval_hae", "eval_active_heads"} <= logged.keys()
    assert metrics["eval_loss"] > 0


# -- whole runs, stopped and resumed ----------------------------------------------------------------------------------

FAST = {
    "adapter": {"rank": 4},
    "train": {"per_device_train_batch_size": 2, "qa_per_video": 3, "use_cpu": True},
    "2": {"num_train_epochs": 3},
}


def run(base, dataset, out, **kwargs):
    return train_subject(base, dataset, out, **{"settings": FAST, "seed": 3} | kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base, dataset):
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(base, dataset, out)
    return out


def weights(out):
    return load_file(out / "adapter" / "adapter_model.safetensors")


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class Killed(Exception):
    pass


def kill_at(monkeypatch, trainer_class, step):
    """Ends the process (as far as a test can) after so many steps of a stage."""
    original = trainer_class.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step >= step:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(trainer_class, "training_step", training_step)


def test_a_run_leaves_two_stages_and_an_adapter(finished, base):
    assert {path.name for path in finished.iterdir()} == {"stage1", "stage2", "adapter"}
    record = SubjectRecord.read(finished / "adapter")
    assert (record.subject, record.stages, record.profile, record.seed) == (SUBJECT, ["1", "2"], "light", 3)
    load_subject_adapter(tiny_model(), finished / "adapter")
    for stage, steps in ((1, 4), (2, 12)):
        folder = finished / f"stage{stage}"
        assert {path.name for path in folder.iterdir()} == {
            "adapter",
            "controller.json",
            "history.json",
            "stage.json",
        }
        history = json.loads((folder / "history.json").read_text())
        assert [record["step"] for record in history["steps"]] == list(range(1, steps + 1))
        assert history["steps"][0].keys() == {"step", "epoch", "lm_loss", "spr", "hae", "active_heads", "beta"}
        assert history["target_active_heads"] == 0.5
        marker = json.loads((folder / "stage.json").read_text())
        assert marker["finished"] and marker["steps"] == steps and marker["seconds"] > 0


def test_stage_2_starts_with_the_beta_that_stage_1_ended_with(finished):
    beta = json.loads((finished / "stage1" / "controller.json").read_text())["beta"]
    first = json.loads((finished / "stage2" / "history.json").read_text())["steps"][0]["beta"]
    assert first == beta != Stage2Config("out", use_cpu=True).spr_start


@pytest.mark.parametrize(("stage", "step"), [(1, 2), (2, 1), (2, 6)])
def test_a_killed_run_ends_with_the_same_weights(finished, base, dataset, tmp_path, monkeypatch, stage, step):
    """Dropout is on: the random state is part of what is resumed."""
    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        kill_at(patch, TRAINERS[stage][0], step)
        with pytest.raises(Killed):
            run(base, dataset, out)
    assert not (out / "adapter").exists()
    run(base, dataset, out)
    assert_equal(weights(finished), weights(out))
    history = [json.loads((folder / "stage2" / "history.json").read_text()) for folder in (finished, out)]
    assert history[0] == history[1]


def test_an_unfinished_checkpoint_is_passed_over(finished, base, dataset, tmp_path, monkeypatch):
    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        kill_at(patch, VideoStageTrainer, 9)
        with pytest.raises(Killed):
            run(base, dataset, out)
    newest = last_checkpoint(out / "stage2" / "checkpoints")
    assert newest.name == "checkpoint-8"
    (newest / STATE_FILE).unlink()
    (newest / "adapter_model.safetensors").write_bytes(b"half")
    assert last_checkpoint(out / "stage2" / "checkpoints").name == "checkpoint-4"
    run(base, dataset, out)
    assert_equal(weights(finished), weights(out))


def test_finished_stages_are_skipped(finished, base, dataset, tmp_path, monkeypatch):
    out = tmp_path / "again"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "adapter")
    for trainer_class, _ in TRAINERS.values():
        kill_at(monkeypatch, trainer_class, 0)
    run(base, dataset, out)
    assert_equal(weights(finished), weights(out))


def test_other_settings_train_again_from_where_they_matter(finished, base, dataset, tmp_path, monkeypatch):
    out = tmp_path / "other"
    shutil.copytree(finished, out)
    kill_at(monkeypatch, ImageStageTrainer, 0)  # stage 1 is the same and must not run
    run(base, dataset, out, settings=FAST | {"2": {"num_train_epochs": 1}})
    assert json.loads((out / "stage2" / "stage.json").read_text())["steps"] == 4
    with pytest.raises(Killed):
        run(base, dataset, out, seed=4)


def test_stage_2_alone_refuses_a_stage_1_of_another_run(finished, base, dataset, tmp_path):
    out = tmp_path / "mixed"
    shutil.copytree(finished, out)
    with pytest.raises(PVChatError, match="train both stages"):
        run(base, dataset, out, seed=4, stages=("2",))


def test_the_paper_profile_trains_the_encoder_in_stage_2_only(base, dataset, tmp_path):
    settings = FAST | {"adapter": {"num_vision_layers": 1}, "2": {"num_train_epochs": 1}}
    out = tmp_path / "paper"
    run(base, dataset, out, profile="paper", settings=settings)
    expected = load_file(base / "model.safetensors")["model.vision_tower.layers.2.mlp.fc1.weight"]
    name = "base_model.model.model.vision_tower.layers.2.mlp.fc1.weight"
    assert torch.equal(load_file(out / "stage1" / "adapter" / "adapter_model.safetensors")[name], expected)
    assert not torch.equal(weights(out)[name], expected)


def test_a_base_brings_its_own_settings_and_the_callers_count_more(base, dataset, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    own = {"train": {"qa_per_video": 1, "per_device_train_batch_size": 8, "use_cpu": True}}
    (folder / "training.json").write_text(json.dumps(own))
    train_subject(folder, dataset, tmp_path / "a", stages=("1",))
    changed = {"train": {"per_device_train_batch_size": 4}}
    train_subject(folder, dataset, tmp_path / "b", stages=("1",), settings=changed)
    steps = [json.loads((tmp_path / name / "stage1" / "stage.json").read_text())["steps"] for name in "ab"]
    assert steps == [1, 2]
    (folder / "training.json").write_text("{")
    with pytest.raises(PVChatError, match="training.json is not JSON"):
        train_subject(folder, dataset, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": ("3",)}, "Unknown training stage 3"),
        ({"stages": ()}, "Unknown training stage"),
        ({"settings": {"stage1": {}}}, "Unknown settings section 'stage1'"),
        ({"settings": {"1": {"learning": 1}}}, "Unknown setting learning"),
        ({"settings": {"train": {"qa_per_video": 0}}}, "qa_per_video"),
        ({"settings": {"train": {"spr_variant": "new"}}}, "spr_variant must be one of quantile, paper, reference"),
        ({"settings": {"train": {"lora_learning_rate": -1.0}}}, "lora_learning_rate must not be negative"),
        ({"profile": "heavy"}, "profile must be one of"),
    ],
)
def test_bad_arguments_give_one_line(base, dataset, tmp_path, arguments, message):
    with pytest.raises(PVChatError, match=message) as error:
        train_subject(base, dataset, tmp_path / "out", **arguments)
    assert "\n" not in str(error.value)


# -- features ---------------------------------------------------------------------------------------------------------


def test_clips_are_encoded_once(dataset, tmp_path, monkeypatch):
    model, processor = tiny_model(), tiny_processor()
    rows = training_rows(dataset.split("train"), still=False)
    cache = FeatureCache(model.model, processor, tmp_path, 3, False).fill(rows[:3])
    pixels = processor.video_processor(videos=[rows[0]["path"]], return_tensors="pt")["pixel_values_videos"]
    with torch.no_grad():
        expected = model.model.encode_video(pixels)[0]
    assert torch.allclose(cache.get(rows[0]["sha256"]), expected, atol=1e-6)
    encoded = []
    original = model.model.encode_video
    monkeypatch.setattr(model.model, "encode_video", lambda p, **k: encoded.append(len(p)) or original(p, **k))
    FeatureCache(model.model, processor, tmp_path, 3, False).fill(rows)
    assert sum(encoded) == len(rows) - 3


def test_features_of_other_weights_layers_or_frames_are_not_mixed_up(tmp_path):
    model, processor = tiny_model(), tiny_processor()
    folders = {
        FeatureCache(tiny_model(seed=seed).model, processor, tmp_path, layers, still).folder
        for seed, layers, still in ((0, 3, False), (1, 3, False), (0, 2, False), (0, 3, True))
    }
    assert len(folders) == 4
    assert FeatureCache(model.model, processor, tmp_path, 3, False).folder in folders


def test_a_base_that_is_none_is_refused_in_one_line_and_nothing_is_left(tmp_path):
    (tmp_path / "empty").mkdir()
    dataset = tiny_dataset(tmp_path / "data")
    for base in (tmp_path / "nothing", tmp_path / "empty"):
        with pytest.raises(PVChatError, match="No PVChat model could be loaded from") as error:
            train_subject(base, dataset, tmp_path / "out")
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
