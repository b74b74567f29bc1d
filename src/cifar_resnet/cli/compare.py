"""`cifar-resnet compare`: two networks on the same test images."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cifar_resnet.cli.arguments import not_empty, path
from cifar_resnet.errors import UserError

FIGURE = Path("data/scratch/comparison.png")
HEADER_BYTES = 200  # of a PNG file; the name of the program is in it


def add_compare_arguments(parser: ArgumentParser) -> None:
    revision = "Git revision, name of a DVC experiment, workspace, or pretrained"
    parser.add_argument("first", nargs="?", type=not_empty, default="HEAD", help=f"{revision} (default: %(default)s)")
    parser.add_argument(
        "second", nargs="?", type=not_empty, default="workspace", help=f"{revision} (default: %(default)s)"
    )
    parser.add_argument("--output", type=path, metavar="FILE",
                        help=f"figure of images that only one classifies correctly (default: {FIGURE})")  # fmt: skip


def compare_command(root: Path, arguments: Namespace) -> int:
    from cifar_resnet.evaluation.compare import comparison_report, plot_differences, read_result
    from cifar_resnet.evaluation.plots import write_figure

    check_figure(arguments.output)
    first, second = (read_result(root, revision) for revision in (arguments.first, arguments.second))
    print(comparison_report(first, second))
    output, figure = arguments.output or FIGURE, plot_differences(first, second, root)
    try:
        write_figure(output, figure)
    except OSError as error:
        if arguments.output:
            raise
        print(f"compare: {FIGURE} cannot be written ({error.strerror}), so the figure is skipped; "
              "--output names another file", file=sys.stderr)  # fmt: skip
        return 0
    print(f"images that only one network classifies correctly, most confident mistakes first -> {output}")
    return 0


def check_figure(output: Path | None) -> None:
    """
    Raises:
        UserError: if --output names a file that is not a figure of this command.
    """
    if output is not None and output.is_file():
        with output.open("rb") as stream:
            start = stream.read(HEADER_BYTES)
        if start and not (start.startswith(b"\x89PNG") and b"Matplotlib" in start):
            raise UserError(
                f"--output {output} is a file of another program, which it would replace; name another file"
            )
