"""The step and its loop: arithmetic, devices, reports, stopping and saving."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rpn_jax.errors import UserError
from rpn_jax.models.means import Mean
from rpn_jax.structures import Batch
from rpn_jax.training.gradients import DEVICE_AXIS
from rpn_jax.training.loop import NotFiniteError, compile_steps, run_steps
from rpn_jax.training.step import device_step, initial_state, make_step, replicate, split_batch


class Recorder:
    """An observer that stores its calls."""

    def __init__(self):
        self.canvases, self.seconds, self.steps, self.waits = [], [], [], []

    def compiling(self, canvas, number, total):
        self.canvases.append((canvas, number, total))

    def compiled(self, seconds):
        self.seconds.append(seconds)

    def waited(self, seconds):
        self.waits.append(seconds)

    def step(self, step, metrics):
        self.steps.append((step, metrics))


def batch_of(values, side=4):
    """A batch whose pictures hold one grey level each."""
    count = len(values)
    images = np.broadcast_to(
        np.array(values, np.uint8)[:, None, None, None], (count, side, side, 3)
    )
    return Batch(
        images=images,
        image_sizes=np.full((count, 2), side, np.int32),
        scale_factors=np.ones((count, 2), np.float32),
        boxes_xyxy=np.zeros((count, 1, 4), np.float32),
        labels=np.zeros((count, 1), np.int32),
        box_mask=np.zeros((count, 1), bool),
        indices=np.arange(count, dtype=np.int32),
    )


def shapes_of(batch):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)


def one(value):
    """A mean over one sample."""
    return Mean(value, jnp.float32(1.0))


def squared_error(variables, batch, rng, first):
    """(w - mean grey level)^2, and a term that a grey level of 255 turns into NaN."""
    level = batch.images[:, 0, 0, 0].astype(jnp.float32)
    error = (variables["params"]["w"] - level.mean()) ** 2
    other = jnp.where(jnp.any(level == 255), jnp.nan, 1.0)
    return {"loss_a": one(error), "loss_b": one(other)}, variables


def run(
    batches,
    steps,
    should_stop=lambda: False,
    save_due=lambda done: False,
    loss=squared_error,
    save=lambda state: None,
    seed=0,
    source=None,
):
    optimizer = optax.sgd(0.1)
    step = make_step(loss, optimizer, optax.constant_schedule(0.1), seed, jax.local_devices())
    state = replicate(
        initial_state({"params": {"w": jnp.float32(0.0)}}, optimizer), jax.local_devices()
    )
    recorder = Recorder()
    canvases = {batch.images.shape: shapes_of(batch) for batch in list.copy(batches)}
    compiled = compile_steps(step, state, list(canvases.values()), recorder)
    placed = map(split_batch, batches if source is None else source)
    names = ["first", "second", "third", "fourth"]
    state = run_steps(
        compiled,
        state,
        placed,
        steps,
        recorder,
        lambda indices: [names[index] for index in indices],
        should_stop,
        save_due,
        save,
    )
    return state, recorder


def test_steps_are_plain_gradient_descent():
    batches = [batch_of([2, 4]), batch_of([8, 10]), batch_of([1, 1])]
    state, recorder = run(batches, steps=3)
    w, losses = 0.0, []
    for mean in (3.0, 9.0, 1.0):
        losses.append((w - mean) ** 2)
        w -= 0.1 * 2 * (w - mean)
    np.testing.assert_allclose(state.variables["params"]["w"], w, rtol=1e-6)
    assert int(state.step) == 3
    assert [step for step, _ in recorder.steps] == [0, 1, 2]
    np.testing.assert_allclose([m["loss_a"] for _, m in recorder.steps], losses, rtol=1e-6)
    np.testing.assert_allclose([m["loss"] for _, m in recorder.steps], np.add(losses, 1), rtol=1e-6)
    assert recorder.steps[0][1]["grad_norm"] == pytest.approx(6.0)


def test_every_canvas_is_compiled_and_reported():
    _, recorder = run([batch_of([2], side=4), batch_of([2], side=8)], steps=2)
    assert [canvas for canvas, _, _ in recorder.canvases] == [(4, 4), (8, 8)]
    assert [(number, total) for _, number, total in recorder.canvases] == [(1, 2), (2, 2)]
    assert len(recorder.seconds) == 2


def test_a_loss_that_is_not_finite_names_step_and_pictures_and_is_not_saved():
    batches = [batch_of([2, 4]), batch_of([255, 10]), batch_of([1, 1])]
    saved: list = []
    with pytest.raises(UserError, match=r"step 2: loss is nan on the pictures first, second\. Try"):
        run(batches, steps=3, save=saved.append)
    assert saved == []


def test_a_step_that_is_not_finite_keeps_its_batch_and_the_state_before_it():
    good, bad, later = batch_of([2, 4]), batch_of([255, 10]), batch_of([1, 1])
    with pytest.raises(NotFiniteError) as caught:
        run([good, bad, later], steps=3)
    expected, _ = run([good], steps=1)
    assert (caught.value.step, int(caught.value.state.step)) == (2, 1)
    np.testing.assert_array_equal(
        caught.value.state.variables["params"]["w"], expected.variables["params"]["w"]
    )
    jax.tree.map(np.testing.assert_array_equal, caught.value.batch, bad)


def test_waiting_for_a_batch_counts_if_the_devices_are_idle():
    def slow(batches):
        for batch in batches:
            time.sleep(0.2)
            yield batch

    batches = [batch_of([2, 4])] * 3
    _, recorder = run(batches, steps=3, source=slow(batches))
    assert sum(recorder.waits) >= 0.4
    assert len(recorder.waits) == 2  # Before the first step, the devices wait for nothing.
    _, recorder = run(batches, steps=3)
    assert sum(recorder.waits) < 0.2


def test_only_scalars_named_loss_are_added_up():
    def with_figure(variables, batch, rng, first):
        terms, variables = squared_error(variables, batch, rng, first)
        return terms | {"share": one(jnp.float32(0.5))}, variables

    plain, _ = run([batch_of([2, 4])], steps=1)
    state, recorder = run([batch_of([2, 4])], steps=1, loss=with_figure)
    assert recorder.steps[0][1]["loss"] == pytest.approx(9.0 + 1.0)
    assert recorder.steps[0][1]["share"] == 0.5
    np.testing.assert_array_equal(state.variables["params"]["w"], plain.variables["params"]["w"])


def test_the_last_state_is_saved_once():
    saved: list = []
    state, _ = run([batch_of([2])] * 3, steps=2, save=saved.append)
    assert saved == [state]
    assert int(state.step) == 2


def test_a_state_is_saved_when_a_save_is_due_and_after_its_own_figures_were_read():
    events: list = []

    def save(state):
        events.append(("saved", int(state.step), float(state.variables["params"]["w"])))

    batches = [batch_of([value]) for value in (2, 4, 8, 1, 1)]
    _, recorder = run(batches, 5, save_due=lambda done: done in (2, 3), save=save)
    assert [step for _, step, _ in events] == [2, 3, 5]
    whole, _ = run(batches, 5)
    assert events[-1][2] == float(whole.variables["params"]["w"])
    assert [step for step, _ in recorder.steps] == [0, 1, 2, 3, 4]


def test_a_state_is_not_saved_if_its_step_is_not_finite():
    saved: list = []
    with pytest.raises(UserError, match=r"step 2: loss is nan"):
        run([batch_of([2]), batch_of([255])], 2, save_due=lambda done: True, save=saved.append)
    assert len(saved) == 1


class BrokenAfter(list):
    """Batches after which the next one cannot be loaded."""

    def __iter__(self):
        yield from super().__iter__()
        raise UserError("a.jpg: cannot be read")


@pytest.mark.parametrize("loaded", [0, 2])
def test_a_batch_that_cannot_be_loaded_keeps_the_steps_before_it(loaded):
    saved: list = []
    batches = BrokenAfter([batch_of([2])] * loaded)
    with pytest.raises(UserError, match=r"a\.jpg: cannot be read"):
        run(batches, steps=3, save=lambda state: saved.append(int(state.step)))
    assert saved == ([loaded] if loaded else [])


def test_a_gradient_that_is_not_finite_names_its_own_step():
    def root(variables, batch, rng, first):
        value = variables["params"]["w"] + batch.images[0, 0, 0, 0].astype(jnp.float32)
        return {"loss_a": one(jnp.sqrt(jnp.abs(value)))}, variables

    with pytest.raises(UserError, match=r"step 1: grad_norm is (nan|inf) on the pictures first"):
        run([batch_of([0]), batch_of([3])], steps=2, loss=root)


def test_the_loop_stops_after_the_current_step():
    asked = iter([False, True])
    state, recorder = run([batch_of([2])] * 5, 5, should_stop=lambda: next(asked))
    assert int(state.step) == 2
    assert [step for step, _ in recorder.steps] == [0, 1]


def test_the_random_key_of_a_step_depends_only_on_seed_and_step():
    def drawn(variables, batch, rng, first):
        return {"loss_a": one(jax.random.uniform(rng) + 0 * variables["params"]["w"])}, variables

    first, again = (
        [m["loss_a"] for _, m in run([batch_of([2])] * 3, 3, loss=drawn)[1].steps] for _ in range(2)
    )
    assert first == again
    assert len(set(first)) == 3


def losses_on(devices):
    script = Path(__file__).with_name("steps_on_devices.py")
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(script.parents[2]),
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_of_three_devices_share_four_pictures_and_give_the_losses_of_one():
    one, two = losses_on(1), losses_on(3)
    assert one["devices"] == 1
    assert two["devices"] == 2
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-5)
    np.testing.assert_allclose(two["weight_norms"], one["weight_norms"], rtol=1e-5)
    assert one["losses"][0] != one["losses"][-1]


def step_on_two_devices(loss, levels, seed=0):
    """One step of two devices with a picture each. The devices are the mapped axis of a vmap."""
    optimizer = optax.sgd(0.1)
    step = device_step(loss, optimizer, optax.linear_schedule(0.1, 0.2, 1), seed)
    state = initial_state({"params": {"w": jnp.float32(0.0)}}, optimizer)
    batch = jax.tree.map(lambda x: x[:, None], batch_of(levels))
    return jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=DEVICE_AXIS)(state, batch)


def test_every_device_draws_with_its_own_key():
    """A device's loss is its draw times its grey level, so a level of 0 hides its draw."""

    def drawn(variables, batch, rng, first):
        weight = batch.images[0, 0, 0, 0].astype(jnp.float32)
        return {"loss_a": one(weight * jax.random.uniform(rng))}, variables

    first, second = (step_on_two_devices(drawn, levels)[1]["loss"] for levels in ([1, 0], [0, 1]))
    assert first != second


def test_the_draw_depends_on_the_seed():
    def drawn(variables, batch, rng, first):
        return {"loss_a": one(jax.random.uniform(rng))}, variables

    losses = [float(step_on_two_devices(drawn, [1, 1], seed)[1]["loss"]) for seed in (0, 1, 1)]
    assert losses[0] != losses[1] == losses[2]


def test_the_seed_and_the_step_make_the_key_together():
    """Seed 1 at step 0 must differ from seed 0 at step 1."""

    def drawn(variables, batch, rng, first):
        return {"loss_a": one(jax.random.uniform(rng) + 0 * variables["params"]["w"])}, variables

    _, recorder = run([batch_of([2])] * 2, 2, loss=drawn)
    _, other = run([batch_of([2])] * 2, 2, loss=drawn, seed=1)
    assert recorder.steps[1][1]["loss"] != other.steps[0][1]["loss"]


def test_gradients_are_averaged_over_the_devices():
    """Levels 2 and 4: the losses are 4 and 16, and the gradients at 0 are -4 and -8."""
    state, metrics = step_on_two_devices(squared_error, [2, 4])
    assert metrics["loss_a"] == pytest.approx(10.0)
    assert metrics["grad_norm"] == pytest.approx(6.0)
    assert state.variables["params"]["w"] == pytest.approx(0.6)


def test_the_learning_rate_reported_is_the_rate_of_the_step():
    _, metrics = step_on_two_devices(squared_error, [2, 4])
    assert metrics["learning_rate"] == pytest.approx(0.1)


def test_statistics_that_the_loss_updates_are_kept():
    def counting(variables, batch, rng, first):
        count = variables["batch_stats"]["count"] + 1
        return {"loss_a": one(variables["params"]["w"] ** 2)}, variables | {
            "batch_stats": {"count": count}
        }

    optimizer = optax.sgd(0.1)
    variables = {"params": {"w": jnp.float32(1.0)}, "batch_stats": {"count": jnp.int32(3)}}
    step = make_step(
        counting, optimizer, optax.constant_schedule(0.1), seed=0, devices=jax.local_devices()
    )
    state, _ = step(
        replicate(initial_state(variables, optimizer), jax.local_devices()),
        split_batch(batch_of([2])),
    )
    assert int(state.variables["batch_stats"]["count"]) == 4
