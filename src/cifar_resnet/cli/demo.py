"""`cifar-resnet demo`: a page in the browser that classifies pictures."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_resnet.cli.arguments import port_number
from cifar_resnet.errors import UserError

if TYPE_CHECKING:
    from cifar_resnet.inference.model import Model
    from cifar_resnet.inference.uncertainty import Reliability

    Models = dict[str, tuple[Model, Reliability]]

HOST = "127.0.0.1"
MAX_FILE_SIZE = "15mb"  # as in serving
MODELS = ("champion", "challenger", "data/model", "pretrained")
EXAMPLES = Path(__file__).parents[1] / "pretrained/examples"
ZOOM = 10  # screen pixels for each of the network's pixels
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # Gradio's come from Google
INTRODUCTION = """# What does your picture show?
A small neural network scales the picture to 32 x 32 pixels and answers with one of its classes: {classes}."""
PHOTO = "Drop, paste or photograph a picture, up to 15 MB"
CSS = "#photo img {width: 100%; height: 100%; object-fit: contain}"  # also enlarges small pictures
MAX_CLASSES = 20  # in the introduction
HINT = "Choose a picture: the answer appears here."


def add_demo_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--port", type=port_number, metavar="N", help="default: the first free port from 7860")


def demo_command(root: Path, arguments: Namespace) -> int:
    try:
        import gradio as gr
    except ImportError:
        raise UserError("Gradio is not installed; run `make demo`, or pip install 'cifar-resnet[demo]'") from None
    page = build_page(load_models(root))
    try:
        _, address, _ = page.launch(
            server_name=HOST, server_port=arguments.port, share=False, quiet=True, prevent_thread_lock=True,
            ssr_mode=False, max_file_size=MAX_FILE_SIZE, footer_links=[], css=CSS, theme=gr.themes.Default(**FONTS),
        )  # fmt: skip
    except OSError as error:  # Gradio's message names options that this command does not have
        if "empty port" not in str(error):
            raise
        raise UserError(f"port {arguments.port} is in use; take another --port, or none for a free one") from None
    print(f"demo: open {address} in a browser; Ctrl-C ends the demo", flush=True)
    page.block_thread()
    return 0


def load_models(root: Path) -> Models:
    """The models of MODELS that exist: by their description, each model and what is known about its predictions.

    Models that cannot be used are reported on stderr.

    Raises:
        UserError: if there is no model.
    """
    from cifar_resnet.device import select_device
    from cifar_resnet.inference.backend import WEIGHTS_FILE
    from cifar_resnet.inference.model import Model
    from cifar_resnet.inference.uncertainty import read_reliability
    from cifar_resnet.registry.load import MODEL, ModelNotFoundError, find_model

    models, problems = {}, list[str]()
    for name in MODELS:
        if name == MODEL and not (root / MODEL / WEIGHTS_FILE).exists():
            continue  # Git has only its model.json
        try:
            with find_model(root, name) as found:
                model = Model(found.folder, select_device(), name=name, accuracy=found.accuracy)
                models[str(replace(found, name=name))] = model, read_reliability(found.evaluation)
        except ModelNotFoundError:
            continue
        except UserError as error:
            if str(error) not in problems:  # champion and challenger have the same
                problems.append(str(error))
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr)
    if not models:
        raise UserError("no model found; run `make repro`")
    return models


def build_page(models: Models) -> Any:
    """The page, a `gradio.Blocks`."""
    import gradio as gr

    with gr.Blocks(title="cifar-resnet demo", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION.format(classes=classes_text(models)))
        with gr.Row():
            with gr.Column():
                photo = gr.Image(elem_id="photo", label=PHOTO, type="filepath", height=320, buttons=[])
                photo.preprocess = lambda file: file and file.path  # the uploaded file, which answer() reads
                gr.Examples(sorted(map(str, EXAMPLES.glob("*.png"))), photo, label="Or choose a test image of CIFAR-10")
                model = gr.Radio(list(models), value=next(iter(models)), label="Model")
            with gr.Column():
                sentence = gr.Markdown(HINT, elem_id="trust")
                probabilities = gr.Label(elem_id="probabilities", label="Calibrated probabilities", num_top_classes=5)
                with gr.Row():
                    seen = gr.Image(elem_id="seen", label="What the network sees", format="png", buttons=[])
                    heat = gr.Image(elem_id="heat", label="Decisive parts in red", format="png", buttons=[])
        outputs = [sentence, probabilities, seen, heat]
        gr.on([photo.change, model.change], partial(answer, models), [photo, model], outputs, api_name=False)
    return page


def classes_text(models: Models) -> str:
    """The classes of all models, with the models' names if they differ."""
    names: dict[tuple[str, ...], list[str]] = {}
    for model, _ in models.values():
        names.setdefault(tuple(model.classes), []).append(model.name)
    lists = [", ".join(classes[:MAX_CLASSES]) + (" ..." if len(classes) > MAX_CLASSES else "") for classes in names]
    if len(lists) == 1:
        return lists[0]
    return "; ".join(f"{text} ({', '.join(named)})" for text, named in zip(lists, names.values(), strict=True))


def answer(models: Models, path: str | None, name: str) -> tuple[Any, ...]:
    """The values of the page's outputs: a sentence, probabilities by class, and two images uint8 (320, 320, 3)."""
    from cifar_resnet.inference.explanation import explain
    from cifar_resnet.inference.image_reader import read_picture

    if path is None:
        return HINT, None, None, None
    try:
        pixels = read_picture(Path(path).name, partial(BytesIO, Path(path).read_bytes()))
    except UserError as error:
        return str(error), None, None, None
    explanation = explain(*models[name], pixels)
    pictures = pixels.transpose(1, 2, 0), explanation.heat
    zoomed = (picture.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1) for picture in pictures)
    return explanation.trust, explanation.probabilities, *zoomed
