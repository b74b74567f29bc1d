"""Commands on the registered models: `python -m cifar_resnet models list`, `promote VERSION`, `rollback`."""

import argparse
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cifar_resnet import champion, params, tracking
from cifar_resnet.errors import UserError


def main(root: Path, arguments: list[str]) -> None:
    chosen = parse(arguments)
    name = params.load(root / "params.yaml").register_.model_name
    client = tracking.connect(root)
    try:
        client.get_registered_model(name)
    except MlflowException:
        raise UserError(f"no model {name} is registered in {client.tracking_uri}; run `dvc repro register`") from None
    if chosen.command == "list":
        print("\n".join([*versions(client, name), "", *changes(client, name)]))
        return
    with champion.locked(client, root):
        print(change(client, name, chosen))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cifar_resnet models", description="The registered models.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all versions with their evidence, and every change of the champion")
    promote = commands.add_parser("promote", help="make a version the champion, whatever the policy says")
    promote.add_argument("version", type=int)
    rollback = commands.add_parser("rollback", help="make the champion before the present one the champion again")
    for command in (promote, rollback):
        command.add_argument("--why", default="by hand", help="the reason that the history keeps")
        command.add_argument("--dry-run", action="store_true", help="say what would be done and do nothing")
    return parser.parse_args(arguments)


def change(client: MlflowClient, name: str, chosen: argparse.Namespace) -> str:
    """Move the alias, or only say so, in one line."""
    forward = chosen.command == "promote"
    version = chosen.version if forward else champion.previous(client, name)
    present, wanted = champion.find(client, name), champion.version_of(client, name, version)
    if present is not None and int(present.version) == version:
        return f"{name} version {version} is the champion already; nothing to do"
    before = f"version {present.version} ({accuracy(present)})" if present else "no champion"
    said = f"{name} version {version} ({accuracy(wanted)}) for {before}"
    if chosen.dry_run:
        return f"would {chosen.command}: {said}; nothing was changed"
    champion.move(client, name, version, action=chosen.command, why=chosen.why)
    return f"{chosen.command}: {said}: {chosen.why}"


def versions(client: MlflowClient, name: str) -> list[str]:
    """A table of all versions, the newest first, each with its evidence."""
    aliases = client.get_registered_model(name).aliases
    held = {int(version): alias for alias, version in sorted(aliases.items(), reverse=True)}  # champion wins
    found = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda each: -int(each.version))
    lines = [f"{'version':>7}  {'alias':10}  {'accuracy':>8}  {'with tta':>8}  {'parameters':>10}  decision"]
    for each in found:
        tags, alias = each.tags, held.get(int(each.version), "")
        tta, parameters = float(tags.get("accuracy_tta", "nan")), int(tags.get("parameters", 0))
        reason = tags.get("decision_reason", "")
        lines.append(f"{each.version:>7}  {alias:10}  {accuracy(each):>8}  {tta:8.2%}  {parameters:>10,}  {reason}")
    return lines


def changes(client: MlflowClient, name: str) -> list[str]:
    """The history of the champion, a line for each change."""
    return [
        f"{each.when}  {each.action:8}  {each.before or 'none'} -> {each.after}  {each.who}: {each.why}"
        for each in champion.history(client, name)
    ]


def accuracy(version: ModelVersion) -> str:
    return f"{float(version.tags.get('accuracy', 'nan')):.2%}"
