import cifar_resnet.environment  # noqa: F401, before Git and DVC
