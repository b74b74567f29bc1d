"""CIFAR-10 with a residual network under five million parameters."""
