"""Training on videos with many questions equals training on single questions."""

import pytest
import torch

from pvchat.trainers.adapter import AdapterSettings, build_subject_model
from pvchat.trainers.collator import training_rows
from pvchat.trainers.config import Stage2Config
from pvchat.trainers.features import FeatureCache
from pvchat.trainers.video_stage import VideoStageTrainer
from tests.tiny import tiny_model, tiny_processor, tiny_videos

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return training_rows(tiny_videos(tmp_path_factory.mktemp("videos"), 2, 2), still=False)


def make_trainer(folder, rows, profile="light", grouped=True, cached=False, attention="sdpa", tile_grid=None, **args):
    base = tiny_model(tile_grid=tile_grid)
    base.set_attn_implementation(attention)
    shape = AdapterSettings(profile=profile, dropout=0.0, num_vision_layers=1)
    model = build_subject_model(base, shape, seed=1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "head_router.modules_to_save" in name:  # leave the start, where much of it is zero
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    processor = tiny_processor(tile_grid)
    blocks = len(base.model.vision_tower.layers)
    layers_done = blocks - (profile == "paper")
    features = FeatureCache(base.model, processor, folder / "features", layers_done, False).fill(rows)
    args = Stage2Config(str(folder / "out"), use_cpu=True, disable_tqdm=True, spr_start=0.5, **args)
    return VideoStageTrainer(
        model, args, rows, processor, profile, features=features if cached else None, grouped=grouped
    )


def gradients(trainer, rows):
    """One backward pass over all rows, as the Trainer does it."""
    batch = trainer.data_collator(rows)
    count = (batch["labels"] != -100).sum()
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=count)
    loss.backward()
    grads = {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in grads.values())
    return loss.detach(), grads


def assert_same(first, second, tolerance=1e-5):
    assert torch.allclose(first[0], second[0], rtol=tolerance)
    assert first[1].keys() == second[1].keys()
    for name, grad in first[1].items():
        scale = max(grad.abs().max().item(), 1.0)
        assert (grad - second[1][name]).abs().max().item() < tolerance * scale, name


@pytest.mark.parametrize("profile", ["light", "paper"])
def test_grouped_gradients_equal_those_of_one_question_per_row(tmp_path, rows, profile):
    grouped = gradients(make_trainer(tmp_path, rows, profile), rows)
    single = gradients(make_trainer(tmp_path, rows, profile, grouped=False), rows)
    assert_same(grouped, single)
    assert max(grad.abs().max() for grad in grouped[1].values()) > 1e-3


def test_they_equal_with_several_tiles(tmp_path, rows):
    trainers = [make_trainer(tmp_path, rows, tile_grid=(2, 1), grouped=grouped) for grouped in (True, False)]
    assert_same(*(gradients(trainer, rows) for trainer in trainers))


def test_they_equal_with_eager_attention(tmp_path, rows):
    trainers = [make_trainer(tmp_path, rows, attention=attention) for attention in ("eager", "sdpa")]
    assert_same(*(gradients(trainer, rows) for trainer in trainers))


@pytest.mark.parametrize("profile", ["light", "paper"])
def test_cached_features_change_nothing(tmp_path, rows, profile):
    trainers = [make_trainer(tmp_path, rows, profile, cached=cached) for cached in (True, False)]
    assert trainers[0].data_collator(rows)["vision_layers_done"] == (3 if profile == "light" else 2)
    assert_same(*(gradients(trainer, rows) for trainer in trainers))


def test_a_leak_between_questions_would_be_noticed(tmp_path, rows):
    trainer = make_trainer(tmp_path, rows)
    batch = trainer.data_collator(rows)
    length = batch["input_ids"].shape[1]
    batch["attention_mask"] = torch.ones(1, 1, length, length).tril().bool().expand(len(rows), -1, -1, -1)
    leaky = trainer.compute_loss(trainer.model, batch)
    assert abs(leaky - trainer.compute_loss(trainer.model, trainer.data_collator(rows))) > 1e-4


def test_accumulated_steps_equal_one_big_batch(tmp_path, rows):
    """Four rows at once, or two times two: the same update (of the answers; SPR is a norm and not additive)."""
    runs = []
    for batch, steps in ((4, 1), (2, 2)):
        trainer = make_trainer(
            tmp_path / f"{batch}",
            rows,
            cached=True,
            max_steps=1,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            save_strategy="no",
            optim="sgd",
            spr=False,
            hae=False,
            **{f"{name}_learning_rate": 1.0 for name in ("subject", "router", "qformer", "lora")},
        )
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        runs.append({n: p.detach() - before[n] for n, p in trainer.model.named_parameters() if n in before})
    for name, update in runs[0].items():
        assert torch.allclose(update, runs[1][name], atol=1e-6), name
    assert max(update.abs().max() for update in runs[0].values()) > 1e-3
