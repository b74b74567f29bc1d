"""`cifar-resnet predict`: classify images with a registered or saved model."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from cifar_resnet.cli.arguments import count, not_empty, path

SOME_SKIPPED = 3
PROJECT = ("dvc.yaml", "params.yaml", "data/model")
INPUTS = """\
Accepted: pictures (PNG, JPEG, WebP, BMP, TIFF, AVIF, HEIC, the first frame of a GIF), folders of them at any depth,
globs and zips; arrays uint8 (N, 3, 32, 32) or (N, 32, 32, 3) as .npy or .npz; CIFAR's .bin files and pickled Python
batches. Pictures are recognized by their content, whatever their suffix. In folders and zips, hidden files and folders
and files that are not pictures are counted and ignored. Links to folders are ignored.

A picture is rotated according to its EXIF orientation. Transparent parts become white. It is scaled so that its
shorter side has 32 pixels, and cropped to a square around its center.

Limits: a picture's file has at most 250 MB, and at most 50 megapixels are decoded. A large JPEG is decoded at down to
an eighth of its size, so up to 3,200 megapixels are accepted; a progressive JPEG is decoded completely. Reading a
picture takes at most 1 GB of memory.

exit codes:
  0  every image was predicted
  1  no image was predicted, the model cannot be used, or with --strict an image could not be read
  2  wrong usage
  3  some images could not be read: they are listed on stderr, all others were predicted"""


def add_predict_arguments(parser: ArgumentParser) -> None:
    parser.epilog = INPUTS
    parser.add_argument("sources", nargs="+", type=not_empty, metavar="source",
                        help="file, folder, glob, zip or array, see below")  # fmt: skip
    parser.add_argument("--model", type=not_empty,
                        help="pretrained, champion, challenger, a version number, a run id, an MLflow URI, or the path "
                        "of a model (default: the champion in MLflow, else data/model, else pretrained)")  # fmt: skip
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="default: %(default)s")
    parser.add_argument("--top", type=count, default=1, metavar="N", help="show the N most likely classes")
    parser.add_argument("--output", type=path, metavar="FILE", help="write to this file, atomically, not to stdout")
    parser.add_argument("--strict", action="store_true", help="an image that cannot be read is an error")
    parser.add_argument("--batch-size", type=count, default=256, metavar="N", help="default: %(default)s images")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                        help="auto takes an accelerator if there is one (default: %(default)s)")  # fmt: skip


def predict_command(root: Path, arguments: Namespace) -> int:
    from cifar_resnet.files import atomic_write
    from cifar_resnet.inference import image_reader, predictions
    from cifar_resnet.inference.backend import check_device, load_classifier
    from cifar_resnet.registry.load import better_model, find_model

    check_device(arguments.device)
    check_output(root, arguments)
    chunks = image_reader.read_images(arguments.sources, root, batch_size=arguments.batch_size)
    counts, write = predictions.Counts(), predictions.WRITERS[arguments.format]
    with find_model(root, arguments.model) as model:
        classifier = load_classifier(model.folder, arguments.device)
        results = predictions.predict_images(
            classifier, chunks, counts, strict=arguments.strict, batch_size=arguments.batch_size, top=arguments.top
        )
        if arguments.output is None:
            write(sys.stdout, results)
        else:
            with (
                atomic_write(arguments.output) as temporary,
                temporary.open("w", newline="", encoding="utf-8") as stream,
            ):
                write(stream, results)
    images = "image" if counts.predicted == 1 else "images"
    written = "" if arguments.output is None else f" -> {arguments.output}"
    print(f"predict: {counts.predicted:,} {images}{counts.skipped_text()}{written}, model: {model}", file=sys.stderr)
    if arguments.model is None and (project := project_above(root)) is not None:
        print(f"predict: {project} has a project; run the command there to use its models", file=sys.stderr)
    if arguments.model is None and (better := better_model(root, model)) is not None:
        print(f"predict: {better} is better: --model {better.name}", file=sys.stderr)
    return SOME_SKIPPED if counts.skipped else 0


def project_above(root: Path) -> Path | None:
    """The folder of the project if `root` is below it."""
    folders = (root, *root.parents)
    project = next((folder for folder in folders if all((folder / name).exists() for name in PROJECT)), root)
    return None if project == root else project


def check_output(root: Path, arguments: Namespace) -> None:
    """
    Raises:
        UserError: if --output names one of the sources or a picture, which it would replace.
    """
    from cifar_resnet.errors import UserError
    from cifar_resnet.inference.image_reader import starts_as_picture

    output = arguments.output
    if output is not None and output.is_file():
        is_source = any((root / source).resolve() == output.resolve() for source in arguments.sources)
        if is_source or starts_as_picture(lambda: output.open("rb")):
            found = "one of the sources" if is_source else "a picture"
            raise UserError(f"--output {output} is {found}, which it would replace; name another file")
