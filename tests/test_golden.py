"""The package computes what the authors' code computed, and the runner that says so can say no."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pvchat.modeling_pvchat import PVChatConfig, PVChatForConditionalGeneration
from pvchat.modeling_pvchat.convert_pvchat import convert_state_dict
from pvchat.modeling_pvchat.modeling_qformer import relu_gates
from pvchat.modeling_pvchat.sparsity import ReferenceSparsityState, reference_module_loss
from tests import golden
from tests.authors import add_lora, authors_state_dict, write_golden

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
FILES = sorted(GOLDEN.glob("*.safetensors"))
needs_golden = pytest.mark.skipif(not FILES, reason="the golden vectors are not at ../shared/golden")


@pytest.fixture(scope="module")
def results():
    return golden.check_folder(GOLDEN)


@needs_golden
def test_every_golden_vector_is_within_tolerance(results):
    found, unknown = results
    assert [f"{r.case} {r.quantity}: {r.note or r.error}" for r in found if r.status == "fail"] == []
    assert unknown == []


@needs_golden
def test_every_golden_file_is_checked(results):
    checked = {result.case for result in results[0] if result.status == "ok"}
    assert checked == {path.stem for path in GOLDEN.iterdir() if path.suffix in (".json", ".safetensors")}


@needs_golden
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_quantity_that_is_off_by_one_percent_fails(path):
    case = golden.read_case(path)
    for name, tensor in case.outputs.items():
        case.outputs[name] = 1.01 * tensor + 0.01 if tensor.is_floating_point() else tensor + 1
    assert golden.check(case)
    failed = {result.quantity for result in case.results if result.status == "fail"}
    assert set(case.outputs) - failed == set()


@needs_golden
@pytest.mark.parametrize("key", ["input_ids", "index", "labels"])
def test_a_wrong_id_in_the_prompt_layout_fails(key):
    case = golden.read_case(GOLDEN / "prompt_layout.json")
    case.config["examples"][1][key][-1] += 1
    assert golden.check(case)
    assert {result.quantity for result in case.results if result.status == "fail"} == {f"1.{key}"}


@needs_golden
def test_one_shape_that_differs_from_a_listing_fails():
    case = golden.read_case(GOLDEN / "reference_state_dict.json")
    case.config = {"listing": case.config["internvideo2_chat_8b_hd"]}
    case.config["listing"]["vision_encoder.blocks.7.mlp.fc1.bias"]["shape"] = [6145]
    assert golden.check(case)
    assert [result.status for result in case.results] == ["fail"]


@needs_golden
def test_a_copy_with_one_changed_weight_exits_with_one_and_names_the_quantity(tmp_path, capsys):
    tensors = load_file(GOLDEN / "vit.safetensors")
    tensors["weights.vision_encoder.blocks.2.ls2"] *= 1.001
    meta = (GOLDEN / "vit.json").read_text(encoding="utf-8")
    save_file(tensors, tmp_path / "seed5_vit_b.safetensors", metadata={"meta": meta})
    assert golden.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL seed5_vit_b" in printed and "video.x_vis: error" in printed
    assert "video.block1:" not in printed  # what comes before the change still agrees


@needs_golden
def test_json_output_holds_every_measured_and_allowed_error(tmp_path, capsys):
    (tmp_path / "a.safetensors").write_bytes((GOLDEN / "vit_grad.safetensors").read_bytes())
    assert golden.main([str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["passed"] and len(printed["checks"]) == len(golden.read_case(tmp_path / "a.safetensors").outputs)
    assert all(0 <= check["error"] <= check["allowed"] for check in printed["checks"])


@needs_golden
def test_a_cut_file_is_reported_and_does_not_hide_the_others(tmp_path, capsys):
    (tmp_path / "cut.safetensors").write_bytes((GOLDEN / "vit.safetensors").read_bytes()[:5000])
    (tmp_path / "whole.safetensors").write_bytes((GOLDEN / "pos_interp.safetensors").read_bytes())
    assert golden.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "FAIL cut" in printed and "cannot be read" in printed and "ok   whole" in printed


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_folder_without_golden_files_exits_with_two_and_one_line(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    save_file({"weight": torch.zeros(2)}, tmp_path / "empty" / "model.safetensors")
    assert golden.main([str(tmp_path / folder)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# -- other sizes than those of the shared files -----------------------------------------------------------------------


def write_full_case(path: Path, tiles: int, tubelet: int, qformer: dict, extra_rows: int, rank: int) -> Path:
    """A golden file of a whole model of ours, written as the authors would."""
    torch.manual_seed(0)
    slots = 6 * tiles
    config = PVChatConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 100,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 14,
            "patch_size": 7,
            "num_frames": 2 * tubelet,
            "tubelet_size": tubelet,
        },
        qformer_config={
            "hidden_size": 24,
            "intermediate_size": 40,
            "vocab_size": 31,
            "max_position_embeddings": 20,
            "alpha_scale": 1.0,
            "routing_init": "reference",
            **qformer,
        },
        text_config={
            "model_type": "mistral",
            "vocab_size": 64 + extra_rows,
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_window": None,
        },
        num_query_tokens=3,
        num_extra_query_tokens=2,
        num_subject_tokens=1,
        video_token_id=63,
    )
    model = PVChatForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = add_lora(authors_state_dict(model.state_dict()), rank, "q_proj|lm_head")
    model.load_state_dict(convert_state_dict(weights, 32, rank))
    ids = torch.randint(5, 50, (2, slots + 12))
    video_idx = torch.zeros_like(ids, dtype=torch.bool)
    video_idx[:, 2 : 2 + slots] = True
    labels = ids.clone()
    labels[:, : slots + 6] = -100
    pixels = torch.randn(2, tiles, 2 * tubelet, 3, 14, 14)
    prompt = ids.masked_fill(video_idx, 63)
    outputs = model(input_ids=prompt, pixel_values_videos=pixels, labels=labels)
    kept = {"logits": outputs.logits, "loss_lm": outputs.loss}
    sparsity = torch.zeros(())
    keys = golden.module_keys(config.qformer_config)
    for key, logits in zip(keys, outputs.router_logits, strict=True):
        state = ReferenceSparsityState(1e-8)
        sparsity = sparsity + reference_module_loss(logits, state, config.qformer_config.target_sparsity).loss
        kept[f"fwd.{key}.gates"] = relu_gates(logits)
    kept["loss_total"] = outputs.loss + sparsity
    kept["loss_total"].backward()
    kept["grad.project_up.weight"] = model.model.multi_modal_projector.weight.grad
    stated = {
        "llm": {"num_attention_heads": 4, "vocab_size": 64},
        "qformer": {"num_attention_heads": qformer["num_attention_heads"], "top_k": qformer["num_active_heads"]},
        "vit": {"num_heads": 3},
        "lora": {"r": rank, "alpha": 32},
    }
    inputs = {
        "input_ids": ids.float(),
        "attention_mask": torch.ones(ids.shape),
        "video_idx": video_idx,
        "labels": labels,
        "video": pixels,
    }
    return write_golden(path, stated, weights, inputs, kept)


@pytest.mark.parametrize(
    ("tiles", "tubelet", "extra_rows", "rank", "layers", "frequency", "start", "shared", "routed", "active"),
    [(1, 2, 0, 4, 5, 2, 3, 4, 2, 1), (5, 1, 1, 8, 3, 3, 0, 2, 1, 1), (4, 1, 2, 2, 2, 1, 1, 6, 6, 3)],
)
def test_files_of_other_sizes_are_understood(
    tmp_path, tiles, tubelet, extra_rows, rank, layers, frequency, start, shared, routed, active
):
    qformer = {
        "num_hidden_layers": layers,
        "num_attention_heads": shared + routed,
        "cross_attention_frequency": frequency,
        "routing": "remoh",
        "routing_start_layer": start,
        "num_shared_heads": shared,
        "num_routed_heads": routed,
        "num_active_heads": active,
    }
    path = write_full_case(tmp_path / "x.safetensors", tiles, tubelet, qformer, extra_rows, rank)
    case = golden.read_case(path)
    assert golden.check(case)
    assert [f"{r.quantity}: {r.note or r.error}" for r in case.results if r.status != "ok"] == []


def test_a_quantity_that_the_runner_does_not_know_fails(tmp_path):
    case = golden.Case("x", {}, outputs={"get_index.segments2": torch.tensor([[0, 1]]), "hd_cropped": torch.zeros(1)})
    case.inputs["num_frames"] = torch.tensor([3])
    assert golden.check(case)
    assert {r.quantity: r.status for r in case.results} == {"get_index.segments2": "ok", "hd_cropped": "fail"}
