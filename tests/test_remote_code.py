"""Saved folders load by transformers' Auto classes: with the package, and as remote code where it is not installed."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import hub

from pvchat import modeling_pvchat
from pvchat.modeling_pvchat import (
    PVChatConfig,
    PVChatForConditionalGeneration,
    PVChatModel,
    PVChatProcessor,
    PVChatVideoProcessor,
)
from tests.tiny import tiny_base, tiny_clip, tiny_config

SOURCE = Path(modeling_pvchat.__file__).parent
CODE = {
    "configuration_pvchat.py",
    "modeling_internvideo2.py",
    "modeling_pvchat.py",
    "modeling_qformer.py",
    "processing_pvchat.py",
    "video_processing_pvchat.py",
}
AUTO_MAP = {
    "AutoConfig": "configuration_pvchat.PVChatConfig",
    "AutoModel": "modeling_pvchat.PVChatModel",
    "AutoModelForImageTextToText": "modeling_pvchat.PVChatForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_pvchat.PVChatForConditionalGeneration",
    "AutoProcessor": "processing_pvchat.PVChatProcessor",
    "AutoVideoProcessor": "video_processing_pvchat.PVChatVideoProcessor",
}
CLIP_SEED = 3
QUESTION = "Is <sks> in this video?"

# Runs in a process of its own: loads a folder by every Auto class, answers, and saves everything again.
STRANGER = """
import sys
sys.modules["pvchat"] = sys.modules["torchvision"] = None  # importing them -> ModuleNotFoundError
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
from transformers import pipeline
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

torch.set_num_threads(1)
folder, inputs, saved, result = sys.argv[1:]
out = {"refused": []}
for auto in (AutoConfig, AutoModelForImageTextToText, AutoProcessor):
    try:
        auto.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        out["refused"].append("trust_remote_code" in str(error))
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
video_processor = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = torch.load(inputs)
batch = processor.apply_chat_template(
    inputs["conversation"], tokenize=True, return_dict=True, return_tensors="pt", subject=True
)
out["input_ids"], out["pixels"] = batch["input_ids"], batch["pixel_values_videos"]
out["video_processor_pixels"] = video_processor(inputs["clip"])["pixel_values_videos"]
with torch.no_grad():
    for name, auto in (("image_text", AutoModelForImageTextToText), ("multimodal", AutoModelForMultimodalLM)):
        model = auto.from_pretrained(folder, trust_remote_code=True)
        out[name] = model(**batch).logits
    out["generated"] = model.generate(**batch, max_new_tokens=6, do_sample=False)
    pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
    options = {"max_new_tokens": 6, "do_sample": False, "return_tensors": True, "subject": True}
    out["pipeline"] = torch.tensor(pipe(text=inputs["conversation"], **options)[0]["generated_token_ids"])[None]
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    out["hidden"] = base(**batch).last_hidden_state
out["classes"] = [type(thing).__name__ for thing in (config, processor, video_processor, model, base)]
out["modules"] = sorted({type(thing).__module__.split(".")[0] for thing in (config, processor, model, base)})
model.save_pretrained(saved)
processor.save_pretrained(saved)
torch.save(out, result)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"), routing="remoh", tile_grid=(2, 1))


@pytest.fixture(scope="module")
def inputs():
    clip = tiny_clip(True, CLIP_SEED)
    content = [{"type": "video", "video": torch.from_numpy(clip)}, {"type": "text", "text": QUESTION}]
    return {"clip": torch.from_numpy(clip), "conversation": [{"role": "user", "content": content}]}


@pytest.fixture(scope="module")
def expected(folder, inputs) -> dict[str, torch.Tensor]:
    """What the installed package computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = PVChatForConditionalGeneration.from_pretrained(folder)
    processor = PVChatProcessor.from_pretrained(folder)
    batch = processor.apply_chat_template(
        inputs["conversation"], tokenize=True, return_dict=True, return_tensors="pt", subject=True
    )
    with torch.no_grad():
        logits = model(**batch).logits
        hidden = model.model(**batch).last_hidden_state
        generated = model.generate(**batch, max_new_tokens=6, do_sample=False)
    torch.set_num_threads(threads)
    return {
        "input_ids": batch["input_ids"],
        "pixels": batch["pixel_values_videos"],
        "video_processor_pixels": batch["pixel_values_videos"],
        "image_text": logits,
        "multimodal": logits,
        "hidden": hidden,
        "generated": generated,
        "pipeline": generated,
    }


def run_stranger(folder: Path, inputs: dict, work: Path) -> dict:
    """Loads `folder` in a fresh process without the package; saves it again to `work/saved`."""
    torch.save(inputs, work / "inputs.pt")
    (work / "stranger.py").write_text(STRANGER)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-I", "stranger.py", folder, "inputs.pt", "saved", "result.pt"],
        cwd=work,
        env={**kept, "HF_HOME": str(work / "hf_home"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(work / "result.pt")


# -- what is saved ----------------------------------------------------------------------------------------------------


def test_saved_folder_has_the_code_and_names_every_auto_class(folder):
    assert {path.name for path in folder.glob("*.py")} == CODE
    for name in CODE:
        assert (folder / name).read_bytes() == (SOURCE / name).read_bytes()
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAP
    processor = json.loads((folder / "processor_config.json").read_text())
    assert processor["auto_map"]["AutoProcessor"] == AUTO_MAP["AutoProcessor"]
    assert processor["video_processor"]["auto_map"]["AutoVideoProcessor"] == AUTO_MAP["AutoVideoProcessor"]


@pytest.mark.parametrize("name", sorted(CODE))
def test_remote_code_is_flat_and_needs_only_declared_packages(name):
    allowed = set(sys.stdlib_module_names) | {"av", "numpy", "torch", "transformers"}
    for node in ast.walk(ast.parse((SOURCE / name).read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module.split(".")[0] in allowed and node.module != "__future__"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 and f"{node.module}.py" in CODE


def test_pushing_sends_the_code_along(folder, monkeypatch):
    """`push_to_hub` saves into a folder of its own and sends that."""
    sent = {}

    def receive(self, repo_id, operations, **kwargs):
        sent.update({item.path_in_repo: Path(item.path_or_fileobj).read_bytes() for item in operations})

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "create_commit", receive)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *args, **kwargs: ModelCard("a card"))
    PVChatForConditionalGeneration.from_pretrained(folder).push_to_hub("ada/base")
    assert {name for name in sent if name.endswith(".py")} == {name for name in CODE if "process" not in name}
    assert json.loads(sent["config.json"])["auto_map"] == AUTO_MAP
    PVChatProcessor.from_pretrained(folder).push_to_hub("ada/base")
    assert {name for name in sent if name.endswith(".py")} == CODE


def test_saving_the_model_without_its_head_saves_the_same_map(folder, tmp_path):
    PVChatModel.from_pretrained(folder).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {path.name for path in tmp_path.glob("*.py")} == {name for name in CODE if "process" not in name}


# -- with the package -------------------------------------------------------------------------------------------------


def test_auto_classes_give_the_classes_of_the_package(folder):
    assert type(AutoConfig.from_pretrained(folder)) is PVChatConfig
    assert type(AutoModel.from_pretrained(folder)) is PVChatModel
    assert type(AutoModelForImageTextToText.from_pretrained(folder)) is PVChatForConditionalGeneration
    assert type(AutoModelForMultimodalLM.from_pretrained(folder)) is PVChatForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(folder)) is PVChatProcessor
    assert type(AutoVideoProcessor.from_pretrained(folder)) is PVChatVideoProcessor


def test_the_package_is_used_even_if_remote_code_is_trusted(folder):
    assert type(AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)) is (
        PVChatForConditionalGeneration
    )
    assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=True)) is PVChatProcessor


def test_auto_classes_build_from_a_config():
    config = tiny_config()
    assert type(AutoModelForImageTextToText.from_config(config)) is PVChatForConditionalGeneration
    assert type(AutoModel.from_config(config)) is PVChatModel


def test_registering_twice_changes_nothing(folder):
    modeling_pvchat.register_auto_classes()
    assert type(AutoModel.from_pretrained(folder)) is PVChatModel


# -- without it -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger(folder, inputs, tmp_path_factory):
    work = tmp_path_factory.mktemp("stranger")
    return run_stranger(folder, inputs, work), work / "saved"


def check(result: dict, expected: dict[str, torch.Tensor]):
    for key, value in expected.items():
        assert torch.equal(result[key], value), key
    assert result["classes"] == [
        "PVChatConfig",
        "PVChatProcessor",
        "PVChatVideoProcessor",
        "PVChatForConditionalGeneration",
        "PVChatModel",
    ]
    assert result["modules"] == ["transformers_modules"]


def test_remote_code_computes_bit_for_bit_what_the_package_does(stranger, expected):
    check(stranger[0], expected)


def test_remote_code_is_refused_without_the_flag(stranger):
    assert stranger[0]["refused"] == [True, True, True]


def test_a_folder_saved_by_remote_code_is_as_good_as_the_first(stranger, inputs, expected, tmp_path):
    saved = stranger[1]
    assert {path.name for path in saved.glob("*.py")} == CODE
    assert json.loads((saved / "config.json").read_text())["auto_map"] == AUTO_MAP
    check(run_stranger(saved, inputs, tmp_path), expected)


# -- model, dataset and adapter together ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)  # four processes that import everything anew
def test_the_example_of_fresh_processes_finds_no_difference(tmp_path, capsys):
    """A run folder with a dataset of real clips and an adapter that has moved."""
    pytest.importorskip("peft")
    from examples import fresh_process
    from tests.small_runs import write_real_run

    base, run = write_real_run(tmp_path)
    assert fresh_process.main([str(run), "--base", str(base), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"]["reply"] == result["re-saved"]["reply"]
    assert result["dataset"] == {"qa train": 12, "videos train": 3}
    assert 0 < result["adapter"]["megabytes"] < 1
