"""Data sets: where their files are looked for, and what happens when they are absent or damaged.

Small stand-ins take the place of the published files wherever the checksum is not the point.
"""

import gzip
import hashlib
import lzma
import socket
import struct
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
from sklearn import datasets as sklearn_datasets
from sklearn.datasets import _openml as sklearn_openml

from fedsim.datasets import _idx, _openml, cifar10
from fedsim.datasets._files import AbsentData, standardised
from fedsim.datasets._idx import load_idx, read_idx
from fedsim.datasets.cifar10 import Cifar10, read_records
from fedsim.datasets.digits import Digits
from fedsim.datasets.fashion_mnist import FashionMnist
from fedsim.datasets.gaussian_blobs import GaussianBlobs
from fedsim.datasets.mnist import Mnist
from fedsim.facts import BadInput

IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def no_network_and_no_home(monkeypatch, tmp_path):
    def unreachable(request):
        raise URLError("the network is off")

    monkeypatch.setattr(sklearn_openml, "urlopen", unreachable)  # scikit-learn's own door to the network
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDSIM_DATA", raising=False)


def small_idx_files(n_train=6, n_test=3):
    rng = np.random.default_rng(4)
    contents = []
    for n in (n_train, n_test):
        contents.append(struct.pack(">4I", 2051, n, 28, 28) + rng.integers(0, 256, n * 784, dtype=np.uint8).tobytes())
        contents.append(struct.pack(">2I", 2049, n) + bytes(range(n)))
    return dict(zip(IDX_NAMES, contents, strict=True))


def put(folder, files, ending=""):
    folder.mkdir(parents=True, exist_ok=True)
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[ending]
    for name, read in files.items():
        (folder / f"{name}{ending}").write_bytes(pack(read))


def load_small(data_dir, files):
    sha256 = {name: hashlib.sha256(read).hexdigest() for name, read in files.items()}
    return load_idx("tiny", sha256=sha256, openml_name="tiny", mean=0.5, std=0.25, data_dir=data_dir)


# ---- where files are found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["tiny", "."])
@pytest.mark.parametrize("ending", ["", ".gz", ".xz"])
def test_idx_files_are_found_packed_or_not_in_a_folder_of_their_own_or_beside_others(tmp_path, place, ending):
    files = small_idx_files()
    put(tmp_path / "data" / place, files, ending)
    data = load_small(tmp_path / "data", files)
    first_pixel = files[IDX_NAMES[0]][16]
    assert data.train_inputs.shape == (6, 1, 28, 28)
    assert data.test_labels.tolist() == [0, 1, 2]
    assert data.train_inputs[0, 0, 0, 0] == np.float32((first_pixel / 255 - 0.5) / 0.25)


def test_data_dir_goes_before_the_environment(tmp_path, monkeypatch):
    files, others = small_idx_files(), small_idx_files(n_test=2)
    put(tmp_path / "stated", files)
    put(tmp_path / "environment", others)
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "environment"))
    assert len(load_small(tmp_path / "stated", files).test_labels) == 3
    assert len(load_small(None, others).test_labels) == 2


def test_standardising_rounds_each_pixel_once():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(
        standardised(pixels, 0.1307, 0.3081), ((pixels / 255 - 0.1307) / 0.3081).astype(np.float32)
    )


# ---- absent ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "wanted"),
    [
        (Mnist(), "train-images-idx3-ubyte"),
        (FashionMnist(), "t10k-labels-idx1-ubyte"),
        (Cifar10(), "test_batch.bin"),
        (Cifar10(subset=True), "subset_test.bin"),
    ],
)
def test_absent_files_are_named_with_the_folder_they_belong_in(tmp_path, dataset, wanted):
    """Through scikit-learn's real fetch_openml, so that its arguments are checked too."""
    for data_dir, folder in [(tmp_path, str(tmp_path)), (None, "DATA")]:
        with pytest.raises(AbsentData) as refusal:
            dataset.load(data_dir, seed=0)
        message = str(refusal.value)
        assert wanted in message
        assert f"into {folder}/" in message
        assert "data_dir or in $FEDSIM_DATA" in message
        assert "the network is off" in message or "cannot be downloaded" in message
        assert refusal.value.at == ("data",)


def test_a_data_folder_that_is_not_there_is_refused_before_any_download(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"data_dir is .*nowhere, which is not a folder"):
        Mnist().load(tmp_path / "nowhere", seed=0)
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match=r"\$FEDSIM_DATA is .*nowhere, which is not a folder"):
        Cifar10().load(None, seed=0)


def test_a_folder_with_some_of_the_files_is_told_which_are_lacking(tmp_path):
    files = small_idx_files()
    lacking = files.pop("t10k-labels-idx1-ubyte")
    put(tmp_path, files)
    with pytest.raises(BadInput, match="lacks t10k-labels-idx1-ubyte"):
        load_small(tmp_path, files | {"t10k-labels-idx1-ubyte": lacking})


def test_the_cifar_subset_is_never_taken_unasked(tmp_path):
    put(tmp_path / "cifar10_subset", dict.fromkeys(cifar10._SUBSET, b""))
    with pytest.raises(AbsentData, match=r"only the subset is there \(subset: true takes it\)"):
        Cifar10().load(tmp_path, seed=0)


# ---- damaged --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".gz", ".xz"])
@pytest.mark.parametrize("name", IDX_NAMES)
def test_a_truncated_or_garbled_file_is_named(tmp_path, name, ending):
    files = small_idx_files()
    put(tmp_path, files, ending)
    path = tmp_path / f"{name}{ending}"
    whole = path.read_bytes()
    for damage in (whole[:-9], whole[:5], b"", b"not packed at all", whole[:20] + b"\x55\xaa\x55" + whole[23:]):
        path.write_bytes(damage)
        with pytest.raises(BadInput, match=f"{name}{ending} is damaged"):
            load_small(tmp_path, files)


def test_one_changed_byte_fails_the_checksum(tmp_path):
    files = small_idx_files()
    put(tmp_path, files | {IDX_NAMES[0]: files[IDX_NAMES[0]][:-1] + b"!"})
    with pytest.raises(
        BadInput, match=r"train-images-idx3-ubyte is damaged \(its checksum is not that of the original"
    ):
        load_small(tmp_path, files)


def test_the_published_checksums_refuse_other_files_of_the_same_name(tmp_path):
    put(tmp_path, small_idx_files())
    for dataset in (Mnist(), FashionMnist()):
        with pytest.raises(BadInput, match="checksum"):
            dataset.load(tmp_path, seed=0)
    put(tmp_path, dict.fromkeys(cifar10._SUBSET, bytes(3073)), ".xz")
    with pytest.raises(BadInput, match=r"subset_batch_1\.bin\.xz is damaged"):
        Cifar10(subset=True).load(tmp_path, seed=0)


@pytest.mark.parametrize("read", [b"", b"\x00\x00\x08", b"\x00\x00\x08\x03\x00", b"\x00\x00\x0d\x01\x00\x00\x00\x00"])
def test_what_does_not_begin_as_idx_is_refused(read):
    with pytest.raises(BadInput, match=r"x is damaged \(it does not begin as"):
        read_idx(read, "x")


def test_an_idx_file_that_announces_more_than_it_holds_is_refused():
    for announced in (4, 2**32 - 1):
        with pytest.raises(BadInput, match=r"it announces .* and holds 3"):
            read_idx(struct.pack(">2I", 2049, announced) + bytes(3), "x")


# ---- CIFAR-10 -------------------------------------------------------------------------------------------------------


def test_a_record_is_a_label_and_three_planes():
    records = read_records(bytes([7]) + bytes(range(256)) * 12, "x")
    assert records[0, 0] == 7
    images = cifar10._inputs(records)
    expected = [
        (np.float32((0 / 255 - m) / s), np.float32((33 / 255 - m) / s))
        for m, s in zip(cifar10._MEAN, cifar10._STD, strict=True)
    ]
    assert [(images[0, c, 0, 0], images[0, c, 1, 1]) for c in range(3)] == expected


def test_records_of_the_wrong_length_or_label_are_refused():
    with pytest.raises(BadInput, match="3072 bytes are not records of 3073 bytes"):
        read_records(bytes(3072), "x")
    with pytest.raises(BadInput, match="it holds the label 10"):
        read_records(bytes([10]) + bytes(3072), "x")


def whole_cifar(channel_means):
    """60,000 records with the right classes and, to a thousandth of a grey level, these channel means (0 ... 1)."""
    labels = np.arange(60_000) % 10
    records = np.empty((60_000, 3073), dtype=np.uint8)
    records[:, 0] = labels
    for channel, mean in enumerate(channel_means):
        low = int(mean * 255)
        plane = records[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)]
        plane[:] = low
        plane[:, : round((mean * 255 - low) * 1024)] = low + 1
    return records


def test_the_whole_of_cifar10_is_known_by_its_class_counts_and_published_channel_means():
    right = whole_cifar(cifar10._MEAN)
    cifar10._check_whole(right[:50_000], right[50_000:], "x")
    with pytest.raises(BadInput, match="5,000 training and 1,000 test images of each class"):
        cifar10._check_whole(right[:49_999], right[50_000:], "x")
    right[:, 1:1025] += 1
    with pytest.raises(BadInput, match="the channel means are"):
        cifar10._check_whole(right[:50_000], right[50_000:], "x")


def test_six_binary_batches_are_read_in_their_order(tmp_path, monkeypatch):
    batches = {name: bytes([i]) + bytes(3072) for i, name in enumerate(cifar10._FULL)}
    put(tmp_path / "cifar-10-batches-bin", batches)
    monkeypatch.setattr(cifar10, "_check_whole", lambda train, test, where: None)
    data = Cifar10().load(tmp_path, seed=0)
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert data.test_labels.tolist() == [5]


# ---- downloaded -----------------------------------------------------------------------------------------------------


@pytest.fixture
def openml(monkeypatch):
    """An OpenML of nine images of 28 x 28; counts how often it is asked."""
    asked = []
    rng = np.random.default_rng(4)
    pixels = [rng.integers(0, 256, n * 784, dtype=np.uint8).reshape(n, 784) for n in (6, 3)]
    labels = [str(i) for n in (6, 3) for i in range(n)]

    def fetch(name, **settings):
        asked.append((name, settings["version"]))
        return SimpleNamespace(data=np.concatenate(pixels).astype(np.float64), target=np.array(labels, dtype=object))

    monkeypatch.setattr(sklearn_datasets, "fetch_openml", fetch)
    monkeypatch.setattr(_idx, "_N_TRAIN", 6)
    return asked


def test_a_download_equals_the_files_and_is_made_once(tmp_path, openml):
    files = small_idx_files()  # the same pixels as the fixture's
    put(tmp_path / "data", files)
    from_files = load_small(tmp_path / "data", files)
    for _ in range(2):
        fetched = load_small(None, files)
        np.testing.assert_array_equal(fetched.train_inputs, from_files.train_inputs)
        np.testing.assert_array_equal(fetched.test_labels, from_files.test_labels)
    assert openml == [("tiny", 1)]


def test_a_download_that_is_not_the_published_set_fails_the_same_checksum(openml):
    with pytest.raises(BadInput, match="as downloaded from OpenML is damaged"):
        load_small(None, small_idx_files(n_test=2))


def test_a_damaged_cache_is_named_with_the_remedy(tmp_path, openml):
    load_small(None, small_idx_files())
    kept = tmp_path / "cache" / "fedsim" / "tiny-1.npz"
    kept.write_bytes(kept.read_bytes()[:-40])
    with pytest.raises(BadInput, match=r"tiny-1\.npz is damaged .*or delete it"):
        load_small(None, small_idx_files())


def test_a_cache_that_cannot_be_written_costs_no_run(tmp_path, openml):
    (tmp_path / "cache").write_text("a file where a folder is wanted", encoding="utf-8")
    assert len(load_small(None, small_idx_files()).train_labels) == 6


def test_the_global_timeout_is_put_back():
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(123.0)
    try:
        with pytest.raises(OSError, match="OpenML did not deliver mnist_784"):
            _openml.downloaded("mnist_784", version=1)
        assert socket.getdefaulttimeout() == 123.0
    finally:
        socket.setdefaulttimeout(before)


# ---- made from a seed -----------------------------------------------------------------------------------------------


def test_digits_come_flat_or_as_images_of_the_same_pixels():
    flat, images = Digits().load(None, seed=3), Digits(as_images=True).load(None, seed=3)
    assert flat.input_shape == (64,)
    assert images.input_shape == (1, 8, 8)
    np.testing.assert_array_equal(flat.test_inputs, images.test_inputs.reshape(-1, 64))
    assert (len(flat.train_labels), len(flat.test_labels)) == (1437, 360)
    assert flat.train_inputs.max() == 1


@pytest.mark.parametrize("dataset", [Digits(), GaussianBlobs()])
def test_another_seed_is_another_split(dataset):
    one, two = dataset.load(None, seed=1), dataset.load(None, seed=2)
    assert (one.test_inputs != two.test_inputs).any()


def test_digits_are_split_and_not_changed():
    data, (pixels, labels) = Digits().load(None, seed=3), sklearn_datasets.load_digits(return_X_y=True)
    ours = np.column_stack(
        [np.concatenate([data.train_inputs, data.test_inputs]) * 16, [*data.train_labels, *data.test_labels]]
    )
    theirs = np.column_stack([pixels, labels])
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_blobs_lie_around_their_centres_with_the_stated_spread():
    """A pooled deviation of n values has a relative standard error of 1 / sqrt(2 n)."""
    data = GaussianBlobs(n_samples=5000, n_features=8, n_classes=4, spread=0.3).load(None, seed=1)
    inputs, labels = data.train_inputs.astype(np.float64), data.train_labels
    residuals = np.concatenate([inputs[labels == c] - inputs[labels == c].mean(axis=0) for c in range(4)])
    n_free = residuals.size - 4 * 8
    assert abs(np.sqrt((residuals**2).sum() / n_free) - 0.3) < 4 * 0.3 / np.sqrt(2 * n_free)
    assert (len(labels), len(data.test_labels)) == (4000, 1000)


def test_fewer_samples_than_classes_are_refused():
    with pytest.raises(BadInput, match="5 samples cannot show 6 classes"):
        GaussianBlobs(n_samples=5, n_classes=6).load(None, seed=0)
