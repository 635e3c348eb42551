"""Several scenarios in one file: what a variant replaces, what it keeps, and where its errors point."""

from __future__ import annotations

import pytest

import fedsim
from fedsim.scenario.errors import ScenarioError
from fedsim.scenario.read import load_variants

BASE = """\
name: base
train: false
fleet:
  n_devices: 4
  compute: {step_s: 1.0}
data: {kind: gaussian_blobs}
model: {kind: mlp}
policies:
  - {kind: fedavg}
seeds: [1]
stop: {n_rounds: 3}
"""


def written(tmp_path, text):
    path = tmp_path / "base.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_without_variants_is_one_scenario_without_a_name(tmp_path):
    path = written(tmp_path, BASE)
    [(name, loaded)] = load_variants(path)
    assert name is None
    assert loaded.scenario == fedsim.load(path).scenario


def test_a_variant_replaces_keys_of_a_section_as_a_whole_and_keeps_the_others(tmp_path):
    variants = """\
variants:
  - name: slow
    fleet: {compute: {layer_s: 2.0}}
  - name: many
    fleet: {n_devices: 9}
    seeds: [5, 6]
    policies:
      - {kind: k_sync, k: 2}
"""
    found = dict(load_variants(written(tmp_path, BASE + variants)))
    assert [loaded.scenario.name for loaded in found.values()] == ["base-slow", "base-many"]
    slow, many = found["slow"].scenario, found["many"].scenario
    assert (slow.fleet.n_devices, slow.fleet.compute.layer_s, slow.fleet.compute.step_s) == (4, 2.0, None)
    assert (many.fleet.n_devices, many.fleet.compute.step_s) == (9, 1.0)
    assert [c.label for c in found["slow"].contenders] == ["fedavg"]
    assert [c.label for c in found["many"].contenders] == ["k_sync"]
    assert [s.seed for s in many.seed_sets] == [5, 6]


def test_an_error_in_a_variant_points_to_its_own_line(tmp_path):
    variants = "variants:\n  - name: odd\n    fleet:\n      n_devices: -1\n"
    path = written(tmp_path, BASE + variants)
    with pytest.raises(ScenarioError, match=rf"base\.yaml:{len(BASE.splitlines()) + 4}: .*n_devices is -1"):
        load_variants(path)


def test_an_error_outside_it_still_points_to_the_files_line(tmp_path):
    text = BASE.replace("kind: fedavg", "kind: fedavg, local_steps: 0") + "variants:\n  - name: a\n    seeds: [2]\n"
    with pytest.raises(ScenarioError, match=r"base\.yaml:9: .*local_steps is 0"):
        load_variants(written(tmp_path, text))


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ("variants: 3\n", "variants is not a list"),
        ("variants: []\n", "variants is not a list"),
        ("variants:\n  - fleet: {n_devices: 2}\n", "needs a name"),
        ("variants:\n  - name: a/b\n", "needs a name"),
        ("variants:\n  - name: a\n  - name: a\n", "name is 'a' again"),
        ("variants:\n  - name: a\n    flet: {n_devices: 2}\n", "flet"),
    ],
)
def test_variants_that_make_no_sense_are_refused_in_one_line(tmp_path, variants, said):
    with pytest.raises(ScenarioError, match=said) as refused:
        load_variants(written(tmp_path, BASE + variants))
    assert "\n" not in str(refused.value)


def test_a_file_with_variants_is_not_one_scenario(tmp_path):
    with pytest.raises(ScenarioError, match="1 variants"):
        fedsim.load(written(tmp_path, BASE + "variants:\n  - name: a\n"))
