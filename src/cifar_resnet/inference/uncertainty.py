"""How far to trust one prediction, in a sentence, from the files that the evaluate stage writes."""

from dataclasses import dataclass
from pathlib import Path

from cifar_resnet.errors import UserError
from cifar_resnet.files import read_object, read_rows
from cifar_resnet.inference.familiarity import UNFAMILIAR_SHARE

METRICS_FILE, RELIABILITY_FILE = "metrics.json", "reliability.csv"
BIN = ("images", "confidence", "accuracy", "accuracy_low", "accuracy_high")  # columns of reliability.csv
MIN_IMAGES = 20  # of a bin of confidence; fewer say little
UNFAMILIAR = (
    "**This picture looks unlike the training images: do not rely on the answer.** The network always "
    f"answers with one of its classes. {UNFAMILIAR_SHARE:.0%} of the pictures of these classes look as unusual."
)


@dataclass(frozen=True)
class Reliability:
    """What an evaluation says about a model's predictions.

    Attributes:
        bins: the rows of reliability.csv; empty without an evaluation.
        familiarity_threshold: of metrics.json; None without an evaluation, in early ones, and with few held-out images.
    """

    bins: list[dict[str, float]]
    familiarity_threshold: float | None = None

    def sentence(self, *, confidence: float, familiarity: float) -> str:
        """A sentence for people, as Markdown; empty without an evaluation.

        Args:
            confidence: the calibrated probability of the predicted class.
            familiarity: of the image, from its logits with test-time augmentation.
        """
        if self.familiarity_threshold is not None and familiarity < self.familiarity_threshold:
            return UNFAMILIAR
        large = [row for row in self.bins if row["images"] >= MIN_IMAGES]
        if not self.bins:
            return ""
        if not large:
            total = sum(row["images"] for row in self.bins)
            return f"{total:,.0f} test images are too few to say how often such an answer is right."
        nearest = min(large, key=lambda row: abs(row["confidence"] - confidence))
        return (
            f"Of {nearest['images']:,.0f} test images with a confidence of about {nearest['confidence']:.0%}, "
            f"{nearest['accuracy']:.0%} were classified correctly "
            f"(95 % interval {nearest['accuracy_low']:.0%} to {nearest['accuracy_high']:.0%})."
        )


def read_reliability(evaluation: Path | None) -> Reliability:
    """Read the metrics.json and reliability.csv of a model; without the folder or the files, nothing is known.

    Raises:
        UserError: if one of them is damaged.
    """
    if evaluation is None or not all((evaluation / name).exists() for name in (METRICS_FILE, RELIABILITY_FILE)):
        return Reliability([])
    try:
        bins = [{name: float(row[name]) for name in BIN} for row in read_rows(evaluation / RELIABILITY_FILE)]
    except (KeyError, ValueError) as error:
        raise UserError(f"{evaluation / RELIABILITY_FILE} is damaged ({error}); run `dvc repro evaluate`") from None
    return Reliability(bins, read_object(evaluation / METRICS_FILE).get("familiarity_threshold"))
