"""TensorBoard event files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from rpn_jax.errors import writing


class EventFile:
    """Writes figures to an event file at once.

    tensorboardX's own `SummaryWriter` writes in a thread, where nothing can handle an error.

    Args:
      folder: folder of the file. TensorBoard shows all event files in it as one run.
      first_step: number of steps finished before. TensorBoard hides the figures of later steps in
        older files, because a resumed run repeats these steps.

    Raises:
      UserError: the file cannot be written. All methods raise it.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        # tensorboardX imports PyTorch if it is installed, which takes seconds and 0.2 GB.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._where = f"TensorBoard events in {folder}"
        with writing(self._where):
            self._writer = EventsWriter(str(folder / "events"))
            start = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(step=first_step + 1, session_log=start))
            self._writer.flush()

    def write(self, figures: Mapping[str, float], step: int) -> None:
        """Write the figures after ``step`` steps."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        with writing(self._where):
            self._writer.write_event(event)
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        with writing(self._where):
            self._writer.close()
