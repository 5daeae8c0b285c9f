"""Splits: every frame on one side, the sizes asked for, the same draw everywhere, no leak of a geometry."""

import logging
from collections import Counter
from collections.abc import Hashable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.db import connect
from hypothesis import given, settings
from hypothesis import strategies as st

from physicsml_ase.conventions import InputError
from physicsml_ase.data.sources import Source, open_source
from physicsml_ase.data.splits import Split, geometry_hash, split_indices, split_source

SHARED = Path(__file__).parents[3] / "shared" / "data"


def make_source(count: int, copies: int = 1, groups: int = 1) -> Source:
    """`count` frames, every geometry `copies` times, config_type running through `groups` names."""
    frames = []
    for k in range(count):
        atoms = molecule("H2O")
        atoms.rattle(0.1, seed=k // copies)
        atoms.info["config_type"] = f"group{k % groups}"
        frames.append(atoms)
    return open_source(frames)


def check_split(split: Split, count: int) -> None:
    assert sorted(np.concatenate(split).tolist()) == list(range(count))
    assert all((np.diff(side) > 0).all() for side in split)
    assert len(split.train) > 0


def test_sizes() -> None:
    assert [len(side) for side in split_indices(100, fraction=0.1, seed=1)] == [90, 10, 0]
    assert [len(side) for side in split_indices(100, fraction=(0.1, 0.25), seed=1)] == [65, 10, 25]
    assert [len(side) for side in split_indices(100, number=7, seed=1)] == [93, 7, 0]
    assert [len(side) for side in split_indices(100, number=[7, 3], seed=1)] == [90, 7, 3]
    assert [len(side) for side in split_indices(5, fraction=0.1, seed=1)] == [4, 1, 0]
    assert [len(side) for side in split_indices(2, fraction=0.9, seed=1)] == [1, 1, 0]
    assert [len(side) for side in split_indices(2, fraction=(0.4, 0.4), seed=1)] == [1, 1, 0]
    assert [len(side) for side in split_indices(1, fraction=0.5, seed=1)] == [1, 0, 0]
    assert [len(side) for side in split_indices(1, number=5, seed=1)] == [1, 0, 0]


def test_the_draw_is_the_same_on_every_machine() -> None:
    split = split_indices(20, number=(4, 3), seed=0)
    assert split.validation.tolist() == [2, 3, 11, 13]
    assert split.test.tolist() == [1, 15, 18]
    assert split_indices(20, number=4, seed=1).validation.tolist() != [2, 3, 11, 13]


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"fraction": 0.1, "number": 3},
        {"fraction": 1.0},
        {"fraction": -0.1},
        {"fraction": (0.6, 0.5)},
        {"fraction": 0.0},
        {"number": 0},
        {"number": 2.5},
        {"number": 10},
        {"number": (5, 5)},
        {"number": (5, 5, 5)},
    ],
)
def test_senseless_requests(request_: dict[str, float]) -> None:
    with pytest.raises(InputError):
        split_indices(10, seed=0, **request_)
    with pytest.raises(InputError):
        split_source(make_source(10), **request_)


@settings(max_examples=200, deadline=None)
@given(
    groups=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    fraction=st.tuples(st.floats(0.01, 0.49), st.floats(0, 0.49)),
    seed=st.integers(0, 2**32),
)
def test_groups_stay_whole(groups: list[int], fraction: tuple[float, float], seed: int) -> None:
    count = len(groups)
    split = split_indices(count, fraction=fraction, groups=groups, seed=seed)
    check_split(split, count)
    sides = [{groups[i] for i in side} for side in split]
    assert sum(map(len, sides)) == len(set(groups))
    if len(set(groups)) > (2 if fraction[1] else 1):  # of two groups, training and test may take both
        assert len(split.validation) > 0


@settings(max_examples=200, deadline=None)
@given(
    strata=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 99),
)
def test_strata_are_met_in_proportion(strata: list[int], fraction: float, seed: int) -> None:
    count = len(strata)
    split = split_indices(count, fraction=fraction, strata=strata, seed=seed)
    check_split(split, count)
    drawn = Counter(strata[i] for i in split.validation)
    for stratum, size in Counter(strata).items():
        assert abs(drawn[stratum] - size * len(split.validation) / count) < 1


def test_source_sides_keep_their_places(caplog: pytest.LogCaptureFixture) -> None:
    source = make_source(50)
    with caplog.at_level(logging.INFO, "physicsml_ase"):
        train, validation, test, indices = split_source(source, fraction=0.2, seed=4)
    assert validation is not None
    assert test is None
    assert len(train) == 40
    assert validation.where(3) == source.where(int(indices.validation[3]))
    assert validation[3] is source[int(indices.validation[3])]
    assert "40 frames to train, 10 to validate, 0 to test" in caplog.text
    again = split_source(source, fraction=0.2, seed=4)
    assert again.train.content_hash() == train.content_hash()
    assert split_source(source, fraction=0.2, seed=5).train.content_hash() != train.content_hash()


def test_a_geometry_is_on_one_side_only(caplog: pytest.LogCaptureFixture) -> None:
    source = make_source(60, copies=3)
    with caplog.at_level(logging.INFO, "physicsml_ase"):
        train, validation, _, _ = split_source(source, number=12, seed=0)
    assert validation is not None
    assert len(validation) == 12
    assert not {geometry_hash(a) for a in train} & {geometry_hash(a) for a in validation}
    assert "40 repeated geometries stay with their like" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "physicsml_ase"):
        loose = split_source(source, number=12, seed=0, together=False)
    assert loose.validation is not None
    assert {geometry_hash(a) for a in loose.train} & {geometry_hash(a) for a in loose.validation}
    assert "repeated geometries may be on both sides" in caplog.text


def test_without_repetition_the_check_changes_nothing() -> None:
    source = make_source(30)
    sides = [split_source(source, number=5, seed=2, together=check).indices for check in (True, False)]
    assert sides[0].validation.tolist() == sides[1].validation.tolist()


def test_geometry_hash_sees_what_matters() -> None:
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[5, 5, 5])
    same = atoms.copy()
    same.positions[0, 0] = -1e-9
    assert geometry_hash(same) == geometry_hash(atoms)
    others = [atoms.copy() for _ in range(4)]
    others[0].positions[1, 2] += 0.01
    others[1].numbers[0] = 14
    others[2].pbc = True
    others[3].cell[2, 2] = 6
    assert geometry_hash(atoms) not in {geometry_hash(other) for other in others}


def test_by_group_and_in_proportion(tmp_path: Path) -> None:
    source = make_source(60, groups=6)
    _, validation, _, indices = split_source(source, fraction=0.2, group_key="config_type", seed=0)
    assert validation is not None
    assert len(validation) == 10  # the groups have ten frames each
    assert {i % 6 for i in indices.train}.isdisjoint({i % 6 for i in indices.validation})
    indices = split_source(source, number=12, group_key="config_type", stratify=True, seed=0).indices
    assert Counter(int(i) % 6 for i in indices.validation) == dict.fromkeys(range(6), 2)
    database = connect(tmp_path / "a.db")
    for k in range(10):
        database.write(source[k], kind=f"kind{k % 2}")
    rows = open_source(tmp_path / "a.db")
    assert len({int(i) % 2 for i in split_source(rows, number=5, group_key="kind").indices.train}) == 1


def test_what_is_alike_in_two_sources_is_on_one_side() -> None:
    """By its group, and by its geometry."""
    for key in ("config_type", None):
        sides: dict[Hashable, int] = {}
        both = [make_source(60, groups=12), make_source(24, groups=12)]
        splits = [split_source(x, fraction=0.25, group_key=key, sides=sides).indices for x in both]
        for split, source in zip(splits, both, strict=True):
            check_split(split, len(source))
        of = [geometry_hash if key is None else (lambda atoms: atoms.info["config_type"])][0]
        held, learned = (
            {of(x[int(k)]) for x, split in zip(both, splits, strict=True) for k in split[side]}
            for side in (1, 0)
        )
        assert held
        assert held.isdisjoint(learned)
    alike = split_source(make_source(8), number=4, sides=(sides := {})).indices
    left = make_source(8).subset(alike.validation)
    with pytest.raises(InputError, match="none is left to train on"):
        split_source(left, number=1, sides=sides)


def test_groups_that_are_not_there(caplog: pytest.LogCaptureFixture) -> None:
    source = make_source(10)
    with pytest.raises(
        InputError, match=r"no 'kind' in the frames of 10 Atoms; the first has .* config_type"
    ):
        split_source(source, fraction=0.2, group_key="kind")
    split = split_source(source, fraction=0.2, group_key="config_type")
    assert split.validation is not None
    assert "all 10 frames of 10 Atoms have the same config_type" in caplog.text
    del source[3].info["config_type"]
    split_source(source, fraction=0.2, group_key="config_type")
    assert "1 frames lack 'config_type' (first: structure 3)" in caplog.text


def test_one_frame_and_equal_frames(caplog: pytest.LogCaptureFixture) -> None:
    train, validation, test, _ = split_source(make_source(1), fraction=0.1)
    assert len(train) == 1
    assert validation is None
    assert test is None
    assert "single frame" in caplog.text
    caplog.clear()
    train, validation, _, _ = split_source(make_source(20, copies=20), fraction=0.1)
    assert validation is not None
    assert len(train) == 18
    assert "all 20 frames of 20 Atoms have the same geometry" in caplog.text


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the checkout")
def test_shared_sets_have_no_repetition_across_a_split() -> None:
    source = open_source(SHARED / "mlearn" / "Si" / "train.xyz")
    train, validation, _, indices = split_source(source, fraction=0.1, seed=0)
    check_split(indices, len(source))
    assert validation is not None
    assert not {geometry_hash(a) for a in train} & {geometry_hash(a) for a in validation}
