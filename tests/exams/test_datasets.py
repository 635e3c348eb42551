"""What every file of the datasets shelf must pass. Files that are not under $FEDSIM_DATA are not downloaded: skipped."""

import importlib
import pkgutil
from dataclasses import FrozenInstanceError, is_dataclass

import numpy as np
import pytest

import fedsim.datasets
from fedsim.datasets import _idx, cifar10
from fedsim.datasets._files import AbsentData

SHELF = sorted(m.name for m in pkgutil.iter_modules(fedsim.datasets.__path__) if not m.name.startswith("_"))


def public_classes(kind):
    module = importlib.import_module(f"fedsim.datasets.{kind}")
    return [
        c
        for c in vars(module).values()
        if isinstance(c, type) and c.__module__ == module.__name__ and c.__name__[0] != "_"
    ]


def load(kind):
    """The data set, or the reason why it is not there."""
    dataset = public_classes(kind)[0]
    try:
        return dataset().load(None, seed=1)
    except AbsentData as reason:
        return dataset(subset=True).load(None, seed=1) if "subset: true" in str(reason) else str(reason)


@pytest.fixture(scope="module", autouse=True)
def no_network():
    def refuse(name, version):
        raise OSError("tests do not download")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_idx, "downloaded", refuse)
        patch.setattr(cifar10, "downloaded", refuse)
        yield


@pytest.fixture(scope="module")  # so that pytest takes one data set after another and forgets each
def data(request, no_network):
    found = load(request.param)
    if isinstance(found, str):
        pytest.skip(found)
    return found


every_data_set = pytest.mark.parametrize("data", SHELF, indirect=True, scope="module")


@pytest.mark.parametrize("kind", SHELF)
def test_a_data_set_file_holds_one_frozen_class_that_cites_its_source(kind):
    (dataset,) = public_classes(kind)
    assert is_dataclass(dataset)
    assert len(dataset.source) > 20
    assert dataset.__doc__
    with pytest.raises(FrozenInstanceError):
        dataset().anything = 1


@every_data_set
def test_inputs_are_finite_float32_of_one_shape_and_labels_are_in_range(data):
    for inputs, labels in [(data.train_inputs, data.train_labels), (data.test_inputs, data.test_labels)]:
        assert inputs.dtype == np.float32
        assert inputs.shape == (len(labels), *data.input_shape)
        assert np.isfinite(inputs).all()
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(np.unique(labels), np.arange(data.n_classes))


@every_data_set
def test_no_training_image_is_a_test_image(data):
    """A split that leaks would flatter every accuracy. Original sets hold a few duplicates: under 2 in 1,000."""
    train = {row.tobytes() for row in data.train_inputs}
    n_leaked = sum(row.tobytes() in train for row in data.test_inputs)
    assert n_leaked <= 0.002 * len(data.test_inputs)


@every_data_set
def test_the_same_seed_loads_the_same_bytes(data, request):
    again = load(request.node.callspec.params["data"])
    for name in ("train_inputs", "train_labels", "test_inputs", "test_labels"):
        np.testing.assert_array_equal(getattr(data, name), getattr(again, name))


@pytest.mark.parametrize(
    "data", [k for k in SHELF if k in ("mnist", "fashion_mnist", "cifar10")], indirect=True, scope="module"
)
def test_images_are_standardised(data):
    """Published means have four digits: 5e-5 / 0.247 = 2e-4 of a deviation; the CIFAR-10 subset deviates by 0.006 more."""
    tolerance = 5e-4 if data.input_shape[0] == 1 or len(data.train_labels) == 50_000 else 1e-2
    assert abs(data.train_inputs.mean(dtype=np.float64)) < tolerance
    assert abs(data.train_inputs.std(dtype=np.float64) - 1) < tolerance
