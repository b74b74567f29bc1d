"""Promotion: the policy that decides on the champion, the history of its alias, and rollback."""

import getpass
import json
import socket
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from cifar_resnet.data.dataset_name import list_classes
from cifar_resnet.errors import UserError
from cifar_resnet.evaluation import significance
from cifar_resnet.evaluation.significance import Comparison
from cifar_resnet.params.schema import RegisterParams
from cifar_resnet.registry.evidence import decode_mask, read_evidence
from cifar_resnet.tracking.client import none_if_missing

CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY_PREFIX = "champion_history."  # of tags of the registered model
DECISION_TAG, EARLIER_DECISION_TAG = "decision", "decision_reason"  # of a version
UNCHANGED = "it is already the champion"


@dataclass(frozen=True)
class Decision:
    """Whether a version is the champion, and why."""

    model_name: str
    version: int
    run_id: str
    champion: bool
    reason: str
    accuracy: float
    parameters: int
    previous_champion: int | None
    previous_accuracy: float | None
    comparison: Comparison | None  # of the candidate (first) with the previous champion (second)
    policy: dict[str, Any]


@dataclass(frozen=True)
class AliasChange:
    """One change of the champion; `before` is None for the first champion."""

    action: Literal["promote", "rollback"]
    before: int | None
    after: int
    why: str
    who: str
    when: str  # ISO 8601, UTC


def get_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The current champion, or None."""
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if version is None else client.get_model_version(name, str(version))


def promote_if_better(client: MlflowClient, version: int, policy: RegisterParams) -> Decision:
    """Make `version` the champion if the policy allows it, otherwise the challenger. Call it under `registry_lock`.

    A version that was rolled back, or that the present champion has replaced, does not become the champion again; only
    `cifar-resnet registry promote` can do this.

    The evidence of a version (see `read_evidence`) has accuracy, parameters, test_data (hash of the images),
    test_correct (see `encode_mask`) and classes (their names as JSON). Versions of earlier code have no classes.
    """
    name = policy.model_name
    candidate, champion = client.get_model_version(name, str(version)), get_champion(client, name)
    promoted, reason, comparison = check_policy(candidate, champion, policy)
    if promoted and reason != UNCHANGED and (lost := lost_alias(client, candidate, champion)):
        promoted, reason = False, f"{lost}; {override_advice(candidate)}"
    if promoted:
        set_champion(client, name, version, action="promote", why=reason)
        winner = get_champion(client, name)
        if winner is not None and int(winner.version) != version:
            promoted, reason = False, f"version {winner.version} took the alias at the same time"
    else:
        client.set_registered_model_alias(name, CHALLENGER, str(version))
    if reason != UNCHANGED or not decision_of(candidate):
        outcome = f"{CHAMPION if promoted else CHALLENGER}: {reason}"
        client.set_model_version_tag(name, str(version), DECISION_TAG, outcome)
    return Decision(
        model_name=name,
        version=version,
        run_id=candidate.run_id,
        champion=promoted,
        reason=reason,
        accuracy=float(candidate.tags["accuracy"]),
        parameters=int(candidate.tags["parameters"]),
        previous_champion=int(champion.version) if champion else None,
        previous_accuracy=float(champion.tags["accuracy"]) if champion and "accuracy" in champion.tags else None,
        comparison=comparison,
        policy=policy.model_dump(exclude={"model_name"}),
    )


def lost_alias(client: MlflowClient, candidate: ModelVersion, champion: ModelVersion | None) -> str:
    """Why the candidate is not the champion any more: a rollback, or the present champion; empty if for neither."""
    replaced = [
        change for change in promotion_history(client, candidate.name) if change.before == int(candidate.version)
    ]
    for change in reversed(replaced):
        if change.action == "rollback":
            return f"it was rolled back ({change.why})"
        if champion is not None and change.after == int(champion.version):
            return f"version {change.after} has replaced it ({change.why})"
    return ""


def check_policy(
    candidate: ModelVersion, champion: ModelVersion | None, policy: RegisterParams
) -> tuple[bool, str, Comparison | None]:
    """Decide whether the candidate becomes the champion: (decision, reason, comparison if there was one)."""
    if champion is not None and int(champion.version) == int(candidate.version):
        return True, UNCHANGED, None
    evidence = read_evidence(candidate)
    accuracy, parameters = float(evidence["accuracy"]), int(evidence["parameters"])
    if accuracy < policy.min_accuracy:
        return False, f"accuracy {accuracy:.2%} is below register.min_accuracy {policy.min_accuracy:.2%}", None
    if parameters > policy.max_parameters:
        return False, f"{parameters:,} parameters, register.max_parameters allows {policy.max_parameters:,}", None
    if champion is None:
        return True, "there was no champion", None
    before = read_evidence(champion)
    known, new = (json.loads(values["classes"]) if "classes" in values else None for values in (before, evidence))
    if known and new and known != new:
        return False, other_classes_text(candidate, champion, known, new), None
    if "test_correct" not in before:
        reason = "it has no test_correct in its tags; register it again, or"
        return False, f"version {champion.version} stays: {reason} {override_advice(candidate)}", None
    if before.get("test_data") != evidence["test_data"]:
        reason = "it was evaluated on other test images, so the two are not compared"
        return False, f"version {champion.version} stays: {reason}; {override_advice(candidate)}", None
    new_mask, old_mask = (decode_mask(values["test_correct"]) for values in (evidence, before))
    if len(new_mask) != len(old_mask):
        reason = f"its test_correct has {len(old_mask):,} images"
        return False, f"version {champion.version} stays: {reason}; {override_advice(candidate)}", None
    comparison = significance.mcnemar_test(new_mask, old_mask)
    accuracies = f"accuracy {accuracy:.2%} against version {champion.version}'s {float(before['accuracy']):.2%}"
    if comparison.difference <= 0 or comparison.difference < policy.min_gain:
        reason = f"{accuracies} is too small a gain, register.min_gain is {policy.min_gain:g}: {comparison}"
        return False, reason, comparison
    if comparison.p_value > policy.significance:
        reason = f"{accuracies} is not significant, register.significance is {policy.significance:g}: {comparison}"
        return False, reason, comparison
    return True, f"{accuracies}: {comparison}", comparison


def other_classes_text(candidate: ModelVersion, champion: ModelVersion, known: list[str], new: list[str]) -> str:
    return (
        f"version {champion.version} stays: it knows other classes ({list_classes(known)}) than this version "
        f"({list_classes(new)}), so the two are not compared; register networks for other classes under another "
        f"register.model_name, or {override_advice(candidate)}"
    )


def override_advice(candidate: ModelVersion) -> str:
    return f"override with `cifar-resnet registry promote {candidate.version}`"


def decision_of(version: ModelVersion) -> str:
    """What the policy decided about a version, in words; empty if it has not decided."""
    return str(version.tags.get(DECISION_TAG, version.tags.get(EARLIER_DECISION_TAG, "")))


def set_champion(
    client: MlflowClient, name: str, version: int, *, action: Literal["promote", "rollback"], why: str
) -> None:
    """Give `version` the champion alias and record the change; does nothing if it is already the champion.

    The alias is written first. A process that dies in between leaves an unrecorded champion, but no false record.
    """
    aliases = {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}
    before = aliases.get(CHAMPION)
    if before == version:
        return
    client.set_registered_model_alias(name, CHAMPION, str(version))
    if aliases.get(CHALLENGER) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    now = datetime.now(UTC)
    change = AliasChange(action, before, version, why, _user(), now.isoformat(timespec="seconds"))
    key = f"{HISTORY_PREFIX}{now:%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:4]}"  # a new key never overwrites a record
    client.set_registered_model_tag(name, key, json.dumps(asdict(change)))


def promotion_history(client: MlflowClient, name: str) -> list[AliasChange]:
    """All recorded changes of the champion, the oldest first."""
    tags = client.get_registered_model(name).tags
    return [AliasChange(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(HISTORY_PREFIX)]


def previous_champion(client: MlflowClient, name: str) -> int:
    """The version to roll back to: the champion before the current one, without versions that were rolled back.

    Raises:
        UserError: if there is none.
    """
    champions: list[int] = []
    for change in promotion_history(client, name):
        while change.action == "rollback" and champions and champions.pop() != change.after:
            pass
        champions.append(change.after)
    current = get_champion(client, name)
    existing = {int(version.version) for version in client.search_model_versions(f"name = '{name}'")}
    earlier = [version for version in champions if version in existing]
    while earlier and current is not None and earlier[-1] == int(current.version):
        earlier.pop()
    if not earlier:
        raise UserError(f"{name}: no earlier champion is recorded; run `cifar-resnet registry promote VERSION`")
    return earlier[-1]


def get_version(client: MlflowClient, name: str, version: int) -> ModelVersion:
    """
    Raises:
        UserError: if the version does not exist.
    """
    found = none_if_missing(lambda: client.get_model_version(name, str(version)))
    if found is None:
        raise UserError(f"{name} has no version {version}; `make registry` lists the versions")
    return found


def _user() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
