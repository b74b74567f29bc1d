"""Compare networks of this project with published ones on the same test images; writes docs/results/published.csv.

    python docs/published.py published.npz default=data/evaluation/predictions.csv robust=robust.csv
    python docs/figures.py && python docs/tables.py

`published.npz` is not in the repository. It has an array of predicted classes, uint8 (10000,), for each of 30 networks
of Recht et al., "Do CIFAR-10 Classifiers Generalize to CIFAR-10?", 2018, in the order of test_batch.bin. They are the
JSON files in model_predictions/original_predictions of the repository modestyachts/CIFAR-10.1 at d9982ab (MIT licence).
Each NAME=FILE is a network of this project with the predictions.csv of evaluate.
"""

import argparse
from pathlib import Path

import numpy as np

from cifar_resnet.data.dataset import Labels, read_split
from cifar_resnet.errors import UserError, run
from cifar_resnet.evaluation.metrics import Table
from cifar_resnet.evaluation.report import write_csv_table
from cifar_resnet.evaluation.significance import CorrectMask, format_p_value, mcnemar_test, read_correct_mask

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs/results/published.csv"


def main(_: Path) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", type=Path, help="predicted classes of the published networks, .npz")
    parser.add_argument("own", nargs="*", metavar="NAME=FILE", help="a network of this project and its predictions.csv")
    arguments = parser.parse_args()
    labels = read_split(ROOT / "data/prepared", "test").labels
    own = dict(read_own(argument) for argument in arguments.own)
    write_csv_table(OUTPUT, compare_networks(read_published(arguments.published, labels), own))
    print(f"{len(own)} networks of this project and the published ones -> {OUTPUT.relative_to(ROOT)}")


def read_own(argument: str) -> tuple[str, CorrectMask]:
    """Name and bool (N,): which test images a network of this project classifies correctly."""
    name, separator, path = argument.partition("=")
    if not separator:
        raise UserError(f"{argument}: write NAME=FILE, for example default=data/evaluation/predictions.csv")
    if not Path(path).is_file():
        raise UserError(f"{path}: missing; run `dvc checkout` or `dvc repro evaluate`")
    return name, read_correct_mask(Path(path))


def read_published(path: Path, labels: Labels) -> dict[str, CorrectMask]:
    """Which test images every published network classifies correctly, bool (N,) by name."""
    with np.load(path, allow_pickle=False) as predictions:
        shapes = {name: predictions[name].shape for name in predictions.files}
        if wrong := [f"{name} {shape}" for name, shape in shapes.items() if shape != labels.shape]:
            raise UserError(f"{path}: {wrong[0]}: each network needs one class for each of {len(labels):,} images")
        return {name: predictions[name] == labels for name in predictions.files}


def compare_networks(published: dict[str, CorrectMask], own: dict[str, CorrectMask]) -> Table:
    """One row per network, the most accurate first.

    Each own network has four columns: its accuracy minus that of the row's network, the ends of the 95 % interval of
    this difference, and the p-value of McNemar's exact test. They are empty in the rows of own networks.
    """
    rows: Table = []
    for name, mask in sorted((published | own).items(), key=lambda item: -item[1].mean()):
        row = {"network": name, "published": name in published, "accuracy": float(mask.mean())}
        for own_name, own_mask in own.items():
            test = mcnemar_test(own_mask, mask)
            values = {
                "difference": test.difference,
                "low": test.difference_low,
                "high": test.difference_high,
                "p_value": format_p_value(test.p_value),
            }
            row |= {f"{own_name}_{key}": value if name in published else "" for key, value in values.items()}
        rows.append(row)
    return rows


if __name__ == "__main__":
    run(main, "published")
