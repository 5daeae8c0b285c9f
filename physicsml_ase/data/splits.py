"""Train, validation and test sets from one source: at random, by groups, or in proportion of groups.

Frames are drawn in units that stay on one side: a frame, the frames of one geometry (so that no validation
frame was seen in training), or a whole group. The order of the draw comes from raw PCG64 output, which NumPy
promises to keep for ever and everywhere; its shuffles it may change.
"""

import hashlib
import logging
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources import Source

log = logging.getLogger("physicsml_ase")

Indices = NDArray[np.int64]

Amounts = float | Sequence[float]
"""How much to validation, or (validation, test)."""

AFFORDABLE = 20_000
"""Sources up to this length are searched for equal geometries by default, which reads every frame once."""

DECIMALS = 4  # of Å, to which two geometries are the same


class Split(NamedTuple):
    """Ascending frame indices of each side; validation and test may be empty, train is not."""

    train: Indices
    validation: Indices
    test: Indices


class SourceSplit(NamedTuple):
    """The sides of a source; None where a side is empty."""

    train: Source
    validation: Source | None
    test: Source | None
    indices: Split


def split_indices(
    count: int,
    *,
    fraction: Amounts | None = None,
    number: Amounts | None = None,
    groups: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Split:
    """Draw validation (and test, when two values are given) frames, by fraction or by number of frames.

    `groups` holds one value for each frame; frames of a group stay together, so sizes are met as nearly as
    the groups allow. `strata` holds one value for each frame; every stratum is drawn from in proportion.
    """
    wanted = _wanted(count, fraction, number)
    units = _units(groups, count)
    layers = np.zeros(count, dtype=np.int64) if strata is None else _units(strata, count)
    sizes = np.bincount(units)
    drawn = np.random.PCG64(seed).random_raw(len(sizes))
    rank = np.argsort(drawn, kind="stable")  # units in the order of the draw
    side = np.zeros(len(sizes), dtype=np.int64)  # of each unit: train 0, validation 1, test 2
    layer_of_unit = layers[np.unique(units, return_index=True)[1]]
    for layer, share in enumerate(_shares(wanted, np.bincount(layers))):
        left = share.tolist()  # frames to find for validation and test
        for unit in rank[layer_of_unit[rank] == layer].tolist():
            if not any(left):
                break
            k = next((k for k in range(2) if sizes[unit] <= left[k]), None)
            if k is not None:
                side[unit] = k + 1
                left[k] -= int(sizes[unit])
    for k, size in enumerate(wanted):
        if size and not (side == k + 1).any():  # every unit is larger than the side asked for
            _give_smallest(side, sizes, rank, k + 1)
    return Split(*(np.flatnonzero(side[units] == k) for k in range(3)))


def split_source(
    source: Source,
    *,
    fraction: Amounts | None = None,
    number: Amounts | None = None,
    group_key: str | None = None,
    stratify: bool = False,
    together: bool | None = None,
    seed: int = 0,
    sides: dict[Hashable, int] | None = None,
) -> SourceSplit:
    """Split a source at random and say how.

    `group_key` is a key of `Atoms.info` (or of a db row), such as config_type: its groups go to one side as
    a whole, or with `stratify` each is split in proportion. `together` keeps frames of one geometry on one
    side; None does so for sources of up to 20,000 frames. One frame gives no validation.

    `sides` is of other sources: on which side each of their groups or geometries is, which frames like them join;
    this source's are put into it.
    """
    count = len(source)
    _wanted(count, fraction, number)  # a wrong request is refused before the source is read
    if count < 2:
        log.warning("%s has a single frame: it is used for training, there is no validation set", source.name)
        empty = np.zeros(0, dtype=np.int64)
        return _apart(source, Split(np.arange(count), empty, empty))
    whole = group_key is not None and not stratify
    check = (count <= AFFORDABLE if together is None else together) and not whole
    groups: list[Hashable] = []
    geometries: list[Hashable] = []
    if group_key is not None or check:
        for atoms in source:
            groups.append(_group(atoms, group_key) if group_key else None)
            geometries.append(geometry_hash(atoms) if check else None)
    if group_key:
        _check_groups(source, group_key, groups)
    units = groups if whole else geometries if check else None
    if units and len(set(units)) == 1:
        same = group_key if whole else "geometry"
        log.warning("all %d frames of %s have the same %s: split at random", count, source.name, same)
        units = None
    strata = groups if group_key and stratify else None
    split = split_indices(count, fraction=fraction, number=number, groups=units, strata=strata, seed=seed)
    if units and sides is not None:
        split = _with_their_like(source, split, units, sides)
    how = f", by {group_key}" if whole else f", in proportion of {group_key}" if strata else ""
    if units and not whole:
        how += f"; {count - len(set(units))} repeated geometries stay with their like"
    elif not whole:
        how += "; repeated geometries may be on both sides"
    log.info(
        "%s: %d frames to train, %d to validate, %d to test, drawn at random (seed %d)%s",
        *(source.name, *(len(side) for side in split), seed, how),
    )
    return _apart(source, split)


def _with_their_like(
    source: Source, split: Split, units: Sequence[Hashable], sides: dict[Hashable, int]
) -> Split:
    """The split with the units that `sides` knows where it says; the others are put into it."""
    side = np.zeros(len(units), dtype=np.int64)
    for number, indices in enumerate(split):
        side[indices] = number
    for k, unit in enumerate(units):
        side[k] = sides.setdefault(unit, int(side[k]))
    if side.all():
        raise InputError(
            f"{source.name}: all of it is like what was set aside of other sources, and none is left to train "
            "on; leave it out, or give validation data"
        )
    return Split(*(np.flatnonzero(side == k) for k in range(3)))


def geometry_hash(atoms: Atoms) -> bytes:
    """The same for frames whose elements, positions, cell and periodicity agree to 1e-4 Å."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(atoms.numbers.astype("<i4").tobytes() + np.packbits(atoms.pbc).tobytes())
    for lengths in (atoms.positions, atoms.cell.array):
        digest.update((np.round(lengths, DECIMALS) + 0.0).astype("<f8").tobytes())  # + 0.0: no negative zero
    return digest.digest()


def _wanted(count: int, fraction: Amounts | None, number: Amounts | None) -> Indices:
    """Frames in validation and test, (2,)."""
    given = fraction if number is None else number
    if given is None or (fraction is not None and number is not None):
        raise InputError("a split needs either a fraction or a number of validation frames")
    pair = (given, 0) if isinstance(given, float | int) else tuple(given)
    if len(pair) != 2 or min(pair) < 0 or not any(pair):
        raise InputError(f"a split needs sizes for validation, or for validation and test, not {given}")
    if number is None:
        if sum(pair) >= 1:
            raise InputError(
                f"split fractions must sum to less than 1, not {given}; or give numbers of frames"
            )
        wanted = np.array([max(round(part * count), 1) if part else 0 for part in pair], dtype=np.int64)
    else:
        wanted = np.array(pair, dtype=np.int64)
        if (wanted != pair).any():
            raise InputError(f"numbers of frames must be integers, not {given}; or give fractions")
        if count > 1 and wanted.sum() >= count:
            raise InputError(f"a split of {wanted.sum()} frames off {count} leaves none to train on")
    while wanted.any() and wanted.sum() >= count:  # a few frames only: training has the first claim
        wanted[1 if wanted[1] else 0] -= 1
    return wanted


def _units(values: Sequence[Hashable] | None, count: int) -> Indices:
    """Values as integers by first appearance, (count,); without values every frame is its own unit."""
    if values is None:
        return np.arange(count)
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)


def _shares(wanted: Indices, layers: Indices) -> Indices:
    """`wanted` divided over strata of these sizes by largest remainders, (layers, 2)."""
    exact = wanted[None, :] * layers[:, None] / layers.sum()
    shares = np.floor(exact).astype(np.int64)
    for side in range(2):
        short = wanted[side] - shares[:, side].sum()
        first = np.argsort(shares[:, side] - exact[:, side], kind="stable")[:short]
        shares[first, side] += 1
    return shares


def _give_smallest(side: Indices, sizes: Indices, rank: Indices, to: int) -> None:
    """Give the smallest training unit to an empty side, unless training would be left without."""
    training = rank[side[rank] == 0]
    if len(training) > 1:
        side[training[np.argmin(sizes[training])]] = to


def _group(atoms: Atoms, key: str) -> Hashable:
    places = (atoms.info, atoms.info.get("key_value_pairs", {}), atoms.info.get("data", {}))
    return next((str(place[key]) for place in places if key in place), None)


def _check_groups(source: Source, key: str, groups: list[Hashable]) -> None:
    lacking = [i for i, group in enumerate(groups) if group is None]
    if len(lacking) == len(groups):
        keys = ", ".join(sorted(source[0].info)) or "none"
        raise InputError(f"no {key!r} in the frames of {source.name}; the first has the info keys {keys}")
    if lacking:
        log.warning(
            "%d frames lack %r (first: %s) and form a group of their own",
            *(len(lacking), key, source.where(lacking[0])),
        )


def _apart(source: Source, split: Split) -> SourceSplit:
    train, validation, test = (source.subset(side) if len(side) else None for side in split)
    assert train is not None
    return SourceSplit(train, validation, test, split)
