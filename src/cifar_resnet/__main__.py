"""The commands for people: python -m cifar_resnet predict, compare, models, search, rebuild"""

import math
import os
import sys
import tempfile
from argparse import REMAINDER, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from cifar_resnet import hardware, inputs, params, predictions
from cifar_resnet.errors import UserError, run
from cifar_resnet.files import whole

MODEL = "data/model"
SOME_LEFT_OUT = 3
EXIT_CODES = """exit codes:
  0  every image was predicted
  1  none was, the model cannot be used, or with --strict something could not be read
  2  wrong usage
  3  some could not be read: they are named on stderr, all others were predicted"""

SEARCH = """what to do:
  run    train trials until there are enough; the same command goes on after an interruption, and joins others' search
  best   show the best trials, each with the command that trains it in full
  queue  put the best into DVC's queue, to be trained in full by `dvc queue start`
  apply  write the best, or --trial N, into params.yaml and show what changed"""


def main(root: Path) -> int:
    arguments = parser().parse_args()
    try:
        code: int = arguments.command(root, arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        raise UserError(f"{error.filename2 or error.filename}: cannot be used ({error.strerror})") from None
    return code


def parser() -> ArgumentParser:
    found = ArgumentParser(prog="python -m cifar_resnet", description="CIFAR-10 with a ResNet")
    commands = found.add_subparsers(required=True, metavar="command")
    add_predict(commands.add_parser(
        "predict", help="the classes of your images", epilog=f"{inputs.__doc__}\n{EXIT_CODES}",
        formatter_class=RawDescriptionHelpFormatter,
    ))  # fmt: skip
    add_compare(commands.add_parser("compare", help="whether the network of one experiment is better than another's"))
    add_search(commands.add_parser(
        "search", help="look for a better network: section search of params.yaml", epilog=SEARCH,
        formatter_class=RawDescriptionHelpFormatter,
    ))  # fmt: skip
    add_models(commands.add_parser("models", help="list, promote, roll back registered models", add_help=False))
    rebuilding = commands.add_parser(
        "rebuild", help="show in MLflow what it lacks of the workspace and all experiments"
    )
    rebuilding.set_defaults(command=rebuild)
    return found


def add_models(command: ArgumentParser) -> None:
    command.set_defaults(command=models)
    command.add_argument("arguments", nargs=REMAINDER)


def add_predict(command: ArgumentParser) -> None:
    command.set_defaults(command=predict)
    command.add_argument("sources", nargs="+", metavar="source", help="a file, folder, glob, zip or array, see below")
    command.add_argument("--model", help="champion, a version's number, a run's id, or the folder or file of a model "
                         f"(default: MLflow's champion, else {MODEL})")  # fmt: skip
    command.add_argument("--format", choices=predictions.WRITERS, default="table", help="default: %(default)s")
    command.add_argument("--top", type=count, default=1, metavar="N", help="tell the N likeliest classes")
    command.add_argument("--output", type=Path, metavar="FILE", help="write there, whole or not at all, not to stdout")
    command.add_argument("--strict", action="store_true", help="an image that cannot be read is an error")
    command.add_argument("--batch-size", type=count, default=256, metavar="N", help="default: %(default)s images")


def add_compare(command: ArgumentParser) -> None:
    command.set_defaults(command=compare)
    allowed = "a Git revision, a DVC experiment's name, or workspace"
    command.add_argument("first", nargs="?", default="HEAD", help=f"{allowed} (default: %(default)s)")
    command.add_argument("second", nargs="?", default="workspace", help="likewise (default: %(default)s)")
    command.add_argument("--output", type=Path, default=Path("data/scratch/comparison.png"), metavar="FILE",
                         help="picture of the images that only one has right (default: %(default)s)")  # fmt: skip


def add_search(command: ArgumentParser) -> None:
    command.set_defaults(command=search)
    command.add_argument(
        "action", nargs="?", choices=("run", "best", "queue", "apply"), default="run", help="see below"
    )
    command.add_argument("--trials", type=count, metavar="N", help="in all (default: search.trials)")
    command.add_argument(
        "--minutes", type=positive, metavar="N", help="no trial starts later (default: search.minutes)"
    )
    command.add_argument("--workers", type=count, default=1, metavar="N", help="processes that share this machine's "
                         "cores (default: %(default)s)")  # fmt: skip
    command.add_argument("--top", type=count, default=5, metavar="K", help="how many to show or queue (default: 5)")
    command.add_argument("--trial", type=int, metavar="N", help="which to apply (default: the best)")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="write trials.csv and the figures there")


def count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 50_000:
        raise ArgumentTypeError(f"{text!r} is not a number from 1 to 50,000")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def predict(root: Path, arguments: Namespace) -> int:
    hardware.keep_memory()
    chunks, tally = inputs.read(arguments.sources, root, batch_size=arguments.batch_size), predictions.Tally()
    write = predictions.WRITERS[arguments.format]
    with tempfile.TemporaryDirectory() as scratch:
        folder, model = find_model(root, arguments.model, Path(scratch))
        found = predictions.predict(
            folder, chunks, tally, strict=arguments.strict, batch_size=arguments.batch_size, top=arguments.top
        )
        if arguments.output is None:
            write(sys.stdout, found)
        else:
            with whole(arguments.output) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
                write(stream, found)
    left_out = f", {tally.skipped:,} left out" if tally.skipped else ""
    print(f"predict: {tally.predicted:,} images{left_out}, by {model}", file=sys.stderr)
    return SOME_LEFT_OUT if tally.skipped else 0


def compare(root: Path, arguments: Namespace) -> int:
    from cifar_resnet import comparison  # DVC and matplotlib take seconds to import, and predict needs neither

    first, second = (comparison.read(root, revision) for revision in (arguments.first, arguments.second))
    print(comparison.report(first, second))
    with whole(arguments.output) as temporary:
        comparison.picture(first, second, root).savefig(temporary, dpi=110, format="png")
    print(f"the images that only one has right, the most confident mistakes first -> {arguments.output}")
    return 0


def models(root: Path, arguments: Namespace) -> int:
    from cifar_resnet import models  # MLflow takes seconds to import

    models.main(root, arguments.arguments)
    return 0


def rebuild(root: Path, arguments: Namespace) -> int:  # noqa: ARG001
    from cifar_resnet import rebuild  # DVC and MLflow take seconds to import

    rebuild.main(root)
    return 0


def search(root: Path, arguments: Namespace) -> int:
    from cifar_resnet import searching  # Optuna takes seconds to import

    searching.main(root, arguments)
    return 0


def find_model(root: Path, wanted: str | None, scratch: Path) -> tuple[Path, str]:
    """(the folder that holds the model, its name for people); one of MLflow's is brought into `scratch`.

    Raises:
        UserError: if there is none of that name.
    """
    if wanted is not None and (path := root / wanted).exists():
        if path.is_file() and path.name != "model.safetensors":
            raise UserError(f"{wanted}: a model is a folder with model.safetensors and model.json, or the former")
        return (path if path.is_dir() else path.parent), wanted
    found = registered(root, wanted or "champion", scratch)
    if found is None and wanted is None:
        return root / MODEL, MODEL
    if found is None:
        raise UserError(f"--model {wanted}: neither a path nor a champion, version or run that MLflow knows")
    return scratch, found


def registered(root: Path, wanted: str, scratch: Path) -> str | None:
    """The name of a registered model, brought into `scratch`; None if there is none, or no database or params.yaml."""
    home = Path(os.environ.get("DVC_ROOT", root))
    if not (os.environ.get("MLFLOW_TRACKING_URI") or (home / "mlflow.db").exists()):
        return None
    if not (root / "params.yaml").exists():
        return None
    from cifar_resnet import registry, tracking  # MLflow takes seconds to import, and a path needs none of it

    name = params.load(root / "params.yaml").register_.model_name
    version = registry.find(tracking.connect(root), name, wanted)
    if version is None:
        return None
    registry.fetch(version, scratch)
    return f"{name} version {version.version}"


if __name__ == "__main__":
    run(main)
