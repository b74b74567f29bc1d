"""Run a file of `cifar-resnet export` with ONNX Runtime, on the CPU and without torch."""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from cifar_resnet.data.dataset import Pixels
from cifar_resnet.errors import UserError
from cifar_resnet.inference.classifier import Classifier
from cifar_resnet.inference.logits import Logits
from cifar_resnet.inference.onnx_file import ADVICE, INPUT, LOGITS, Metadata, parse_metadata

INPUT_TYPE, INPUT_SHAPE = "tensor(uint8)", [3, 32, 32]
CHUNK = 32  # images that a thread computes at once
ERRORS_ONLY = 3


def open_exported(path: Path) -> tuple[Classifier, Metadata]:
    """
    Raises:
        UserError: if it is not a file of `cifar-resnet export` that this ONNX Runtime can read.
    """
    try:
        session = onnxruntime.InferenceSession(path, session_options(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has its own types for damaged files, unknown operators and opsets
        raise UserError(f"{path}: ONNX Runtime cannot read it ({reason(error)}); {ADVICE}") from None
    try:
        check_interface(session)
        metadata = parse_metadata(session.get_modelmeta().custom_metadata_map)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {ADVICE}") from None
    classifier = Classifier(
        parallel_logits(session), tuple(metadata.classes), metadata.temperature, metadata.temperature_tta,
        metadata.mirror_views,
    )  # fmt: skip
    return classifier, metadata


def reason(error: Exception) -> str:
    """The message without the path and the place in ONNX Runtime's source, at most 200 characters."""
    text = " ".join(str(error).split()).rpartition(" failed:")[2]
    return re.sub(r"^\S+:\d+ .*?\) (?=[A-Z])", "", text)[:200]


def session_options() -> onnxruntime.SessionOptions:
    """One thread per call: `parallel_logits` calls the session from several threads, each with its own images.

    ONNX Runtime's threads would share each image. With its few pixels in the last layers, some would have nothing to
    do, and they would wait for each other after every operator.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = ERRORS_ONLY
    return options


def check_interface(session: onnxruntime.InferenceSession) -> None:
    """
    Raises:
        ValueError: if the input or the logits have another name, type or shape.
    """
    inputs, outputs = session.get_inputs(), session.get_outputs()
    form = ", ".join(f"{value.name}: {value.type} {value.shape}" for value in inputs)
    if [(value.name, value.type, value.shape[1:]) for value in inputs] != [(INPUT, INPUT_TYPE, INPUT_SHAPE)]:
        raise ValueError(f"its input is {form}; {INPUT}: {INPUT_TYPE} ['N', 3, 32, 32] needed")
    if LOGITS not in [value.name for value in outputs]:
        raise ValueError(f"its outputs are {', '.join(value.name for value in outputs)}; {LOGITS} needed")


def parallel_logits(session: onnxruntime.InferenceSession) -> Callable[[Pixels], Logits]:
    """A function that computes the logits of CHUNK images at a time, on all cores that this process may use."""

    def chunk_logits(pixels: Pixels) -> Logits:
        return np.asarray(session.run([LOGITS], {INPUT: pixels})[0])

    def logits_fn(pixels: Pixels) -> Logits:
        chunks = [pixels[start : start + CHUNK] for start in range(0, max(1, len(pixels)), CHUNK)]
        if len(chunks) == 1:
            return chunk_logits(pixels)
        with ThreadPoolExecutor(num_cores()) as pool:
            return np.concatenate(list(pool.map(chunk_logits, chunks)))

    return logits_fn


def num_cores() -> int:
    """The cores that this process may use; macOS and Windows cannot tell, and count all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
