"""Question sets of one's own: JSON lines, Parquet, or a Hugging Face dataset, as tasks of two splits."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from agentflow.config import Config, suggest
from agentflow.environment import Split
from agentflow.errors import DataError
from agentflow.trajectory import Task

_MAX_SHOWN_CHARS = 60
_OTHER_SUFFIXES = (".json", ".csv", ".tsv", ".txt", ".gz", ".zst", ".arrow")
_FORMATS = ".jsonl, .parquet, a folder or a name of the Hugging Face hub"


class RowsConfig(Config):
    """Where the rows of a data set come from, and which of them are held out."""

    path: str = Field(description="A .jsonl or .parquet file, a dataset folder, or a dataset's name on the hub.")
    heldout_path: str | None = Field(None, description="A second file or dataset, with the held-out questions.")
    subset: str | None = Field(None, description="Configuration of a hub dataset that has several.")
    train_split: str = Field("train", description="Split of a dataset that is trained on.")
    heldout_split: str | None = Field(
        None, description="Split of a dataset that is held out; null holds out a share of the only split."
    )
    heldout_share: float = Field(
        0.1, gt=0, lt=1, description="Share of questions held out, chosen by their text, where nothing else is."
    )

    @model_validator(mode="after")
    def _one_heldout(self) -> Self:
        if self.heldout_path is not None and self.heldout_split is not None:
            raise ValueError("set heldout_path or heldout_split, not both")
        return self


class QuestionsConfig(RowsConfig):
    """Where questions come from, and what their columns are called."""

    question: str = Field("question", description="Column of the question; `a.b` looks into nested ones.")
    answer: str = Field("answer", description="Column of the gold answer: a text, a number or a list of them.")
    id: str | None = Field(None, description="Column of the question's id; null numbers the rows.")


def load_questions(config: QuestionsConfig, split: Split) -> list[Task]:
    """Return the questions of a split as tasks, their answer a tuple of gold answers, in the order of the rows.

    Raises:
        DataError: The set is missing, unreadable or empty, a column is missing, or a row is malformed.
    """
    source, rows = load_rows(config, split)
    return of_split(_tasks(rows, config, source=source), config, split)


def load_rows(config: RowsConfig, split: Split) -> tuple[str, list[Mapping[str, Any]]]:
    """Return where the rows of a split come from, and all rows there: `of_split` keeps those of the split.

    Raises:
        DataError: The set is missing or unreadable.
    """
    source, part = config.path, config.train_split
    if split == "heldout":
        source, part = config.heldout_path or source, config.heldout_split or part
    return source, _rows(config, source, part)


def of_split(tasks: list[Task], config: RowsConfig, split: Split) -> list[Task]:
    """Keep the tasks of a split.

    Without a held-out set of their own, tasks are held out by a hash of their text: the same ones on every machine,
    whatever the order of the rows, and never one that also occurs in training.

    Raises:
        DataError: None is left.
    """
    if config.heldout_path is not None or config.heldout_split is not None:
        return tasks
    chosen = [task for task in tasks if is_held_out(task.prompt, config.heldout_share) == (split == "heldout")]
    if not chosen:
        raise DataError(
            f"{config.path} has too few questions ({len(tasks)}) to hold out a share of {config.heldout_share:g}.",
            "Change heldout_share, or set heldout_path.",
        )
    return chosen


def is_held_out(question: str, share: float) -> bool:
    """Say whether a question belongs to the held-out share, by a hash of its words."""
    digest = hashlib.blake2b(" ".join(question.casefold().split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _rows(config: RowsConfig, source: str, part: str) -> list[Mapping[str, Any]]:
    path = Path(source).expanduser()
    if path.suffix in (".jsonl", ".parquet"):
        if part == config.heldout_split:
            raise DataError(f"{source} is one file and has no split {part!r}.", "Set heldout_path instead.")
        return _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)
    if path.is_file() or path.suffix in _OTHER_SUFFIXES:
        raise DataError(f"{source} is of an unknown format.", f"Known: {_FORMATS}.")
    if path.is_absolute() and not path.exists():
        raise DataError(f"There is no file or folder {source}.", "Check the path.")
    return _read_dataset(path, part, config)


def _read_jsonl(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.", "Check the path.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text.", "Convert it to JSON lines in UTF-8.") from None
    # Not splitlines: a JSON text may hold other characters that it takes for line breaks.
    return [_parsed(path, number, line=line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _parsed(path: Path, number: int, *, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number} is not JSON: {error}.", "Write one object a line.") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number} holds {_shown(row)}, not an object.", "Write one object a line.")
    return row


def _read_parquet(path: Path) -> list[Mapping[str, Any]]:
    # Half a second to import, for a format that few runs read.
    import pyarrow.parquet  # noqa: PLC0415

    try:
        rows: list[Mapping[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.", "Check the path.") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file: {_one_line(error)}.", "Check how it was written.") from None
    return rows


def _read_dataset(path: Path, part: str, config: RowsConfig) -> list[Mapping[str, Any]]:
    # Two seconds to import, for sets that are no single file.
    import datasets  # noqa: PLC0415

    saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    try:
        found = datasets.load_from_disk(str(path)) if saved else datasets.load_dataset(str(path), config.subset)
    except Exception as error:  # the hub, its cache and each file format raise their own kinds
        raise DataError(
            f"Cannot load the dataset {str(path)!r}: {type(error).__name__}: {_one_line(error)}.",
            f"Give {_FORMATS}; without a network, a hub dataset must have been downloaded before.",
        ) from error
    splits = found if isinstance(found, datasets.DatasetDict) else {config.train_split: found}
    if part not in splits:
        raise DataError(f"The dataset {str(path)!r} has no split {part!r}.", suggest(part, list(map(str, splits))))
    rows: list[Any] = list(splits[part])
    return rows


def _tasks(rows: Sequence[Mapping[str, Any]], config: QuestionsConfig, *, source: str) -> list[Task]:
    if not rows:
        raise DataError(f"{source} has no question.", "It must hold at least one row.")
    tasks: list[Task] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        where = f"{source}, row {number}"
        question = cell(row, config.question, option="question", where=where)
        answer = cell(row, config.answer, option="answer", where=where)
        id_ = f"q{number:06d}" if config.id is None else str(cell(row, config.id, option="id", where=where))
        if seen.setdefault(id_, number) != number:
            raise DataError(f"{where} repeats the id {id_!r} of row {seen[id_]}.", "Ids must be unique.")
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{where}: the question is {_shown(question)}.", "It must be a text that is not empty.")
        tasks.append(Task(id_, question.strip(), answer=_golds(answer, where)))
    return tasks


def cell(row: Mapping[str, Any], column: str, *, option: str, where: str) -> Any:
    """Return a cell of a row; `a.b` looks into nested columns.

    Raises:
        DataError: There is no such column; it names `option`, which says what the column is called.
    """
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise DataError(
                f"{where} has no column {column!r}, only {', '.join(map(str, row)) or 'none'}.",
                f"{suggest(column, list(map(str, row)))} Set questions.{option}=COLUMN.",
            )
        value = value[name]
    return value


def _golds(answer: Any, where: str) -> tuple[str, ...]:
    golds = list(answer) if isinstance(answer, list | tuple) else [answer]
    if not golds:
        raise DataError(f"{where}: the list of answers is empty.", "Give at least one gold answer.")
    return tuple(_gold(gold, where) for gold in golds)


def _gold(gold: Any, where: str) -> str:
    # A year or a count is as often a number as a text.
    is_number = isinstance(gold, int | float) and not isinstance(gold, bool)
    if not (is_number or (isinstance(gold, str) and gold.strip())):
        raise DataError(f"{where}: the answer is {_shown(gold)}.", "It must be a text, a number or a list of them.")
    return str(gold).strip()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
