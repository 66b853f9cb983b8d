"""Event files of TensorBoard, read back record by record."""

import resource
import struct

import pytest

from rpn_jax.errors import UserError
from rpn_jax.training.events import EventFile


def read_events(folder):
    """Return the events of the only event file: length, checksum, event, checksum ..."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    content, events, at = path.read_bytes(), [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        events.append(Event.FromString(content[at + 12 : at + 12 + length]))
        at += 12 + length + 4
    return events


def test_figures_are_written_at_once(tmp_path):
    file = EventFile(tmp_path, first_step=4)
    file.write({"training/loss": 0.5, "training/learning_rate": 0.25}, 6)
    version, start, figures = read_events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, start.session_log.START)
    assert figures.step == 6
    assert {value.tag: value.simple_value for value in figures.summary.value} == {
        "training/loss": 0.5,
        "training/learning_rate": 0.25,
    }
    file.close()


def test_a_file_that_cannot_be_written_is_one_error(tmp_path):
    file = EventFile(tmp_path, first_step=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(UserError, match=r"^TensorBoard events in .*: cannot be written"):
            file.write({"training/loss": 0.5}, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.close()
    with pytest.raises(UserError, match=r"no/folder: cannot be written"):
        EventFile(tmp_path / "no" / "folder", first_step=0)
