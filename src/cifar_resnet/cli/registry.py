"""`cifar-resnet registry`: list the registered models, add the pretrained weights, promote a version, roll back."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from cifar_resnet.cli.arguments import not_empty


def add_registry_arguments(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")
    actions.add_parser("list", help="all versions with their metrics, and every change of the champion")
    add = actions.add_parser("add", help="register the pretrained weights; they become the champion if they are better")
    add.add_argument("model", choices=("pretrained",), help="the weights that come with the package")
    promote = actions.add_parser("promote", help="make a version the champion, without the checks of the gate")
    promote.add_argument("version", type=int)
    rollback = actions.add_parser("rollback", help="make the previous champion the champion again")
    for action in (promote, rollback):
        action.add_argument(
            "--why", type=not_empty, default="by hand", help="reason to record in the history (default: %(default)s)"
        )
        action.add_argument("--dry-run", action="store_true", help="show the change without making it")


def registry_command(root: Path, arguments: Namespace) -> int:
    from cifar_resnet.params.file import load_params
    from cifar_resnet.registry.add import add_pretrained
    from cifar_resnet.registry.listing import change_champion, list_models, missing_model_error
    from cifar_resnet.registry.reader import open_registry
    from cifar_resnet.tracking.client import connect, registry_lock, require_mlflow
    from cifar_resnet.tracking.location import display_uri, tracking_uri

    policy, address = load_params(root / "params.yaml").register_, display_uri(tracking_uri(root))
    name = policy.model_name
    if arguments.action == "add":
        decision = add_pretrained(root, policy)
        outcome = "is the champion" if decision.champion else "is not the champion"
        print(f"add: {decision.model_name} version {decision.version} {outcome}: {decision.reason}")
        return 0
    with open_registry(root) as client:  # creates nothing
        if client is None:
            raise missing_model_error(name, address)
        with require_mlflow(client):
            if arguments.action == "list":
                print(list_models(client, name, address))
                return 0
            if arguments.dry_run:
                print(change_champion(client, name, arguments, address))
                return 0
    client = connect(root)
    with registry_lock(client, root), require_mlflow(client):
        print(change_champion(client, name, arguments, address))
    return 0
