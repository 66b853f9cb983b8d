"""Run `propose` and `detect` on a Ray cluster: lists of pictures in, Parquet files out.

The list is cut into chunks. Each worker holds the compiled model and writes the results of a chunk
to one Parquet file. A file gets its name when it is complete, so interrupted work continues with
the chunks that have no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rpn_jax.config import Config
from rpn_jax.console import make_console, picture_progress, say
from rpn_jax.data.files import PictureFiles, find_pictures
from rpn_jax.devices import use_platform
from rpn_jax.errors import UserError, reading, writing
from rpn_jax.files import make_folder, read_json, write_json, written_whole
from rpn_jax.inference.batches import (
    BatchFunction,
    SplitBatch,
    in_order,
    on_all_devices,
    run_dataset,
)
from rpn_jax.inference.detector import make_detect_function, second_stage
from rpn_jax.inference.forward import prepare_variables
from rpn_jax.inference.proposer import make_propose_function
from rpn_jax.inference.results import (
    PictureDetections,
    PictureProposals,
    picture_detections,
    picture_proposals,
)
from rpn_jax.inference.sources import is_url, picture_path
from rpn_jax.inference.work import check_same_work, describe_list, describe_model
from rpn_jax.runtime import set_up_compiling
from rpn_jax.weights.folders import load_variables
from rpn_jax.weights.models import load_matching_weights, weights_folder

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from rich.console import Console

CHUNK_PICTURES = 256
"""Number of pictures in a chunk."""
JOB_FILE = "job.json"
PATH_COLUMN = "path"
"""Column of the input Parquet files that holds the paths of the pictures."""
PARQUET = ".parquet"


@dataclass(frozen=True)
class Job:
    """What every worker needs to know."""

    config: Config
    weights: str
    """Folder of weights."""
    folder: Path
    """Folder of the Parquet files."""
    detects: bool
    """Write detections instead of proposals."""
    min_score: float
    """Only proposals with a higher score are written."""
    platform: str
    """'auto', 'cpu' or 'gpu'."""


def run_on_ray(
    job: Job, sources: Sequence[str], out: Path, workers: int | None, chunk_pictures: int
) -> None:
    """Write the results of pictures to Parquet files, with the columns of `result_table`.

    Args:
      job: model and output. Its weights are any source that `load_model` takes, its folder is
        ``out`` or below it.
      sources: pictures, folders, globs, URLs, or Parquet files or folders with a column ``path``.
      out: folder to write to. All workers must reach it under this path, and the pictures and the
        weights too.
      workers: number of workers. None starts one for each GPU of the cluster, or one without GPUs.
      chunk_pictures: number of pictures in a Parquet file.

    Raises:
      UserError: Ray is not installed, a source matches nothing, the weights belong to another
        model, ``out`` cannot be written or holds results of other work, or the cluster is too
        small. A picture that cannot be read is no error: its row says why.
      KeyboardInterrupt: Ctrl-C. Finished chunks are kept.
    """
    ray = _import_ray()
    if job.detects:
        second_stage(job.config)
    use_platform("cpu")  # The GPUs of this machine belong to the workers.
    console = make_console()
    paths = list_paths(sources)
    folder = weights_folder(job.weights, job.config)
    config, variables = load_matching_weights(job.config, folder)
    make_folder(job.folder)
    work = {
        **describe_model(config, variables),
        "pictures": describe_list(paths),
        "chunk": str(chunk_pictures),
        "min_score": str(job.min_score),
    }
    del variables
    _check_job(out / JOB_FILE, work)
    job = replace(job, config=config, weights=str(folder.resolve()), folder=job.folder.resolve())
    starts = range(0, len(paths), chunk_pictures)
    chunks: list[dict[str, Any]] = [
        {"chunk": number, "paths": paths[start : start + chunk_pictures]}
        for number, start in enumerate(starts)
        if not _chunk_file(job.folder, number).exists()
    ]
    left = sum(len(chunk["paths"]) for chunk in chunks)
    done = len(paths) - left
    if done:
        say(console, f"continuing after {done} of {len(paths)} pictures")
    if chunks:
        _run_chunks(ray, job, chunks, workers, done, console)
    _print_end(job.folder, console)


def list_paths(sources: Sequence[str]) -> list[str]:
    """Return the absolute paths and the URLs of pictures, each once.

    Args:
      sources: as in `run_on_ray`.

    Raises:
      UserError: a source matches nothing, a Parquet file cannot be read or has no such column, or a
        name is not UTF-8, as texts in Parquet files are.
    """
    if not sources:
        raise UserError(
            "--engine ray: no picture is named. Name pictures, folders or Parquet files."
        )
    paths: list[str] = []
    for source in sources:
        if is_url(source):
            paths.append(source)
        elif source.rstrip("/").endswith(PARQUET):
            paths += _paths_in_parquet(source)
        else:
            paths += [str(path.absolute()) for path in find_pictures([source])]
    for path in paths:
        try:
            path.encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}: --engine ray: the name is not UTF-8. Rename it.") from None
    return list(dict.fromkeys(paths))


def _paths_in_parquet(source: str) -> list[str]:
    from pyarrow import lib, parquet

    with reading(source):
        try:
            columns = parquet.read_schema(_first_file(Path(source))).names
            if PATH_COLUMN not in columns:
                raise UserError(
                    f"{source}: has no column '{PATH_COLUMN}', only {', '.join(columns)}. Name the "
                    f"column with the paths of the pictures '{PATH_COLUMN}'."
                )
            table = parquet.read_table(source, columns=[PATH_COLUMN])
        except lib.ArrowInvalid as error:
            raise UserError(f"{source}: is not a Parquet file ({error})") from None
    return [str(path) for path in table[PATH_COLUMN].to_pylist()]


def _first_file(path: Path) -> Path:
    return min(path.glob(f"*{PARQUET}"), default=path) if path.is_dir() else path


def _check_job(path: Path, work: dict[str, str]) -> None:
    """Write what the work is, or check that it is the work that was begun."""
    if path.exists():
        check_same_work(path, read_json(path), work)
    else:
        write_json(path, work)


def _run_chunks(
    ray: Any,
    job: Job,
    chunks: list[dict[str, Any]],
    workers: int | None,
    done: int,
    console: Console,
) -> None:
    import ray.data as ray_data

    if not ray.is_initialized():
        ray.init(logging_level="error", log_to_driver=False)
    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = False
    context.verbose_progress = False
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    if job.platform == "cpu":
        gpus = 0
    count = min(workers or gpus or 1, len(chunks))
    if count > (gpus or cpus):
        raise UserError(
            f"--ray-workers {count}: the cluster has {gpus} GPUs and {cpus} CPU cores. Use at most "
            f"{gpus or cpus}."
        )
    results = ray_data.from_items(chunks).map(
        ChunkWorker,
        fn_constructor_kwargs={"job": job},
        compute=ray_data.ActorPoolStrategy(size=count),
        num_gpus=1 if gpus else None,
        num_cpus=None if gpus else 1,
    )
    activity = "detecting" if job.detects else "proposing"
    total = done + sum(len(chunk["paths"]) for chunk in chunks)
    with picture_progress(console, activity, total, done) as advance:
        for result in results.iter_rows():
            advance(result["pictures"])


def _print_end(folder: Path, console: Console) -> None:
    from pyarrow import compute, parquet

    errors = parquet.read_table(folder, columns=["error"])["error"]
    failed = len(errors) - errors.null_count
    say(
        console,
        f"results of {len(errors)} pictures are in {folder}. {failed} of them could not be read: "
        "their column 'error' says why.",
    )
    for text in compute.drop_null(errors)[:1].to_pylist():
        say(console, f"the first: {text}")


class ChunkWorker:
    """A worker of Ray: it loads the model once and writes the results of chunks.

    Args:
      job: model and output.
    """

    def __init__(self, job: Job) -> None:
        use_platform(job.platform)
        set_up_compiling()
        self._job = job
        variables = load_variables(job.weights)
        self._prepared = prepare_variables(job.config, variables, on_all_devices())
        self._function: BatchFunction[Any]
        self._split: SplitBatch[Any, Any]
        if job.detects:
            self._function = make_detect_function(job.config)
            self._split = picture_detections
        else:
            self._function = make_propose_function(job.config)
            self._split = picture_proposals

    def __call__(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """Write the Parquet file of a chunk and return the number of its pictures."""
        from pyarrow import parquet

        paths = [str(path) for path in chunk["paths"]]
        table = result_table(paths, *self.results(paths), self._job)
        file = _chunk_file(self._job.folder, int(chunk["chunk"]))
        with written_whole(file) as temporary, writing(file):
            parquet.write_table(table, temporary)
        return {"chunk": chunk["chunk"], "pictures": len(paths)}

    def results(
        self, paths: Sequence[str]
    ) -> tuple[dict[int, PictureProposals | PictureDetections], dict[int, str]]:
        """Return the results and the error messages of pictures, by position in ``paths``."""
        opened, errors = _open_each(paths)
        dataset = Recording(PictureFiles(list(opened.values())))
        positions = list(opened)
        if not positions:
            return {}, errors
        found: dict[int, Any] = {}
        for batch in run_dataset(
            self._function, self._prepared, dataset, self._job.config, self._split
        ):
            found |= batch
        errors |= {positions[index]: text for index, text in dataset.errors.items()}
        results = dict(zip(positions, in_order(found), strict=True))
        return {at: result for at, result in results.items() if at not in errors}, errors


class Recording:
    """A `Dataset` of picture files that replaces broken pictures by black ones.

    Args:
      files: pictures whose headers could be read.
    """

    def __init__(self, files: PictureFiles) -> None:
        self._files = files
        self.pictures = files.pictures
        self.class_names = files.class_names
        self.category_ids = files.category_ids
        self.errors: dict[int, str] = {}
        """Error message of each broken picture, by position."""

    def load_image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return RGB pixels. Those of a broken picture are black, and its error is recorded."""
        try:
            return self._files.load_image(index)
        except UserError as error:
            self.errors[index] = str(error)
            picture = self.pictures[index]
            return np.zeros((picture.height, picture.width, 3), np.uint8)


def result_table(
    paths: Sequence[str],
    results: dict[int, PictureProposals | PictureDetections],
    errors: dict[int, str],
    job: Job,
) -> Any:
    """Return a `pyarrow.Table` with a row for each picture, in the order of ``paths``.

    Columns: path, error (null without one), boxes_xyxy (list of 4 float32, original pixels), scores
    (float32, best first). Detections also have labels (int32) and class_names. The lists of a
    picture with an error are null.

    Args:
      paths: names of the pictures.
      results, errors: as `ChunkWorker.results` returns them.
      job: says which boxes are kept.
    """
    import pyarrow as pa

    kept = {at: _above(result, job.min_score) for at, result in results.items()}
    order = range(len(paths))
    columns = {
        "path": pa.array(paths, pa.string()),
        "error": pa.array([errors.get(at) for at in order], pa.string()),
        "boxes_xyxy": pa.array(
            [list(kept[at].boxes_xyxy) if at in kept else None for at in order],
            pa.list_(pa.list_(pa.float32(), 4)),
        ),
        "scores": pa.array(
            [kept[at].scores if at in kept else None for at in order], pa.list_(pa.float32())
        ),
    }
    if job.detects:
        names = np.array(second_stage(job.config).class_names)
        labels = {at: result.labels for at, result in kept.items() if hasattr(result, "labels")}
        columns["labels"] = pa.array([labels.get(at) for at in order], pa.list_(pa.int32()))
        columns["class_names"] = pa.array(
            [list(names[labels[at]]) if at in labels else None for at in order],
            pa.list_(pa.string()),
        )
    return pa.table(columns)


def _above(
    result: PictureProposals | PictureDetections, min_score: float
) -> PictureProposals | PictureDetections:
    return result.above(min_score) if isinstance(result, PictureProposals) else result


def _open_each(paths: Sequence[str]) -> tuple[dict[int, Path], dict[int, str]]:
    """Return the pictures whose headers can be read, and the errors of the others."""
    opened: dict[int, Path] = {}
    errors: dict[int, str] = {}
    for position, path in enumerate(paths):
        try:
            local = picture_path(path)
            PictureFiles([local])
            opened[position] = local
        except UserError as error:
            errors[position] = str(error)
    return opened, errors


def _chunk_file(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06}{PARQUET}"


def _import_ray() -> Any:
    try:
        import pyarrow.parquet  # noqa: F401
        import ray
        import ray.data
    except ImportError:
        raise UserError("--engine ray: needs Ray Data: pip install 'rpn-jax[ray]'") from None
    return ray
