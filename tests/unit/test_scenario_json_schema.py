"""The JSON Schema that editors check a scenario file by."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
from annotated_types import Ge, Lt

from fedsim.delays import AnyLaw
from fedsim.scenario import shelves
from fedsim.scenario.json_schema import json_schema
from fedsim.scenario.schema_walk import known_keys, known_kinds


@dataclass(frozen=True)
class Patient:
    """Waits."""

    k: Annotated[int, Ge(1)]
    share: Annotated[float, Lt(1)] = 0.5
    law: AnyLaw | None = None
    source: ClassVar[str] = "nobody"

    def problems(self, setting):
        return []

    def rounds(self, server):
        yield


def build(input_shape, n_outputs, width: Annotated[int, Ge(1)] = 4):
    raise NotImplementedError


@pytest.fixture
def schema(monkeypatch):
    """The schema over shelves that hold one throwaway item each."""
    items = {"policies": Patient, "models": build, "datasets": build}
    monkeypatch.setattr(shelves, "names", lambda shelf: ["patient"])
    monkeypatch.setattr(shelves, "item", lambda shelf, kind: items[shelf])
    return json_schema()


def branches(schema, entry):
    return {branch["title"]: branch for branch in schema["$defs"][entry]["oneOf"]}


def test_a_kind_may_have_other_names(monkeypatch, schema):
    monkeypatch.setattr(shelves, "aliases", lambda shelf: {"invalid": "patient"} if shelf == "policies" else {})
    assert branches(json_schema(), "PolicyEntry")["patient"]["properties"]["kind"] == {"enum": ["patient", "invalid"]}


def test_every_kind_is_spelled_out_with_its_own_parameters(schema):
    patient = branches(schema, "PolicyEntry")["patient"]
    assert patient["properties"]["kind"] == {"const": "patient"}
    assert patient["properties"]["k"] == {"minimum": 1, "title": "K", "type": "integer"}
    assert patient["properties"]["share"]["exclusiveMaximum"] == 1
    assert patient["required"] == ["kind", "k"]
    assert patient["additionalProperties"] is False
    assert branches(schema, "ModelEntry")["patient"]["properties"]["width"]["minimum"] == 1


def test_the_keys_that_every_entry_may_have_stand_beside_them(schema):
    assert {"label", "training", "server_optimizer"} < set(branches(schema, "PolicyEntry")["patient"]["properties"])
    assert {"partition", "data_dir", "split_file"} < set(branches(schema, "DataEntry")["patient"]["properties"])


def test_a_policys_training_overrides_are_checked_but_not_filled_in(schema):
    training = branches(schema, "PolicyEntry")["patient"]["properties"]["training"]
    assert training["properties"]["learning_rate"] == {
        "exclusiveMinimum": 0,
        "title": "Learning Rate",
        "type": "number",
    }
    assert "required" not in training


def test_a_path_may_have_any_parameters_and_cannot_be_taken_for_a_kind(schema):
    path = branches(schema, "PolicyEntry")["mylab.module:name"]
    assert "additionalProperties" not in path
    assert re.search(path["properties"]["kind"]["pattern"], "mylab.nets:build")
    assert not re.search(path["properties"]["kind"]["pattern"], "patient")


def test_every_reference_leads_to_a_definition_and_none_is_left_over(schema):
    references = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', json.dumps(schema)))
    assert references == set(schema["$defs"])
    assert "policies.patient.Pareto" in references


def test_unknown_keys_are_refused_at_the_top_and_in_dataclasses_of_the_fleet(schema):
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Fleet"]["additionalProperties"] is False


def test_the_known_keys_of_a_block_are_those_of_its_kind(schema):
    values = {"fleet": {"compute": {"step_s": {"kind": "pareto"}}}}
    at = ("fleet", "compute", "step_s")
    assert known_keys(schema, values, at) == ["shape", "minimum", "kind"]
    assert {"exponential", "pareto"} < set(known_kinds(schema, values, at))


def test_the_shipped_shelves_have_a_schema():
    titles = {entry: set(branches(json_schema(), entry)) for entry in ("PolicyEntry", "ModelEntry", "DataEntry")}
    assert titles["PolicyEntry"] > set(shelves.names("policies"))
    assert titles["ModelEntry"] > set(shelves.names("models"))
    assert titles["DataEntry"] > set(shelves.names("datasets"))
