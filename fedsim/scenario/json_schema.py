"""The JSON Schema of a scenario file, for editors that complete and check while one types.

Every kind on the shelves is spelled out with its parameters, which imports all of them, torch included. A kind that is
a path to code of your own may hold any keys.
"""

from __future__ import annotations

import json
from typing import Any

from fedsim.scenario import shelves, variants
from fedsim.scenario.checked import schema_of
from fedsim.scenario.schema import PolicyEntry, Scenario
from fedsim.training.settings import Training


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12), as JSON-able values."""
    schema = Scenario.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    definitions = schema["$defs"]
    # A policy's own training settings are the scenario's, each of them optional.
    definitions[PolicyEntry.__name__]["properties"]["training"] = _overrides(definitions[Training.__name__])
    for shelf, entry in shelves.ENTRIES.items():
        common = definitions[entry.__name__]
        kinds = shelves.names(shelf)
        known = [_spelled_out(shelf, kind, common, definitions) for kind in kinds]
        definitions[entry.__name__] = {
            "description": common["description"],
            "type": "object",
            "required": ["kind"],
            "oneOf": [*known, _any_path(common)],
        }
    schema["properties"][variants.KEY] = _variants(schema)
    return schema


def _variants(schema: dict[str, Any]) -> dict[str, Any]:
    """Sections may be stated in part there, so their keys are named and not checked."""
    sections: dict[str, Any] = {key: {} for key in schema["properties"] if key != "name"}
    name = {"type": "string", "description": "of the variant; its scenario is called <name>-<variant>"}
    variant = {
        "type": "object",
        "properties": {"name": name, **sections},
        "required": ["name"],
        "additionalProperties": False,
    }
    description = "Each is a scenario of its own: it states keys of a section anew, which replace what the file says."
    return {"type": "array", "minItems": 1, "items": variant, "description": description}


def _overrides(training: dict[str, Any]) -> dict[str, Any]:
    properties = {
        name: {k: v for k, v in each.items() if k != "default"} for name, each in training["properties"].items()
    }
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "description": training["description"],
    }


def _spelled_out(
    shelf: shelves.Shelf, kind: str, common: dict[str, Any], definitions: dict[str, Any]
) -> dict[str, Any]:
    """One kind: its parameters, and the keys that every entry of the shelf may have."""
    # Each kind's own definitions get its name, so that two files may each have a class of the same name.
    prefix = f"{shelf}.{kind}."
    parameters = schema_of(shelves.parameters_class(shelf, shelves.item(shelf, kind)), f"#/$defs/{prefix}{{model}}")
    definitions.update({f"{prefix}{name}": each for name, each in parameters.pop("$defs", {}).items()})
    reserved = {name: each for name, each in common["properties"].items() if name != "kind"}
    names = [kind, *(alias for alias, of in shelves.aliases(shelf).items() if of == kind)]
    return {
        "title": kind,
        "type": "object",
        "description": parameters.get("description", kind),
        "properties": {
            "kind": {"const": kind} if len(names) == 1 else {"enum": names},
            **parameters.get("properties", {}),
            **reserved,
        },
        "required": ["kind", *parameters.get("required", [])],
        "additionalProperties": False,
    }


def _any_path(common: dict[str, Any]) -> dict[str, Any]:
    reserved: dict[str, Any] = json.loads(json.dumps(common["properties"]))
    reserved["kind"] = {
        "type": "string",
        "pattern": "[.:]",
        "description": "a path to code of your own, mylab.nets:build",
    }
    return {"title": "mylab.module:name", "type": "object", "properties": reserved, "required": ["kind"]}
