"""Actions of the registry command: list versions with their evidence and the history, promote, roll back."""

from argparse import Namespace
from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from cifar_resnet.errors import UserError
from cifar_resnet.registry.promotion import (
    decision_of,
    get_champion,
    get_version,
    previous_champion,
    promotion_history,
    set_champion,
)
from cifar_resnet.tracking.client import none_if_missing


def list_models(client: MlflowClient, name: str, address: str) -> str:
    """A table of all versions, then every change of the champion.

    Raises:
        UserError: if no model of that name is registered.
    """
    require_model(client, name, address)
    return "\n".join([*version_lines(client, name), "", *history_lines(client, name)])


def change_champion(client: MlflowClient, name: str, arguments: Namespace, address: str) -> str:
    """Promote a version or roll back, or with --dry-run only describe it, in one line.

    Raises:
        UserError: if the model or version does not exist, or there is no earlier champion.
    """
    require_model(client, name, address)
    version = arguments.version if arguments.action == "promote" else previous_champion(client, name)
    champion, candidate = get_champion(client, name), get_version(client, name, version)
    if champion is not None and int(champion.version) == version:
        return f"{name} version {version} is already the champion; nothing to do"
    replaced = f"version {champion.version} ({format_accuracy(champion)})" if champion else "no champion"
    change = f"{name} version {version} ({format_accuracy(candidate)}) replaces {replaced}"
    if arguments.dry_run:
        return f"would {arguments.action}: {change}; nothing was changed"
    set_champion(client, name, version, action=arguments.action, why=arguments.why)
    return f"{arguments.action}: {change}: {arguments.why}"


def require_model(client: MlflowClient, name: str, address: str) -> None:
    if none_if_missing(lambda: client.get_registered_model(name)) is None:
        others = [registered.name for registered in client.search_registered_models()]
        raise missing_model_error(name, address, others)


def missing_model_error(name: str, address: str, others: Sequence[str] = ()) -> UserError:
    registered = f" (but {', '.join(others)}; register.model_name in params.yaml selects one)" if others else ""
    return UserError(
        f"no model {name} is registered in {address}{registered}; `cifar-resnet registry add pretrained` registers the "
        "pretrained weights, `dvc repro register` trains and registers, and `dvc repro --force --single-item register` "
        "registers what is trained already"
    )


def version_lines(client: MlflowClient, name: str) -> list[str]:
    """A table of all versions, the newest first, each with its evidence."""
    aliases = client.get_registered_model(name).aliases
    alias_of = {int(version): alias for alias, version in sorted(aliases.items(), reverse=True)}  # champion wins
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: -int(version.version))
    lines = [f"{'version':>7}  {'alias':10}  {'accuracy':>8}  {'with tta':>8}  {'parameters':>10}  decision"]
    for version in versions:
        tags, alias = version.tags, alias_of.get(int(version.version), "")
        tta, parameters = float(tags.get("accuracy_tta", "nan")), int(tags.get("parameters", 0))
        numbers = f"{format_accuracy(version):>8}  {tta:8.2%}  {parameters:>10,}"
        lines.append(f"{version.version:>7}  {alias:10}  {numbers}  {decision_of(version)}")
    return lines


def history_lines(client: MlflowClient, name: str) -> list[str]:
    """The history of the champion, one line per change."""
    return [
        f"{change.when}  {change.action:8}  {change.before or 'none'} -> {change.after}  {change.who}: {change.why}"
        for change in promotion_history(client, name)
    ]


def format_accuracy(version: ModelVersion) -> str:
    return f"{float(version.tags.get('accuracy', 'nan')):.2%}"
