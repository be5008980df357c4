"""Search what devices sent for what must never leave them: values of private levels, and rows of pixels.

Rules:

* every byte offset is looked at, inside of single messages and across the parts of a streamed one;
* a pattern has eight bytes: one value as float64 or as text, two neighbouring ones as float32, four as float16 or
  bfloat16, eight neighbouring pixels as uint8 or two as float32. Masked values are random bytes, and there are some
  10 million of them: of eight-byte patterns none turns up by chance (below 1e-6 a run), of four-byte ones hundreds do;
* patterns that any message may hold (zeros, flat background) are left out;
* the same search is run on messages into which one leak of each form was planted: if it misses one, it proves nothing.

    >>> patterns = Patterns.of(private=[np.array([0.1234567, -0.7654321], np.float32)], pixels=[])
    >>> patterns.count_in([b"harmless", b"a leak: " + np.array([0.1234567, -0.7654321], "<f4").tobytes()])
    1
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

WINDOW_BYTES = 8
MIN_DISTINCT_BYTES = 4  # of a pattern of numbers; fewer are zeros, steps and paddings
MIN_DISTINCT_PIXELS, MIN_DISTINCT_ENLARGED = 6, 3  # of a pattern of pixels, which any message may hold more easily
PROBES = (3, 10, 17)  # where in a row of 28 pixels it is probed: the middle, where the thing in the picture is
_TABLE_BITS = 24
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # multiplicative hashing: 2**64 divided by the golden ratio, Knuth 6.4
_SEPARATOR = bytes.fromhex("5eaf1d9327c4b86a")  # between messages; no zeros, which would complete patterns
_STEP_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Form:
    """One way in which numbers may be written.

    Attributes:
        name: For people.
        cast: Values float32 [V] -> array [V] whose bytes are the form.
        per_window: Neighbours that make eight bytes.
    """

    name: str
    cast: Callable[[NDArray[np.float32]], NDArray[np.generic]]
    per_window: int

    def leak(self, values: NDArray[np.float32]) -> bytes:
        """Return values as a leak would hold them."""
        return self.cast(values).tobytes()

    def windows(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return each run of neighbours of float32 [V], uint8 [V - per_window + 1, 8]."""
        if len(values) < self.per_window:
            return np.zeros((0, WINDOW_BYTES), np.uint8)
        runs = np.lib.stride_tricks.sliding_window_view(self.cast(values), self.per_window)
        return np.ascontiguousarray(runs).view(np.uint8).reshape(len(runs), WINDOW_BYTES)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (values.astype("<f4").view("<u4") >> 16).astype(np.uint16)


NUMBERS = (
    Form("float32 little endian", lambda x: x.astype("<f4"), 2),
    Form("float32 big endian", lambda x: x.astype(">f4"), 2),
    Form("float16 little endian", lambda x: x.astype("<f2"), 4),
    Form("float16 big endian", lambda x: x.astype(">f2"), 4),
    Form("bfloat16 little endian", lambda x: _bfloat16(x).astype("<u2"), 4),
    Form("bfloat16 big endian", lambda x: _bfloat16(x).astype(">u2"), 4),
    Form("float64 little endian", lambda x: x.astype("<f8"), 1),
    Form("float64 big endian", lambda x: x.astype(">f8"), 1),
)
PIXELS = Form("pixels", lambda x: x.astype(np.uint8), 8)
PIXEL_NUMBERS = (
    Form("pixels as float32, 0 to 1", lambda x: (x / np.float32(255)).astype("<f4"), 2),
    Form("pixels as float32, 0 to 255", lambda x: x.astype("<f4"), 2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patterns:
    """What is searched for.

    Attributes:
        windows: uint64, shape [P], sorted, distinct: eight bytes each, little endian.
        num_values: Private values they stand for, zeros left out.
        num_rows: Rows of pixels they stand for, flat ones left out.
    """

    windows: NDArray[np.uint64]
    num_values: int
    num_rows: int

    @classmethod
    def of(cls, *, private: Iterable[NDArray[np.float32]], pixels: Iterable[NDArray[np.uint8]]) -> Self:
        """Make the patterns.

        Args:
            private: Values of private levels, float32 [V], neighbours as they lie in memory.
            pixels: Rows of pixels, uint8 [R, W], W at least 25.
        """
        found, num_values, num_rows = [np.zeros(0, np.uint64)], 0, 0
        for values in private:
            num_values += int(np.count_nonzero(values))
            found += [_telling(form.windows(values), MIN_DISTINCT_BYTES) for form in NUMBERS]
            found.append(_telling(_text(values), MIN_DISTINCT_BYTES))
        for rows in pixels:
            probed, num_telling = _probe(rows)
            num_rows += num_telling
            found += probed
        return cls(windows=_distinct(np.concatenate(found)), num_values=num_values, num_rows=num_rows)

    def count_in(self, messages: Sequence[bytes]) -> int:
        """Return at how many offsets of the messages a pattern stands. Equal messages are searched once."""
        text = _SEPARATOR.join(dict.fromkeys(messages))
        if not len(self.windows):
            return 0
        # A table of hashes lets all patterns and one in twenty others pass; only these are looked up.
        table = np.zeros(1 << _TABLE_BITS, np.bool_)
        table[_hash(self.windows)] = True
        num_found = 0
        for start in range(0, len(text) - WINDOW_BYTES + 1, _STEP_BYTES):
            part = text[start : start + _STEP_BYTES + WINDOW_BYTES - 1]
            windows = np.ndarray((len(part) - WINDOW_BYTES + 1,), np.dtype("<u8"), buffer=part, strides=(1,))
            passed = windows[table[_hash(windows)]]
            places = np.searchsorted(self.windows, passed).clip(max=len(self.windows) - 1)
            num_found += int(np.count_nonzero(self.windows[places] == passed))
        return num_found


def count_planted(message: bytes, *, private: NDArray[np.float32], row: NDArray[np.uint8]) -> tuple[int, int]:
    """Plant one leak of each form into a message and search for each.

    Args:
        message: Something that was really sent.
        private: Values of a private level, float32 [V], V >= 4, mostly not zero.
        row: A row of pixels that is not flat, uint8 [W].

    Returns:
        How many forms were found, and how many were planted.
    """
    leaks = [form.leak(private) for form in NUMBERS]
    leaks.append(" ".join(str(value) for value in private).encode())
    leaks += [form.leak(row.astype(np.float32)) for form in (PIXELS, *PIXEL_NUMBERS)]
    patterns = Patterns.of(private=[private], pixels=[row[None]])
    middle = len(message) // 2
    hits = [patterns.count_in([message[:middle] + leak + message[middle:]]) for leak in leaks]
    return sum(hit > 0 for hit in hits), len(leaks)


def telling_row(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the row, of uint8 [R, W], with the most different pixels."""
    return np.asarray(rows[np.argmax(_num_distinct(rows))])


def _text(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the point of each value and seven digits behind it, in both ways Python writes a float32, uint8 [D, 8].

    The point belongs to it: messages are full of hexadecimal digests, in which eight plain digits do turn up.
    """
    texts = {text.partition(".")[2][: WINDOW_BYTES - 1] for value in values for text in (str(value), str(float(value)))}
    found = sorted(f".{text}" for text in texts if len(text) == WINDOW_BYTES - 1 and text.isdigit())
    return np.frombuffer("".join(found).encode(), np.uint8).reshape(-1, WINDOW_BYTES)


def _probe(rows: NDArray[np.uint8]) -> tuple[list[NDArray[np.uint64]], int]:
    """Return the windows of rows uint8 [R, W] where they are probed, and how many rows have a telling one."""
    found, tells = [], np.zeros(len(rows), np.bool_)
    for at in PROBES:
        probe = np.ascontiguousarray(rows[:, at : at + WINDOW_BYTES])
        num_distinct = _num_distinct(probe)
        # Few different pixels are telling only where there is no background: enlarged pictures repeat their pixels.
        tell = (num_distinct >= MIN_DISTINCT_PIXELS) | ((num_distinct >= MIN_DISTINCT_ENLARGED) & probe.all(axis=1))
        tells |= tell
        found.append(_as_windows(probe[tell]))
        pairs = _distinct_pairs(probe[tell])
        for form in PIXEL_NUMBERS:
            windows = form.cast(pairs.astype(np.float32).reshape(-1)).view(np.uint8).reshape(-1, WINDOW_BYTES)
            found.append(_telling(windows, MIN_DISTINCT_BYTES))
    return found, int(np.count_nonzero(tells))


def _distinct_pairs(probe: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the neighbours in rows uint8 [R, 8] that differ, each pair once, uint8 [D, 2]."""
    seen = np.zeros(1 << 16, np.bool_)
    seen[probe[:, :-1].astype(np.int64).reshape(-1) * 256 + probe[:, 1:].reshape(-1)] = True
    pairs = np.flatnonzero(seen)
    pairs = pairs[pairs // 256 != pairs % 256]
    return np.stack([pairs // 256, pairs % 256], axis=1).astype(np.uint8)


def _telling(windows: NDArray[np.uint8], least: int) -> NDArray[np.uint64]:
    return _as_windows(windows[_num_distinct(windows) >= least])


def _as_windows(windows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(windows).view("<u8").reshape(-1).astype(np.uint64)


def _num_distinct(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the number of different bytes in each row."""
    ordered = np.sort(rows, axis=1)
    changes: NDArray[np.int64] = np.count_nonzero(ordered[:, 1:] != ordered[:, :-1], axis=1).astype(np.int64)
    return changes + 1


def _distinct(windows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return them sorted, each once. Not np.unique: its hash table takes 70 times as long on these (numpy 2.4)."""
    ordered = np.sort(windows)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def _hash(windows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.asarray((windows * _MULTIPLIER) >> np.uint64(64 - _TABLE_BITS))
