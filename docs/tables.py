"""Write the tables of docs/results.md that follow from data/evaluation, docs/results/published.csv and
benchmarks/inference.json.

python docs/tables.py      # after a new `evaluate`, docs/published.py or `make benchmark-inference`
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from cifar_resnet.errors import UserError, run
from cifar_resnet.files import read_rows

ROOT = Path(__file__).parents[1]
PAGE, EVALUATION = ROOT / "docs/results.md", ROOT / "data/evaluation"
QUOTED = (  # published networks in the page
    *("shake_shake_26_2x64d_SSI_cutout16", "wrn_28_10", "wide_resnet_tf", "resnet_preact_bottleneck_164"),
    *("vgg16_keras", "resnet_basic_110", "resnet_basic_32", "cudaconvnet"),
)
COMMIT = r"(?<=the weights that were trained with the code of commit )\w+"
Cells = list[str]


def main(_: Path) -> None:
    PAGE.write_text(update_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"-> {PAGE.relative_to(ROOT)}")


def update_page(page: str) -> str:
    """The page with the rows and the commit of the committed files."""
    for row in (*metric_rows(), *class_rows(), *corruption_rows(), *published_rows(), *prediction_rows()):
        page = replace_row(page, row)
    commit = json.loads((ROOT / "data/model/model.json").read_text(encoding="utf-8"))["provenance"]["git_commit"]
    return re.sub(COMMIT, commit[:7], page)


def replace_row(page: str, cells: Cells) -> str:
    """Replace the row with the same first cell and number of cells; raises UserError unless there is exactly one."""
    pattern = rf"^\| {re.escape(cells[0])} \|" + r"[^|\n]*\|" * (len(cells) - 1) + "$"
    line = "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
    page, count = re.subn(pattern, lambda _: line, page, flags=re.MULTILINE)
    if count != 1:
        raise UserError(f"docs/results.md has {count} rows of {len(cells)} cells that start with {cells[0]!r}, needs 1")
    return page


def percent(value: float | str, decimals: int = 1) -> str:
    return f"{100 * float(value):.{decimals}f} %"


def interval(ends: Sequence[float | str], decimals: int = 1) -> str:
    low, high = ends
    return f"{100 * float(low):.{decimals}f} to {percent(high, decimals)}"


def points(value: str) -> str:
    return f"{100 * float(value):+.2f}"


def metric_rows() -> list[Cells]:
    """Metrics without and with test-time augmentation."""
    metrics = json.loads((EVALUATION / "metrics.json").read_text(encoding="utf-8"))
    both = ("", "_tta")
    calibration = "expected_calibration_error"
    return [
        ["accuracy", *(percent(metrics[f"accuracy{end}"], 2) for end in both)],
        ["95 % interval of the accuracy", *(interval(metrics[f"accuracy_interval{end}"], 2) for end in both)],
        ["log-loss", *(f"{metrics[f'log_loss{end}']:.3f}" for end in both)],
        ["Brier score", *(f"{metrics[f'brier_score{end}']:.3f}" for end in both)],
        ["expected calibration error", *(percent(metrics[f"{calibration}{end}"]) for end in both)],
        ["expected calibration error at temperature 1", percent(metrics[f"{calibration}_uncalibrated"]), ""],
        ["accuracy on the most confident 90 %", percent(metrics["selective_accuracy_90"]), ""],
        ["accuracy under corruption, 1,000 images", percent(metrics["mean_corruption_accuracy"]), ""],
        ["accuracy on these images without corruption", percent(metrics["corruption_baseline_accuracy"]), ""],
    ]


def class_rows() -> list[Cells]:
    return [
        [
            row["class"],
            percent(row["recall"]),
            interval((row["recall_low"], row["recall_high"])),
            percent(row["precision"]),
        ]
        for row in read_rows(EVALUATION / "class_scores.csv")
    ]


def corruption_rows() -> list[Cells]:
    columns = ("mean", "severity_1", "severity_3", "severity_5")
    table = read_rows(EVALUATION / "corruptions.csv")
    return [[row["corruption"], *(percent(row[column]) for column in columns)] for row in table]


def published_rows() -> list[Cells]:
    """Accuracy of published networks, and the default minus it; dashes if the default is not in the table."""
    rows = []
    for row in read_rows(ROOT / "docs/results/published.csv"):
        if row["network"] in QUOTED:
            paired = ["-"] * 3
            if row.get("default_difference"):
                low, high = points(row["default_low"]), points(row["default_high"])
                paired = [f"{points(row['default_difference'])} points", f"{low} to {high}", row["default_p_value"]]
            rows.append([f"`{row['network']}`", percent(row["accuracy"], 2), *paired])
    return rows


def prediction_rows() -> list[Cells]:
    """Speed of each network with each runtime."""
    result = json.loads((ROOT / "benchmarks/inference.json").read_text(encoding="utf-8"))
    rows = []
    for network in ("default", "small", "record"):
        for runtime, row in result[network].items():
            low, high = row["images_per_second_range"]
            rows.append(
                [
                    f"{network}, {runtime}",
                    f"{row['images_per_second']:,.0f}",
                    f"{low:,.0f} to {high:,.0f}",
                    f"{row['milliseconds']:.1f} ms",
                    f"{row['file_mb']:.1f} MB",
                    f"{row['share_of_ceiling']:.2f}",
                ]
            )
    return rows


if __name__ == "__main__":
    run(main, "tables")
