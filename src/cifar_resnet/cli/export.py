"""`cifar-resnet export`: write a model as one ONNX file, for prediction without torch."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cifar_resnet.cli.arguments import not_empty, path
from cifar_resnet.errors import UserError

NOTES = """\
The input is uint8 images (N, 3, 32, 32). The outputs are logits and probabilities (N, C). The normalization is inside.
int8 is smaller and faster. Its ranges come from training images, so the project's prepared data must be there.
`cifar-resnet predict --model FILE` needs only ONNX Runtime, not torch. docs/serving.md has more."""


def add_export_arguments(parser: ArgumentParser) -> None:
    parser.epilog = NOTES
    parser.add_argument(
        "model", nargs="?", type=not_empty, help="as in `cifar-resnet predict --model` (default: the same)"
    )
    parser.add_argument("--output", type=path, required=True, metavar="FILE", help="file to write, ends in .onnx")
    parser.add_argument("--precision", choices=("float32", "int8"), default="float32", help="default: %(default)s")


def export_command(root: Path, arguments: Namespace) -> int:
    if arguments.output.suffix != ".onnx":
        raise UserError(f"--output {arguments.output}: the name must end in .onnx")
    try:
        from cifar_resnet.inference.onnx_export import export_model
    except ModuleNotFoundError as error:
        raise UserError(f"export needs {error.name}: pip install 'cifar-resnet[train,onnx]'") from None
    from cifar_resnet.registry.load import find_model, require_weights

    with find_model(root, arguments.model) as model:
        require_weights(model)
        comparison = export_model(model.folder, arguments.output, precision=arguments.precision, root=root)
    size = arguments.output.stat().st_size / 1e6
    print(f"export: {model.name} -> {arguments.output}: {arguments.precision}, {size:.1f} MB; {comparison}")
    return 0
