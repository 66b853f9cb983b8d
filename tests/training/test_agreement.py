"""Processes of a run with other settings, data or weights are refused."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rpn_jax.config import Config
from rpn_jax.data.shapes import Shapes
from rpn_jax.errors import UserError
from rpn_jax.training import agreement


@pytest.fixture
def in_two_processes(monkeypatch):
    """A function that calls a check with the arguments of process 0, then those of process 1."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def run(check, first, second):
        values = []

        def gather(value):
            values.append(value)
            return values

        monkeypatch.setattr(agreement, "gather", gather)
        check(*first)
        check(*second)

    return run


def dataset(count=3, class_names=("a", "b")):
    pictures = Shapes("eval").pictures[:count]
    return SimpleNamespace(pictures=pictures, class_names=class_names, category_ids=(1, 2))


def with_data(**changes):
    return replace(Config(), data=replace(Config().data, **changes))


def with_train(**changes):
    return replace(Config(), train=replace(Config().train, **changes))


def test_equal_inputs_pass_wherever_they_lie(in_two_processes):
    first = (with_data(root="a", loader_threads=2), [("train", dataset())])
    second = (with_data(root="b", loader_threads=9, dataset="packed"), [("train", dataset())])
    in_two_processes(agreement.check_same_inputs, first, second)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_train(seed=3), "train.seed = 3: in process 1, but 0 in process 0. Give all"),
        (with_train(epochs=2), "train.epochs = 2: in process 1, but 12 in process 0. Give all"),
        (with_data(scale=(96, 96)), r"data.scale = \(96, 96\): in process 1, but \(1333, 800\) in"),
    ],
)
def test_other_settings_are_named(in_two_processes, config, message):
    with pytest.raises(UserError, match=f"^{message}"):
        in_two_processes(
            agreement.check_same_inputs, (Config(), [("train", dataset())]), (config, [])
        )


def moved_box():
    changed = dataset()
    first = changed.pictures[0]
    objects = replace(first.objects, boxes_xywh=first.objects.boxes_xywh + 1e-3)
    changed.pictures = [replace(first, objects=objects), *changed.pictures[1:]]
    return changed


@pytest.mark.parametrize("other", [dataset(2), dataset(class_names=("a", "c")), moved_box()])
def test_other_data_are_named(in_two_processes, other):
    first = [("train", dataset()), ("val", dataset())]
    second = [("train", dataset()), ("val", other)]
    with pytest.raises(UserError, match=r"^val: process 1 finds other pictures, boxes or classes"):
        in_two_processes(agreement.check_same_inputs, (Config(), first), (Config(), second))


def test_other_checkpoints_are_named(in_two_processes, tmp_path):
    in_two_processes(agreement.check_same_step, (tmp_path, 3), (tmp_path, 3))
    with pytest.raises(UserError, match="process 1 finds the checkpoint of step 2 in it, and"):
        in_two_processes(agreement.check_same_step, (tmp_path, 3), (tmp_path, 2))


def test_other_weights_are_named(in_two_processes):
    one, other = ({"params": {"kernel": np.full(2, value, np.float32)}} for value in (0, 1))
    in_two_processes(agreement.check_same_weights, (one,), (one,))
    with pytest.raises(UserError, match=r"^'params.kernel' has other weights in process 1 than"):
        in_two_processes(agreement.check_same_weights, (one,), (other,))
