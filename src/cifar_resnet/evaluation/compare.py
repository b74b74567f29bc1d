"""Two networks on the same test images: is the difference real, where is it, and how does it look?"""

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
from cifar_resnet.inference import predictor
from cifar_resnet.models import saved_model
from cifar_resnet.versioning.revisions import read_revision_file

LOGITS = "data/evaluation/logits.npy"
LABELS = "data/prepared/test_labels.npy"
IMAGES = "data/prepared/test_images.npy"
CONFIG = "data/model/model.json"
SHOWN = 12  # images of either kind


@dataclass(frozen=True)
class RevisionResult:
    """A revision's answers without test-time augmentation: probabilities (N, C), and the true labels (N,)."""

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
    """What evaluate wrote at a Git revision, in a DVC experiment, or in the workspace.

    Raises:
        UserError: if there is no such revision or DVC's cache and remote lack its files.
    """
    card = json.loads(read_revision_file(root, revision, CONFIG))
    plain = load_array(root, revision, LOGITS)[0]
    probabilities = predictor.softmax(plain, saved_model.fitted_temperature(card, augmented=False))
    return RevisionResult(revision, probabilities, load_array(root, revision, LABELS).astype(np.int64), card["classes"])


def load_array(root: Path, revision: str, path: str) -> NDArray[Any]:
    loaded: NDArray[Any] = np.load(BytesIO(read_revision_file(root, revision, path)), allow_pickle=False)
    return loaded


def comparison_report(first: RevisionResult, second: RevisionResult) -> str:
    """The paired difference and what became of every class, in lines for people.

    Raises:
        UserError: if the two were measured on different test data.
    """
    if not np.array_equal(first.labels, second.labels):
        raise UserError(f"{first.revision} and {second.revision} were measured on different test data")
    found = significance.mcnemar_test(second.correct, first.correct)
    both, neither = int((first.correct & second.correct).sum()), int((~first.correct & ~second.correct).sum())
    lines = [
        f"{first.revision}: {first.correct.mean():.2%}, {second.revision}: {second.correct.mean():.2%} of "
        f"{len(first.labels):,} test images",
        f"difference {found} (McNemar's exact test)",
        f"both right {both:,}, only {first.revision} {found.only_second:,}, "
        f"only {second.revision} {found.only_first:,}, neither {neither:,}",
        f"{'class':<12}{'gained':>8}{'lost':>8}{'points':>8}",
    ]
    for label, name in enumerate(first.classes):
        rows = first.labels == label
        if rows.any():
            part = significance.mcnemar_test(second.correct[rows], first.correct[rows])
            lines.append(f"{name:<12}{part.only_first:>8}{part.only_second:>8}{100 * part.difference:>+8.1f}")
    return "\n".join(lines)


def plot_differences(first: RevisionResult, second: RevisionResult, root: Path) -> Any:
    """The images that only one has right: those lost, then those gained, the most confident mistakes first."""
    lost = most_confident(second, np.flatnonzero(first.correct & ~second.correct))
    gained = most_confident(first, np.flatnonzero(second.correct & ~first.correct))
    rows = np.concatenate([lost, gained])
    if not len(rows):
        return plots.plot_notice(f"{first.revision} and {second.revision} have the same images right")
    classes, pixels = first.classes, load_array(root, first.revision, IMAGES)[rows]
    kinds = ["lost"] * len(lost) + ["gained"] * len(gained)
    captions = [
        f"{kind}:\n{classes[first.predicted[row]]} → {classes[second.predicted[row]]}"
        for kind, row in zip(kinds, rows, strict=True)
    ]
    title = f"Answers of {first.revision} → {second.revision}"
    return plots.plot_gallery(pixels, captions, title)


def most_confident(wrong: RevisionResult, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """The rows, at most SHOWN of them, of which that side is most confident."""
    return rows[np.argsort(-wrong.probabilities[rows].max(axis=1), kind="stable")][:SHOWN]
