"""Neighbour lists against ASE's, and a Verlet list against fresh ones."""

import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from physicsml_ase.conventions import InputError
from physicsml_ase.neighbors import Neighbors, VerletList, neighbor_list

MASKS = [tuple(bool(m & (1 << k)) for k in range(3)) for m in range(8)]
ALL = (True, True, True)


def keyed(edges: Neighbors, positions, cell, cutoff) -> dict:
    """Every edge's vector by (i, j, shift), but for those on the very edge of the cut-off."""
    i, j = edges.edge_index
    r = positions[j] - positions[i] + edges.edge_shift @ cell
    keys = zip(i.tolist(), j.tolist(), *edges.edge_shift.astype(int).T.tolist())
    return {
        k: x for k, x, d in zip(keys, r, np.linalg.norm(r, axis=1), strict=True) if abs(d - cutoff) > 1e-9
    }


def assert_sound(edges: Neighbors) -> None:
    """Right types, sorted by centre, and `reverse` an involution onto the edge with the opposite shift."""
    (i, j), shift, reverse = edges
    assert edges.edge_index.dtype == reverse.dtype == np.int64
    assert shift.dtype == np.float64
    assert shift.shape == (len(i), 3)
    assert (np.diff(i) >= 0).all()
    assert (reverse[reverse] == np.arange(len(i))).all()
    assert (i[reverse] == j).all()
    assert (shift[reverse] == -shift).all()
    assert not np.signbit(shift[shift == 0]).any()


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_allclose(a[key], b[key], atol=1e-9)


def reference(positions, cell, pbc, cutoff) -> dict:
    """ASE's list, in a cell whose non-periodic vectors are made independent of the others."""
    full = cell.copy()
    for k in np.flatnonzero(~np.array(pbc)):
        others = full[[x for x in range(3) if x != k and (pbc[x] or x < k)]]
        full[k] = np.linalg.svd(np.vstack([others, np.zeros((3, 3))]))[2][-1]
    i, j, shift = primitive_neighbor_list("ijS", pbc, full, positions, cutoff, self_interaction=False)
    shift = shift.astype(float)
    return keyed(Neighbors(np.stack([i, j]), shift, i), positions, full, cutoff)


def random_cell(rng, low: float, high: float) -> np.ndarray:
    """Triclinic cells of either handedness, their faces at least `low` apart."""
    while True:
        cell = rng.normal(size=(3, 3)) * rng.uniform(low, high)
        if (1 / np.linalg.norm(np.linalg.inv(cell), axis=0)).min() > low:
            return cell


@pytest.mark.parametrize("pbc", MASKS)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 8), spread=st.floats(1, 40), tiny=st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_equals_ase(pbc, seed, n, spread, tiny):
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, 1.0, 3.0) if tiny else random_cell(rng, 3.0, 12.0)
    positions = rng.normal(size=(n, 3)) * spread  # spread over several cells: not wrapped
    cutoff = rng.uniform(2, 5)
    edges = neighbor_list(positions, cell, pbc, cutoff)
    assert_sound(edges)
    assert_same(keyed(edges, positions, cell, cutoff), reference(positions, cell, pbc, cutoff))


def test_a_cell_vector_that_is_not_periodic_is_ignored():
    rng = np.random.default_rng(0)
    positions = rng.random((20, 3)) * 8
    cell = np.array([[6.0, 1, 2], [-1, 7, 1], [0, 0, 15]])
    expected = neighbor_list(positions, cell, (True, True, False), 4.0)
    for c in ([0, 0, 0], [1e9, 2, 3], [6.0, 1, 2], [np.nan] * 3):
        cell[2] = c
        for got, want in zip(neighbor_list(positions, cell, (True, True, False), 4.0), expected):
            np.testing.assert_array_equal(got, want)


def test_wire_along_another_axis_than_its_cell_vector():
    cell = np.zeros((3, 3))
    cell[0] = [0, 0, 3.0]
    edges = neighbor_list(np.array([[0, 0, 0.1], [0, 0, 1.6]]), cell, (True, False, False), 2.0)
    assert sorted(edges.edge_shift[:, 0].tolist()) == [-1, 0, 0, 1]


@pytest.mark.parametrize("shear", [3, 100, 10_000])
def test_sheared_cell_has_the_same_edges(shear):  # vesin 0.6.2: 3 s at 100, hangs at 1,000, wrong at 100,000
    rng = np.random.default_rng(0)
    positions, cell = rng.random((4, 3)) * 4, np.eye(3) * 4
    plain = neighbor_list(positions, cell, ALL, 6.0)
    sheared = neighbor_list(positions, np.array([[1, 0, 0], [shear, 1, 0], [0, shear, 1]]) @ cell, ALL, 6.0)
    assert_sound(sheared)
    operation = np.array([[1, 0, 0], [shear, 1, 0], [0, shear, 1]])
    shifts = {tuple(s) for s in (sheared.edge_shift @ operation).tolist()}
    assert shifts == {tuple(s) for s in plain.edge_shift.tolist()}
    assert sheared.edge_index.shape == plain.edge_index.shape


@pytest.mark.parametrize("pbc", [mask for mask in MASKS if mask != ALL])
def test_atoms_far_apart(pbc):
    # vesin 0.6.2 hangs, or divides by zero and takes the process with it
    rng = np.random.default_rng(1)
    cell = np.eye(3) * 10
    positions = np.concatenate([rng.random((20, 3)) * 10, rng.random((20, 3)) * 10])
    near = neighbor_list(positions[:20], cell, pbc, 5.0), neighbor_list(positions[20:], cell, pbc, 5.0)
    positions[20:] += np.where(pbc, 0.0, [123456.0, -98765.0, 1e6])
    edges = neighbor_list(positions, cell, pbc, 5.0)
    assert_sound(edges)
    assert len(edges.reverse) == len(near[0].reverse) + len(near[1].reverse)


def test_images_of_one_atom():
    edges = neighbor_list(np.zeros((1, 3)), np.eye(3) * 3, ALL, 3.1)
    assert_sound(edges)
    assert len(edges.reverse) == 6


def test_self_interaction_is_an_edge_of_its_own_reverse():
    positions = np.array([[0.0, 0, 0], [1, 0, 0], [9, 0, 0]])
    edges = neighbor_list(positions, np.zeros((3, 3)), (False,) * 3, 2.0, self_interaction=True)
    assert_sound(edges)
    assert edges.edge_index.tolist() == [[0, 0, 1, 1, 2], [1, 0, 0, 1, 2]]
    own = edges.edge_index[0] == edges.edge_index[1]
    assert (edges.reverse[own] == np.flatnonzero(own)).all()


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("self_interaction", [False, True])
def test_no_edges(n, self_interaction):
    positions = np.arange(3 * n, dtype=float).reshape(n, 3) * 10
    for edges in (
        neighbor_list(positions, np.zeros((3, 3)), (False,) * 3, 2.0, self_interaction),
        VerletList(2.0, 0.5, self_interaction).update(positions, np.zeros((3, 3)), (False,) * 3),
    ):
        assert_sound(edges)
        assert edges.edge_index.shape == (2, n * self_interaction)


SQUARE = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (np.zeros((3, 3)), ALL),
        (np.diag([4.0, 4, 0]), ALL),
        ([[4.0, 0, 0], [0, 4, 0], [4, 4, 0]], ALL),
        ([[4.0, 0, 0], [8, 0, 0], [0, 0, 4]], (True, True, False)),
        (np.zeros((3, 3)), (True, False, False)),
    ],
)
def test_singular_cell(cell, pbc):
    with pytest.raises(InputError, match="cell is singular along its periodic directions"):
        neighbor_list(SQUARE, cell, pbc, 5.0)


@pytest.mark.parametrize("thickness", [0.01, 1e-4, 1e-8])
def test_absurdly_thin_cell(thickness):
    with pytest.raises(InputError, match=r"too many neighbours within 6 Å.*is the cell right"):
        neighbor_list(SQUARE, np.diag([4, 4, thickness]), ALL, 6.0)


def test_everything_in_one_place():
    positions = np.random.default_rng(0).random((20_000, 3))
    with pytest.raises(InputError, match="too many neighbours"):
        neighbor_list(positions, np.zeros((3, 3)), (False,) * 3, 6.0)


@pytest.mark.parametrize(
    ("value", "why"), [(np.nan, "is not finite"), (np.inf, "is not finite"), (1e9, "is too far")]
)
def test_bad_position_names_the_atom(value, why):
    positions = SQUARE.copy()
    positions[2, 1] = value
    with pytest.raises(InputError, match=f"position of atom 2 {why}"):
        neighbor_list(positions, np.eye(3) * 9, ALL, 5.0)


def test_cell_that_is_not_finite():
    with pytest.raises(InputError, match="cell is not finite"):
        neighbor_list(SQUARE, np.diag([4.0, np.nan, 4]), ALL, 5.0)


@pytest.mark.parametrize("skin", [None, 0.0, 0.5])
def test_coincident_atoms(skin):
    def edges(positions):
        if skin is None:
            return neighbor_list(positions, np.eye(3) * 9, ALL, 5.0)
        verlet = VerletList(5.0, skin)
        verlet.update(SQUARE * 1.3, np.eye(3) * 9, ALL)
        for t in (0.5, 0.8, 0.9):  # nearer and nearer, within the skin for some of the way
            verlet.update((1 - t) * SQUARE * 1.3 + t * positions, np.eye(3) * 9, ALL)
        return verlet.update(positions, np.eye(3) * 9, ALL)

    together = SQUARE * 1.3
    together[1] = together[2]
    with pytest.raises(InputError, match=r"atoms 1 and 2 coincide \(distance 0.000 Å\)"):
        edges(together)
    together[1, 0] += 9
    with pytest.raises(InputError, match=r"atoms 1 and 2 .*periodic boundary.* coincide"):
        edges(together)


def test_coincidence_is_seen_within_the_skin():
    verlet = VerletList(5.0, 2.0)
    positions = np.array([[0.0, 0, 0], [0.5, 0, 0]])
    verlet.update(positions, np.zeros((3, 3)), (False,) * 3)
    with pytest.raises(InputError, match="coincide"):
        verlet.update(np.zeros((2, 3)), np.zeros((3, 3)), (False,) * 3)
    assert verlet.rebuilds == 1


def assert_equals_fresh(verlet: VerletList, positions, cell, pbc) -> None:
    edges = verlet.update(positions, cell, pbc)
    assert_sound(edges)
    fresh = neighbor_list(positions, cell, pbc, verlet.cutoff, verlet.self_interaction)
    used = np.where(np.array(pbc)[:, None], cell, 0.0)
    assert_same(keyed(edges, positions, used, verlet.cutoff), keyed(fresh, positions, used, verlet.cutoff))


@pytest.mark.parametrize("pbc", MASKS)
@pytest.mark.parametrize("skin", [0.0, 0.6])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None, derandomize=True, database=None)
def test_verlet_list_equals_fresh_ones(pbc, skin, seed):
    rng = np.random.default_rng(seed)
    cell = random_cell(rng, 3.0, 8.0)
    positions = rng.random((9, 3)) @ cell * 1.5
    verlet = VerletList(4.0, skin, self_interaction=bool(seed % 2))
    for step in range(30):
        positions = positions + rng.normal(size=positions.shape) * rng.choice([0.01, 0.05])
        positions += [0.3, 0.1, -0.2]  # a drift alone moves no atom against another
        match step % 10:
            case 2 | 3 | 4:  # strain, shear and rotation, atoms along or not
                change = np.eye(3) + rng.normal(size=(3, 3)) * 0.02
                cell = cell @ change
                positions = positions @ change if step % 3 else positions
            case 5:  # one atom is wrapped
                positions[step % len(positions)] += rng.integers(-2, 3, 3) @ cell
            case 7:
                positions = np.vstack([positions, rng.random((1, 3)) @ cell])
            case 8:
                positions = positions[1:]
            case 9:
                pbc = tuple(np.roll(pbc, 1))
        assert_equals_fresh(verlet, positions, cell, pbc)
    assert verlet.rebuilds == 30 if skin == 0 else verlet.rebuilds < 30


def test_verlet_list_is_rebuilt_seldom_and_uses_the_whole_skin():
    crystal = bulk("Si", cubic=True) * (2, 2, 2)
    cell, pbc, x = crystal.cell.array, crystal.pbc, crystal.positions
    verlet = VerletList(5.0, 0.5)
    direction = np.random.default_rng(0).normal(size=x.shape)
    direction /= np.linalg.norm(direction - direction.mean(0), axis=1).max()
    for distance in (0.0, 0.1, 0.2, 0.249):
        assert_equals_fresh(verlet, x + distance * direction + distance * 100, cell, pbc)
    assert verlet.rebuilds == 1
    assert_equals_fresh(verlet, x + 0.251 * direction, cell, pbc)
    assert verlet.rebuilds == 2


def test_scaled_or_rotated_crystal_keeps_its_list():
    crystal = bulk("Si", cubic=True) * (2, 2, 2)
    verlet = VerletList(5.0, 0.5)
    verlet.update(crystal.positions, crystal.cell.array, crystal.pbc)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    for change in (np.eye(3) * 0.95, np.eye(3) * 1.2, turn):
        assert_equals_fresh(verlet, crystal.positions @ change, crystal.cell.array @ change, crystal.pbc)
    assert verlet.rebuilds == 1


def test_returned_list_is_not_touched_later():
    crystal = bulk("Si", cubic=True)
    verlet = VerletList(3.0, 0.5)
    first = verlet.update(crystal.positions, crystal.cell.array, crystal.pbc)
    copies = [part.copy() for part in first]
    moved = crystal.positions + np.random.default_rng(0).normal(size=crystal.positions.shape) * 0.08
    verlet.update(moved, crystal.cell.array * 1.01, crystal.pbc)
    for part, copy in zip(first, copies):
        np.testing.assert_array_equal(part, copy)


def test_origin_in_a_smaller_cell():
    """Atoms that the list left out by a hair are nearer there: less room is left until they are neighbours."""
    cell, positions = np.eye(3) * 20, np.array([[0.0, 0, 0], [5.001, 0, 0]])
    verlet = VerletList(4.0, 1.0)
    kept = verlet.update(positions, cell, ALL, whole=100)
    assert len(kept.reverse) == 0
    same = verlet.origin(kept, cell)
    assert same is not None
    assert same.room == 1.0
    smaller = verlet.origin(kept, cell * 0.9)
    assert smaller is not None
    np.testing.assert_allclose(smaller.positions, positions * 0.9)
    assert smaller.room == pytest.approx(0.9 * 5 - 4)
    assert verlet.origin(kept, cell * 0.8) is None
    other = neighbor_list(positions, cell, ALL, 5.0)
    assert verlet.origin(other, cell) is None


def test_few_atoms_without_periodicity_keep_one_list():
    rng, positions = np.random.default_rng(0), np.random.default_rng(1).random((12, 3)) * 6
    verlet, none = VerletList(4.0, 0.5, self_interaction=True), (False,) * 3
    for step in range(20):
        positions = positions + rng.normal(size=positions.shape) * step
        whole = verlet.update(positions, np.zeros((3, 3)), none, whole=150)
        assert_sound(whole)
        assert len(whole.reverse) == 12 * 11 + 12
        assert_equals_fresh(verlet, positions, np.zeros((3, 3)), none)
    assert verlet.rebuilds == 1
    verlet = VerletList(4.0, 0.5)
    assert len(verlet.update(positions, np.zeros((3, 3)), none, whole=143).reverse) < 12 * 11
