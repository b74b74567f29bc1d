"""`cifar-resnet predict`: classify images with a registered or saved model."""

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cifar_resnet.cli.arguments import count

SOME_SKIPPED = 3
INPUTS = """\
Accepted: pictures (PNG, JPEG, WebP, BMP, TIFF, the first frame of a GIF), folders of them at any depth, globs and
zips; arrays uint8 (N, 3, 32, 32) or (N, 32, 32, 3) as .npy or .npz; CIFAR's .bin files and pickled Python batches.
In folders and zips, only files with a picture's suffix count. Hidden files and links to folders are ignored.

A picture is rotated as its EXIF orientation says. Transparent parts become white. It is scaled so that its shorter
side has 32 pixels, and the middle is cut out.

exit codes:
  0  every image was predicted
  1  no image was predicted, the model cannot be used, or with --strict an image could not be read
  2  wrong usage
  3  some images could not be read: they are listed on stderr, all others were predicted"""


def add_predict_arguments(parser: ArgumentParser) -> None:
    parser.epilog = INPUTS
    parser.add_argument("sources", nargs="+", metavar="source", help="file, folder, glob, zip or array, see below")
    parser.add_argument("--model", help="champion, a version number, a run id, or the folder or file of a model "
                        "(default: the champion in MLflow, otherwise data/model)")  # fmt: skip
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="default: %(default)s")
    parser.add_argument("--top", type=count, default=1, metavar="N", help="show the N most likely classes")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file, atomically, not to stdout")
    parser.add_argument("--strict", action="store_true", help="an image that cannot be read is an error")
    parser.add_argument("--batch-size", type=count, default=256, metavar="N", help="default: %(default)s images")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                        help="auto takes an accelerator if there is one (default: %(default)s)")  # fmt: skip


def predict_command(root: Path, arguments: Namespace) -> int:
    from cifar_resnet import device
    from cifar_resnet.files import atomic_write
    from cifar_resnet.inference import image_reader, predictions
    from cifar_resnet.registry.load import find_model

    device.disable_malloc_trim()
    chunks = image_reader.read_images(arguments.sources, root, batch_size=arguments.batch_size)
    counts, write = predictions.Counts(), predictions.WRITERS[arguments.format]
    with tempfile.TemporaryDirectory() as scratch:
        folder, model = find_model(root, arguments.model, Path(scratch))
        results = predictions.predict_images(
            folder, chunks, counts, target=device.select_device(arguments.device), strict=arguments.strict,
            batch_size=arguments.batch_size, top=arguments.top,
        )  # fmt: skip
        if arguments.output is None:
            write(sys.stdout, results)
        else:
            with (
                atomic_write(arguments.output) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as stream,
            ):
                write(stream, results)
    skipped = f", {counts.skipped:,} skipped" if counts.skipped else ""
    print(f"predict: {counts.predicted:,} images{skipped}, model: {model}", file=sys.stderr)
    return SOME_SKIPPED if counts.skipped else 0
