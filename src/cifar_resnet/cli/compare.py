"""`cifar-resnet compare`: two networks on the same test images."""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_compare_arguments(parser: ArgumentParser) -> None:
    revision = "Git revision, name of a DVC experiment, workspace, or pretrained"
    parser.add_argument("first", nargs="?", default="HEAD", help=f"{revision} (default: %(default)s)")
    parser.add_argument("second", nargs="?", default="workspace", help=f"{revision} (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("data/scratch/comparison.png"), metavar="FILE",
                        help="figure of images that only one classifies correctly (default: %(default)s)")  # fmt: skip


def compare_command(root: Path, arguments: Namespace) -> int:
    from cifar_resnet.evaluation.compare import comparison_report, plot_differences, read_result
    from cifar_resnet.files import atomic_write

    first, second = (read_result(root, revision) for revision in (arguments.first, arguments.second))
    print(comparison_report(first, second))
    with atomic_write(arguments.output) as temporary:
        plot_differences(first, second, root).savefig(temporary, dpi=110, format="png")
    print(f"images that only one network classifies correctly, most confident mistakes first -> {arguments.output}")
    return 0
