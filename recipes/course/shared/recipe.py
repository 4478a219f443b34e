"""What the recipes of the course have in common around their technique: folder, record, table and metrics."""

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import logging as transformers_logging, set_seed

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.recipes.course.shared.arguments import CourseArguments
from hf_evidenceflow.recipes.course.shared.picture_rows import FILE, PictureRows
from hf_evidenceflow.report.run_record import RunRecord
from hf_evidenceflow.run_folder.training_run import training_run


_OF_ONE_RUN = ("seed", "output_dir", "overwrite")


class CourseRun:
    """
    A running recipe.

    Args:
        name (`str`):
            Name of the recipe.
        folder (`Path`):
            Folder of its results.
        record ([`~reporting.RunRecord`]):
            Its run record.
        args ([`CourseArguments`]):
            Its arguments.
    """

    def __init__(self, name: str, folder: Path, record: RunRecord, args: CourseArguments):
        self.name, self.folder, self.record, self._start = name, folder, record, time.perf_counter()
        self._settings = asdict(args)

    def draw(self, plot: Callable[[PictureRows, Path], Any], rows: Mapping[str, Mapping]) -> None:
        """
        Write `picture.json`, and draw `<name>.png` from it.

        Args:
            plot (`Callable`):
                Takes [`PictureRows`] and the path of the picture.
            rows (`Mapping[str, Mapping]`):
                `curves`, `scores` and `once` of [`PictureRows`].
        """
        settings = {key: value for key, value in self._settings.items() if key not in _OF_ONE_RUN}
        shown = PictureRows(self.name, [self._settings["seed"]], settings, **rows)
        shown.write(self.folder / FILE)
        plot(shown, self.folder / f"{self.name}.png")

    def finish(self, tables: Sequence[str], note: str, metrics: Mapping[str, Any]) -> dict:
        """
        Write `metrics.json` and `<name>.md`, which shows the tables, the note and `<name>.png`; print the former.

        Args:
            tables (`Sequence[str]`):
                Tables of [`~hf_evidenceflow.report.tables.markdown_table`].
            note (`str`):
                What the numbers are: sizes, seeds, limits. The time of the run is added.
            metrics (`Mapping[str, Any]`):
                The numbers; they go into the run record too.

        Returns:
            `dict`: the metrics with the `seconds` of the run.
        """
        metrics = {**metrics, "seconds": time.perf_counter() - self._start}
        text = "\n\n".join([*tables, f"{note} {metrics['seconds']:.0f} seconds in all."])
        atomic_write_text(self.folder / f"{self.name}.md", f"{text}\n\n![results]({self.name}.png)\n")
        atomic_write_json(self.folder / "metrics.json", metrics)
        self.record.add(metrics=metrics)
        print(f"\n{text}\nResults: {self.folder}")
        return metrics


@contextmanager
def course_run(name: str, args: CourseArguments) -> Iterator[CourseRun]:
    """
    Seed everything, take the output folder, and record the run.

    Args:
        name (`str`):
            Name of the recipe.
        args ([`CourseArguments`]):
            Its arguments.

    Yields:
        [`CourseRun`]: The run.

    Raises:
        `ValueError`: if the folder holds a run that `overwrite` does not allow to replace.

    Example:

    ```python
    >>> with course_run("word_vectors", args) as run:
    ...     run.finish([table], "One seed.", {"accuracy": 0.8})
    ```
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    set_seed(args.seed)
    with training_run(args.output_dir, overwrite=args.overwrite, script=args) as run:
        yield CourseRun(name, run.folder, run.record, args)


def require_course_package(name: str, purpose: str) -> ModuleType:
    """
    Import an optional package of the course.

    Args:
        name (`str`):
            Package to import, such as `"gensim"`.
        purpose (`str`):
            What it is needed for, for the message.

    Returns:
        `ModuleType`: the package.

    Raises:
        `ImportError`: if it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f"{purpose} needs {name}, which is not installed. Run `pip install 'hf-evidenceflow[course]'`."
        ) from error
