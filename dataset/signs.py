"""Signs that frames are bad or copies: for data sets of all kinds, on a few numbers per frame."""

import hashlib
import time

import numpy as np

from dataset.sequences import SPLITS

CONSTANT = "constant frame"
SAME_FRAMES = "same frames as another"
BLANK = "frames without echo"
BAD_FRAMES = "frames cannot be read"
UNFINISHED = "file cannot be read and changed less than a minute ago"
FRESH = 60  # seconds
DETAILS = 5  # frames that a detail names
TELLING = 20  # pixels with echo that tell a frame from all others


def is_fresh(changed: float | np.ndarray) -> bool | np.ndarray:
    """Whether files may still be half written; `changed` in seconds since 1970."""
    return abs(time.time() - changed) < FRESH


def digest_of(values: np.ndarray) -> int:
    """64 bits that tell the values of arrays apart; equal ones among a million are one in ten million archives."""
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(values), digest_size=8).digest(), "little")


def stuck(
    lowest: np.ndarray,  # value of each frame `(T,)`, NaN if it cannot be read
    highest: np.ndarray,
    quiet: float,  # highest value of a blank frame
    echo: float,  # least value that counts as weather
    joined: np.ndarray | bool = True,  # `(T - 1,)`: whether a frame follows the one before it without a gap
) -> tuple[np.ndarray, np.ndarray]:
    """Which frames are blank, and which of all are constant for no good reason; two bool `(T,)`.

    A blank frame is a quiet moment, unless it stands alone between two frames with echo: a drop-out. Every other frame
    whose pixels are all the same is at fault.
    """
    constant = lowest == highest
    blank = constant & (highest <= quiet)
    joined = np.broadcast_to(joined, max(0, len(lowest) - 1))
    lone = np.zeros_like(blank)
    between = joined[:-1] & joined[1:] & (highest[:-2] >= echo) & (highest[2:] >= echo)
    lone[1:-1] = blank[1:-1] & between
    return blank, (constant & ~blank) | lone


def copies(digests: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the items that equal another one, rising, and of the one that each of them equals and that stays.

    What stays is the first item of the latest split (`ranks`, from `rank_of`), so that scores stay comparable. Items
    whose digest is 0 are unlike all others.
    """
    order = np.lexsort((np.arange(len(digests)), -ranks, digests))
    begins = np.append(True, np.diff(digests[order]) != 0)[: len(order)]
    kept = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    copy = np.flatnonzero(~begins & (digests[order] != 0))
    copy = copy[np.argsort(order[copy])]
    return order[copy], kept[copy]


def rank_of(split: str) -> int:
    """Place of a split in time; 0 for none."""
    return ("", *SPLITS).index(split)


def list_frames(at_fault: np.ndarray) -> str:
    """Numbers of the frames that are True, the first of them."""
    numbers = np.flatnonzero(at_fault)
    more = f" and {len(numbers) - DETAILS} more" if len(numbers) > DETAILS else ""
    return f"frame {', '.join(map(str, numbers[:DETAILS]))}{more}"
