"""What a training starts from, `train.init`: random weights, or those of a trained model except for its last layer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cifar_resnet.errors import UserError
from cifar_resnet.files import file_hash
from cifar_resnet.inference import pretrained
from cifar_resnet.models.resnet import ResNet
from cifar_resnet.models.saved_model import CONFIG_FILE, WEIGHTS_FILE, load_model
from cifar_resnet.params.schema import ModelParams

RANDOM = "none"
NOT_OF_THE_NETWORK = {"max_parameters", "whitening_epsilon"}  # whitening comes with the weights
HEAD = "head."  # start of the names of the last layer's weights, whose number depends on the classes


@dataclass(frozen=True)
class InitialWeights:
    """A trained model without its last layer.

    The filters of a whitening stem fit images that are normalized with the mean and the standard deviation of the
    model's own training images. So these three belong to the weights and stay together.

    Attributes:
        name: the value of train.init.
        weights_md5: hash of the model's model.safetensors.
        tensors: weights and buffers by name.
        channel_statistics: channel_mean and channel_std, in place of those in statistics.json.
    """

    name: str
    weights_md5: str
    tensors: dict[str, Tensor]
    channel_statistics: dict[str, list[float]]

    def load_into(self, model: ResNet) -> None:
        """Replace all weights of the model but those of its last layer."""
        model.load_state_dict(model.state_dict() | self.tensors)


def load_initial_weights(root: Path, init: str, params: ModelParams) -> InitialWeights | None:
    """The weights that `train.init` names; None for random ones.

    Args:
        root: the project, at which a relative path starts.
        init: none, pretrained, or the path of a folder with model.safetensors and model.json.
        params: the architecture to train.

    Raises:
        UserError: if there is no usable model, or if it has another architecture.
    """
    if init == RANDOM:
        return None
    folder = pretrained.FOLDER if init == pretrained.NAME else root / init
    if not all((folder / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE)):
        raise UserError(
            f"params.yaml: train.init is {init}, which has no {WEIGHTS_FILE} and {CONFIG_FILE}: none, pretrained or "
            "the folder of a saved model allowed, other than data/model, which a training replaces"
        )
    model, config = load_model(folder, torch.device("cpu"))
    check_architecture(init, ModelParams(**config["architecture"]), params)
    normalisation = config["normalisation"]
    return InitialWeights(
        name=init,
        weights_md5=file_hash(folder / WEIGHTS_FILE),
        tensors={name: value for name, value in model.state_dict().items() if not name.startswith(HEAD)},
        channel_statistics={"channel_mean": normalisation["mean"], "channel_std": normalisation["std"]},
    )


def check_architecture(init: str, source: ModelParams, params: ModelParams) -> None:
    """
    Raises:
        UserError: if the two networks differ; the message names every key and its value in the source.
    """
    there, here = (values.model_dump(exclude=NOT_OF_THE_NETWORK) for values in (source, params))
    differing = [f"model.{key} (there {there[key]}, here {here[key]})" for key in here if there[key] != here[key]]
    if differing:
        raise UserError(
            f"params.yaml: train.init is {init}, whose network differs in {', '.join(differing)}: "
            "take its values, or train.init: none"
        )
