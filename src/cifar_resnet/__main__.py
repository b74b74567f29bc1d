"""`python -m cifar_resnet`: the same commands as `cifar-resnet`."""

from cifar_resnet.cli.main import run_cli

if __name__ == "__main__":
    run_cli()
