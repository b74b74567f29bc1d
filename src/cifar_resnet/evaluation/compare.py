"""Compare two networks on the same test images: significance, changes by class, and the images that changed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data.dataset import Labels
from cifar_resnet.data.dataset_name import list_classes
from cifar_resnet.errors import UserError
from cifar_resnet.evaluation import metrics, plots, significance
from cifar_resnet.files import file_hash, read_json
from cifar_resnet.inference import pretrained
from cifar_resnet.inference.logits import softmax
from cifar_resnet.models import saved_model
from cifar_resnet.models.saved_model import CONFIG_FILE
from cifar_resnet.versioning.provenance import is_of_another_training
from cifar_resnet.versioning.revisions import WORKSPACE, Revision, dvc_md5, read_revision_file

LOGITS = "data/evaluation/logits.npy"
LABELS = "data/prepared/test_labels.npy"
IMAGES = "data/prepared/test_images.npy"
CONFIG, METRICS = "data/model/model.json", "data/evaluation/metrics.json"
MAX_IMAGES = 12  # lost images in the figure, and as many gained ones


@dataclass(frozen=True)
class RevisionResult:
    """A revision's predictions on the test images, without test-time augmentation.

    labels, predicted: int64 (N,); confidence: float (N,), the calibrated probability of the predicted class;
    images_md5: hash of test_images.npy, empty if it is not known.
    """

    revision: str
    labels: Labels
    predicted: Labels
    confidence: metrics.Floats
    classes: list[str]
    images_md5: str = ""

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.asarray(self.predicted == self.labels)


def read_result(root: Path, revision: str) -> RevisionResult:
    """Read the results of a Git revision, a DVC experiment, the workspace, or the pretrained weights.

    Raises:
        UserError: if there is no such revision, if neither DVC's cache nor its remote has the files, if one of them is
            damaged, or if the evaluation is of another training than the model.
    """
    if revision == pretrained.NAME:
        config, predictions = (
            read_json(pretrained.FOLDER / CONFIG_FILE),
            pretrained.read_test_predictions(pretrained.FOLDER),
        )
        return RevisionResult(revision, *predictions, config["classes"], config["provenance"].get("test_data", ""))
    config, evaluation = (load_file(root, revision, path, load_object) for path in (CONFIG, METRICS))
    if "classes" not in config:
        raise UserError(f"{revision}: {CONFIG} is damaged (no classes); `dvc repro train` writes it again")
    if is_of_another_training(evaluation, config):
        raise UserError(f"{revision}: {METRICS} is of another training than {CONFIG}; run `dvc repro evaluate`")
    logits = load_file(root, revision, LOGITS, load_array)[0]  # 0: without test-time augmentation
    probabilities = softmax(logits, saved_model.fitted_temperature(config, augmented=False))
    labels = load_file(root, revision, LABELS, load_array).astype(np.int64)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    evaluated = evaluation.get("test_data", "")  # evaluations of earlier code do not name their images
    images_md5 = images_md5_of(root, revision) or evaluated
    if len(labels) != len(logits) or (evaluated and evaluated != images_md5):
        raise UserError(f"{revision}: {METRICS} is of other test images than {IMAGES}; run `dvc repro evaluate`")
    return RevisionResult(revision, labels, predicted, confidence, config["classes"], images_md5)


def images_md5_of(root: Path, revision: str) -> str:
    """The hash of a revision's test images, also without a local copy; empty if it is not known."""
    if revision != WORKSPACE:
        return dvc_md5(root, Revision(revision, revision, 0), IMAGES)
    return file_hash(root / IMAGES) if (root / IMAGES).exists() else ""


def load_file(root: Path, revision: str, path: str, load: Callable[[bytes], Any]) -> Any:
    try:
        return load(read_revision_file(root, revision, path))
    except (ValueError, EOFError) as error:
        raise UserError(f"{revision}: {path} is damaged ({error}); `dvc repro evaluate` writes it again") from None


def load_object(content: bytes) -> dict[str, Any]:
    value = json.loads(content)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def load_array(content: bytes) -> Any:
    return np.load(BytesIO(content), allow_pickle=False)


def comparison_report(first: RevisionResult, second: RevisionResult) -> str:
    """Lines for the terminal: the paired difference, and the images gained and lost in every class.

    Raises:
        UserError: if the two know different classes, or were evaluated on different test data.
    """
    check_comparable(first, second)
    comparison = significance.mcnemar_test(second.correct, first.correct)
    both, neither = int((first.correct & second.correct).sum()), int((~first.correct & ~second.correct).sum())
    width = max(12, *(len(name) + 2 for name in first.classes))
    lines = [
        f"{first.revision}: {first.correct.mean():.2%}, {second.revision}: {second.correct.mean():.2%} of "
        f"{len(first.labels):,} test images",
        f"difference {comparison} (McNemar's exact test)",
        f"correct: both {both:,}, only {first.revision} {comparison.only_second:,}, "
        f"only {second.revision} {comparison.only_first:,}, neither {neither:,}",
        f"{'class':<{width}}{'gained':>8}{'lost':>8}{'points':>8}",
    ]
    for label, name in enumerate(first.classes):
        rows = first.labels == label
        if rows.any():
            of_class = significance.mcnemar_test(second.correct[rows], first.correct[rows])
            lines.append(
                f"{name:<{width}}{of_class.only_first:>8}{of_class.only_second:>8}{100 * of_class.difference:>+8.1f}"
            )
    return "\n".join(lines)


def check_comparable(first: RevisionResult, second: RevisionResult) -> None:
    """
    Raises:
        UserError: if the revisions have different classes or test images.
    """
    if first.classes != second.classes:
        raise UserError(
            f"{first.revision} and {second.revision} know different classes ({list_classes(first.classes)}; "
            f"{list_classes(second.classes)}); compare networks for the same classes"
        )
    differ = first.images_md5 and second.images_md5 and first.images_md5 != second.images_md5
    if differ or not np.array_equal(first.labels, second.labels):
        file = LABELS if not differ else IMAGES
        raise UserError(
            f"{first.revision} and {second.revision} were evaluated on different test data; "
            f"compare revisions with the same {file}"
        )


def plot_differences(first: RevisionResult, second: RevisionResult, root: Path) -> Any:
    """Images that only one revision classifies correctly: lost, then gained ones, the most confident mistakes first.

    Raises:
        UserError: if the test images cannot be read; the pretrained weights come without them.
    """
    lost = most_confident(second, np.flatnonzero(first.correct & ~second.correct))
    gained = most_confident(first, np.flatnonzero(second.correct & ~first.correct))
    rows = np.concatenate([lost, gained])
    if not len(rows):
        return plots.plot_notice(f"{first.revision} and {second.revision} classify the same images correctly")
    source = second.revision if first.revision == pretrained.NAME else first.revision
    classes, pixels = (
        [plots.label_text(name) for name in first.classes],
        load_file(root, source, IMAGES, load_array)[rows],
    )
    changes = ["lost"] * len(lost) + ["gained"] * len(gained)
    captions = [
        f"{change}:\n{classes[first.predicted[row]]} → {classes[second.predicted[row]]}"
        for change, row in zip(changes, rows, strict=True)
    ]
    return plots.plot_gallery(pixels, captions, f"Predicted class: {first.revision} → {second.revision}")


def most_confident(result: RevisionResult, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """The MAX_IMAGES of `rows` in which `result` is most confident, in descending order."""
    return rows[np.argsort(-result.confidence[rows], kind="stable")][:MAX_IMAGES]
