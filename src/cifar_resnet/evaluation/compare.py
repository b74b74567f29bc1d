"""Compare two networks on the same test images: significance, changes by class, and the images that changed."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data.dataset import Labels
from cifar_resnet.errors import UserError
from cifar_resnet.evaluation import metrics, plots, significance
from cifar_resnet.inference.logits import softmax
from cifar_resnet.models import saved_model
from cifar_resnet.versioning.revisions import read_revision_file

LOGITS = "data/evaluation/logits.npy"
LABELS = "data/prepared/test_labels.npy"
IMAGES = "data/prepared/test_images.npy"
CONFIG = "data/model/model.json"
MAX_IMAGES = 12  # lost images in the figure, and as many gained ones


@dataclass(frozen=True)
class RevisionResult:
    """A revision's predictions without test-time augmentation: probabilities (N, C), and the true labels (N,)."""

    revision: str
    probabilities: metrics.Floats
    labels: Labels
    classes: list[str]

    @property
    def predicted(self) -> Labels:
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.asarray(self.predicted == self.labels)


def read_result(root: Path, revision: str) -> RevisionResult:
    """Read the outputs of evaluate at a Git revision, in a DVC experiment, or in the workspace.

    Raises:
        UserError: if there is no such revision, or neither DVC's cache nor its remote has the files.
    """
    config = json.loads(read_revision_file(root, revision, CONFIG))
    logits = load_array(root, revision, LOGITS)[0]  # 0: without augmentation
    probabilities = softmax(logits, saved_model.fitted_temperature(config, augmented=False))
    labels = load_array(root, revision, LABELS).astype(np.int64)
    return RevisionResult(revision, probabilities, labels, config["classes"])


def load_array(root: Path, revision: str, path: str) -> NDArray[Any]:
    array: NDArray[Any] = np.load(BytesIO(read_revision_file(root, revision, path)), allow_pickle=False)
    return array


def comparison_report(first: RevisionResult, second: RevisionResult) -> str:
    """Lines for the terminal: the paired difference, and the images gained and lost in every class.

    Raises:
        UserError: if the two were evaluated on different test data.
    """
    if not np.array_equal(first.labels, second.labels):
        raise UserError(
            f"{first.revision} and {second.revision} were evaluated on different test data; "
            "compare revisions with the same data/prepared/test_labels.npy"
        )
    comparison = significance.mcnemar_test(second.correct, first.correct)
    both, neither = int((first.correct & second.correct).sum()), int((~first.correct & ~second.correct).sum())
    lines = [
        f"{first.revision}: {first.correct.mean():.2%}, {second.revision}: {second.correct.mean():.2%} of "
        f"{len(first.labels):,} test images",
        f"difference {comparison} (McNemar's exact test)",
        f"correct: both {both:,}, only {first.revision} {comparison.only_second:,}, "
        f"only {second.revision} {comparison.only_first:,}, neither {neither:,}",
        f"{'class':<12}{'gained':>8}{'lost':>8}{'points':>8}",
    ]
    for label, name in enumerate(first.classes):
        rows = first.labels == label
        if rows.any():
            of_class = significance.mcnemar_test(second.correct[rows], first.correct[rows])
            lines.append(
                f"{name:<12}{of_class.only_first:>8}{of_class.only_second:>8}{100 * of_class.difference:>+8.1f}"
            )
    return "\n".join(lines)


def plot_differences(first: RevisionResult, second: RevisionResult, root: Path) -> Any:
    """Images that only one revision classifies correctly: lost, then gained ones, the most confident mistakes first."""
    lost = most_confident(second, np.flatnonzero(first.correct & ~second.correct))
    gained = most_confident(first, np.flatnonzero(second.correct & ~first.correct))
    rows = np.concatenate([lost, gained])
    if not len(rows):
        return plots.plot_notice(f"{first.revision} and {second.revision} classify the same images correctly")
    classes, pixels = first.classes, load_array(root, first.revision, IMAGES)[rows]
    changes = ["lost"] * len(lost) + ["gained"] * len(gained)
    captions = [
        f"{change}:\n{classes[first.predicted[row]]} → {classes[second.predicted[row]]}"
        for change, row in zip(changes, rows, strict=True)
    ]
    return plots.plot_gallery(pixels, captions, f"Predicted class: {first.revision} → {second.revision}")


def most_confident(result: RevisionResult, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """The MAX_IMAGES of `rows` in which `result` is most confident, in descending order."""
    return rows[np.argsort(-result.probabilities[rows].max(axis=1), kind="stable")][:MAX_IMAGES]
