"""The reference of params.yaml, from the fields of its sections: `make params-docs`.

Writes docs/params.schema.json, which editors read, and docs/params.md.
"""

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from cifar_resnet.params.file import Params, parse_yaml

ROOT = Path(__file__).parents[1]
SCHEMA_FILE, PAGE_FILE = ROOT / "docs/params.schema.json", ROOT / "docs/params.md"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
INTRODUCTION = """# params.yaml

After this page you know every key of [params.yaml](../params.yaml), its allowed values and its default.
`dvc exp run --temp -S section.key=value` trains with another value, for example `-S train.seed=1`.
An unknown or missing key is an error. [params.schema.json](params.schema.json) gives editors the same descriptions.
`make params-docs` writes this page.
"""


class SchemaWithoutTitles(GenerateJsonSchema):
    """The titles of fields repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


def make_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of params.yaml; section descriptions are the docstrings of their classes."""
    return {"$schema": DIALECT} | Params.model_json_schema(by_alias=True, schema_generator=SchemaWithoutTitles)


def schema_text() -> str:
    return json.dumps(make_schema(), indent=2, ensure_ascii=False) + "\n"


def page_text() -> str:
    schema, values = make_schema(), parse_yaml((ROOT / "params.yaml").read_text(encoding="utf-8"))
    sections = {name: resolve(field, schema) for name, field in schema["properties"].items()}
    return INTRODUCTION + "".join(
        section_text(name, section, values[name], schema) for name, section in sections.items()
    )


def section_text(name: str, section: dict[str, Any], values: dict[str, Any], schema: dict[str, Any]) -> str:
    rows = [
        (f"`{key}`", allowed_values(field, schema), default_text(values[key]), field["description"])
        for key, field in section["properties"].items()
    ]
    table = [("key", "allowed", "default", "meaning"), ("---",) * 4, *rows]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in table]
    return f"\n## {name}\n\n{section['description']}\n\n" + "\n".join(lines) + "\n"


def allowed_values(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """The allowed values of a field in words, from its JSON schema."""
    field = resolve(field, schema)
    if "anyOf" in field:
        return " or ".join(allowed_values(choice, schema) for choice in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    kind = field.get("type", "value")
    if kind == "boolean":
        return "`true`, `false`"
    if kind == "null":
        return "`null`"
    if kind == "array":
        items = allowed_values(field["items"], schema)
        return "list" if items == "value" else f"list of {items.replace('integer', 'integers')}"
    if kind == "object":
        keys = field.get("properties")
        return f"{{{', '.join(keys)}}}" if keys else f"key: {allowed_values(field['additionalProperties'], schema)}"
    if kind == "string":
        return f"text that matches `{field['pattern']}`" if "pattern" in field else "text"
    bounds = ", ".join(f"{sign} {field[name]:,}" for name, sign in BOUNDS.items() if name in field)
    return f"{kind} {bounds}".strip()


def resolve(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The definition that a field refers to, or the field itself."""
    if "$ref" not in field:
        return field
    definition: dict[str, Any] = schema["$defs"][field["$ref"].rpartition("/")[2]]
    return definition


def default_text(value: Any) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"`{key}: {json.dumps(choices)}`" for key, choices in value.items())
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    PAGE_FILE.write_text(page_text(), encoding="utf-8")
