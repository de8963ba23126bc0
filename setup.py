"""Package metadata. The top-level folders install under one namespace: `pvchat`, `pvchat.modeling_pvchat`, ..."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
FOLDERS = ("modeling_pvchat", "dataset_builder", "trainers", "evaluation", "model_card")


def packages() -> dict[str, str]:
    """Every folder with an `__init__.py`, as importable name -> folder."""
    found = {}
    for top in ("pvchat", *FOLDERS):
        for init in sorted((ROOT / top).rglob("__init__.py")):
            folder = init.parent.relative_to(ROOT).as_posix()
            name = folder.replace("/", ".")
            found[name if top == "pvchat" else f"pvchat.{name}"] = folder
    return found


PACKAGES = packages()

setup(
    name="pvchat",
    version="0.1.0",
    description="Teach a video language model to recognise one person from one reference video",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "pvchat": ["assets/**/*"],
        "pvchat.dataset_builder": ["questions/*", "*.json"],
        "pvchat.evaluation": ["*.j2"],
        "pvchat.evaluation.modules": ["*/*"],
        "pvchat.model_card": ["*.j2"],
    },
    install_requires=[
        "torch>=2.9",
        "transformers>=5.21,<6",
        "safetensors>=0.5",
        "av>=14",
        "numpy>=1.26",
        "pillow>=10",
        "tqdm>=4.66",
        "rich>=13",
    ],
    extras_require={
        "train": [
            "trl>=1.16,<2",
            "peft>=0.21,<0.22",
            "datasets>=5.2,<6",
            "accelerate>=1.15",
            "filelock>=3.16",
            "pyyaml>=6",
            "scikit-image>=0.24",
            "scikit-learn>=1.5",
            "scipy>=1.13",
        ],
        "eval": ["evaluate>=0.4.6", "sacrebleu>=2.6", "bert-score>=0.3.13", "matplotlib>=3.9", "jinja2>=3.1"],
        "faces": ["mediapipe>=1.2", "onnxruntime>=1.20", "scikit-image>=0.24", "scikit-learn>=1.5", "scipy>=1.13"],
        "generate": [
            "accelerate>=1.15",
            "diffusers>=0.42.1",
            "ftfy>=6.3",
            "opencv-python-headless>=4.10",
            "peft>=0.21,<0.22",
            "sentencepiece>=0.2",
        ],
        "quant": ["accelerate>=1.15", "bitsandbytes>=0.50"],
        "ray": ["ray[data]>=2.60"],
        "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
        "app": [],
        "dev": [
            "hypothesis>=6.100",
            "openai>=2",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "schemathesis>=4",
        ],
    },
    entry_points={"console_scripts": ["pvchat=pvchat.cli:main"]},
)
