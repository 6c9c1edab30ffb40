"""The results of a bulk run: a CSV file, a line for each line that was sent, kept over interruptions."""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import IO, Final, Literal, Self

Outcome = Literal["granted", "rejected", "pending", "unknown", "error", "malformed"]
FINAL: Final = frozenset({"granted", "rejected"})
"""What a later run with the same results file does not ask again. A grant is final for ever. A rejection was the truth
of its moment: it is the answer of this file, and asked anew only where that is wished."""


class ResultsFileError(Exception):
    """The results file can't be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one line. `reason` is a rejection's or an error's; `replayed`: granted by an earlier attempt."""

    line: int
    promotion_id: str
    request_id: str
    outcome: Outcome
    reason: str = ""
    issuance_id: str = ""
    replayed: bool = False
    message: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.promotion_id, self.request_id


HEADER: Final = tuple(field.name for field in fields(Result))


class ResultsFile:
    """Appends results; correct after every `append`, whatever ends the process.

    Opening it keeps the final lines of an earlier run (`done`: outcomes by promotion id and request id) and drops
    the others and a torn last line, in one atomic replacement. One process at a time: the file is locked.
    """

    def __init__(self, path: Path, *, ask_rejected_again: bool = False) -> None:
        """Raises ResultsFileError and OSError."""
        self.path = path
        self.done: dict[tuple[str, str], Outcome] = {}
        self._asked_again = frozenset({"rejected"}) if ask_rejected_again else frozenset[str]()
        self._file = self._opened()
        self._writer = csv.writer(self._file, lineterminator="\n")

    def append(self, results: Iterable[Result]) -> None:
        """Writes them at once and hands them to the operating system."""
        self._writer.writerows(_row(result) for result in results)
        self._file.flush()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> IO[str]:
        before = self._locked(self.path)
        scratch = self._locked(self.path.with_name(f".{self.path.name}.new"))
        with before:
            scratch.truncate(0)
            writer = csv.writer(scratch, lineterminator="\n")
            writer.writerow(HEADER)
            for row in self._kept(before):
                writer.writerow(row)
            scratch.flush()
            os.fsync(scratch.fileno())
            os.replace(self.path.with_name(f".{self.path.name}.new"), self.path)
        return scratch

    def _locked(self, path: Path) -> IO[str]:
        file = path.open("a+", encoding="utf-8", newline="")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:  # replaced since we opened it
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            file.close()
            raise ResultsFileError(
                f"Another run is writing {self.path}. Wait for its end, or name another file with --results."
            ) from None
        file.seek(0)
        return file

    def _kept(self, file: IO[str]) -> Iterator[list[str]]:
        rows = csv.reader(_whole_lines(file))
        header = next(rows, None)
        if header is not None and tuple(header) != HEADER:
            raise ResultsFileError(
                f"{self.path} is no results file of this program: its first line should be {','.join(HEADER)}."
                " Name another file with --results."
            )
        for row in rows:
            if len(row) == len(HEADER) and row[3] in FINAL - self._asked_again:
                self.done[row[1], row[2]] = "granted" if row[3] == "granted" else "rejected"
                yield row


def _whole_lines(file: IO[str]) -> Iterator[str]:
    # What was being written when the process was killed has no end of line; no cell holds one.
    return (line for line in file if line.endswith("\n"))


def _row(result: Result) -> list[object]:
    line, promotion, request, outcome, reason, issuance, replayed, message = astuple(result)
    return [line, promotion, request, outcome, reason, issuance, str(replayed).lower(), " ".join(message.split())]
