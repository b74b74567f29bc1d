"""The console command `cifar-resnet`: one module per subcommand, imported when it runs, so that help is quick."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

import shtab

import cifar_resnet.environment_variables  # noqa: F401, before torch and MLflow
from cifar_resnet import __version__
from cifar_resnet.cli import backfill, compare, demo, export, predict, registry, search, ui
from cifar_resnet.errors import run

COMMANDS = (
    ("predict", "classify your images", predict.add_predict_arguments, predict.predict_command),
    ("export", "write a model as an ONNX file", export.add_export_arguments, export.export_command),
    ("demo", "start a page for the browser that classifies pictures", demo.add_demo_arguments, demo.demo_command),
    ("compare", "compare two networks on the same test images", compare.add_compare_arguments, compare.compare_command),
    ("search", "search for a better network", search.add_search_arguments, search.search_command),
    ("registry", "list, add, promote or roll back models", registry.add_registry_arguments, registry.registry_command),
    ("ui", "show runs and models in MLflow's web pages", ui.add_ui_arguments, ui.ui_command),
    ("backfill", "add missing runs to MLflow", backfill.add_backfill_arguments, backfill.backfill_command),
)


def run_cli() -> None:
    """Entry point of `cifar-resnet`; exits with the command's code."""
    run(main, name="cifar-resnet")


def main(root: Path) -> int:
    arguments = make_parser().parse_args()
    code: int = arguments.command(root, arguments)
    return code


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="cifar-resnet", description="CIFAR-10 with a residual network.")
    parser.add_argument("--version", action="version", version=__version__)
    shtab.add_argument_to(parser, "--print-completion", help="print a completion script for your shell and exit")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, summary, add_arguments, command in COMMANDS:
        subparser = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.",
            formatter_class=RawDescriptionHelpFormatter,
        )  # fmt: skip
        add_arguments(subparser)
        subparser.set_defaults(command=command)
    return parser
