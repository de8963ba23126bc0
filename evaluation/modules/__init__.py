"""The scores as `evaluate` modules: one folder each, which loads from here without a network and is a Space as it is.

    evaluate.load(metric_path("pvchat_existence"))      # or load_metric("pvchat_existence")

A folder holds the module (its file has the folder's name), README.md, requirements.txt and app.py, so
`huggingface-cli upload --repo-type space USER/pvchat_existence FOLDER` publishes it, and then
`evaluate.load("USER/pvchat_existence")` works wherever pvchat is installed. The numbers are computed in
`pvchat.evaluation`; the modules only give them the library's calls.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import MissingBackendError, PVChatError

FOLDER = Path(__file__).parent


def metric_names() -> list[str]:
    return sorted(path.parent.name for path in FOLDER.glob("*/README.md"))


def metric_path(name: str) -> str:
    """Folder of a module, for `evaluate.load`.

    Raises:
        PVChatError: there is no such module.
    """
    if name not in metric_names():
        raise PVChatError(f"There is no metric {name!r}; choose one of: {', '.join(metric_names())}.")
    return str(FOLDER / name)


def load_metric(name: str):
    """The module, loaded.

    Raises:
        PVChatError: there is no such module.
        MissingBackendError: evaluate is not installed.
    """
    path = metric_path(name)
    try:
        import evaluate
    except ImportError as error:
        raise MissingBackendError("Metrics as modules need evaluate: pip install 'pvchat[eval]'.") from error
    return evaluate.load(path)


def metric_info(description: str, inputs: str, reference: str = "string"):
    """What a module says of itself to `evaluate`; reference: type of a gold answer, predictions are texts."""
    import datasets
    import evaluate

    features = {"predictions": datasets.Value("string"), "references": datasets.Value(reference)}
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description=inputs, features=datasets.Features(features)
    )
