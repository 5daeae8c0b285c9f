"""Known answers: reference energies, scales, outliers, counts."""

import logging

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from frames_for_tests import LABELS, molecules, source_of, with_labels

from physicsml_ase.conventions import InputError, Label
from physicsml_ase.data.frames import Recipe, chunks
from physicsml_ase.data.outliers import find_outliers, residual_energy
from physicsml_ase.data.references import Wanted, reference_energies
from physicsml_ase.data.statistics import Statistics, resolve_domain
from physicsml_ase.data.survey import Moments, Survey

ALONE = {1: -13.6, 6: -1029.5, 8: -2041.0}
REFERENCE = {"H": -13.6, "C": -1029.5, "O": -2041.0}


def surveyed(frames: list[Atoms], recipe: Recipe) -> Survey:
    survey = Survey(recipe.labels, recipe.self_interaction)
    source = source_of(frames)
    watch = survey.watch(source)
    for part in chunks(source, recipe):
        watch(part)
    return survey


def resolved(frames: list[Atoms], wanted: Wanted = None, labels=LABELS, **settings: object) -> Statistics:
    recipe = Recipe(cutoff=4.0, labels=labels, **settings)
    return resolve_domain(surveyed(frames, recipe), recipe, wanted)


def relabelled(count: int = 40, noise: float = 0.0, force: float = 1.5) -> list[Atoms]:
    """CHO molecules whose energy is the sum of ALONE and a little noise per atom."""
    rng = np.random.default_rng(1)
    frames = []
    for atoms in [a for a in molecules(2 * count) if 7 not in a.numbers][:count]:
        energy = sum(ALONE[z] for z in atoms.numbers) + noise * len(atoms) * rng.normal()
        forces = force * rng.normal(size=(len(atoms), 3))
        frames.append(with_labels(atoms, energy=energy, forces=forces))
    return frames


def bound(frames: list[Atoms]) -> list[Atoms]:
    """The same with 4.5 eV less for each atom."""
    for atoms in frames:
        atoms.calc.results["energy"] -= 4.5 * len(atoms)
    return frames


def lone(symbol: str, energy: float) -> Atoms:
    return with_labels(Atoms(symbol), energy=energy, forces=np.zeros((1, 3)))


def test_least_squares_find_the_energies_that_made_the_data() -> None:
    statistics = resolved(relabelled())
    assert statistics.reference_method == "by least squares over 40 structures"
    assert statistics.domain.atomic_energies == pytest.approx(ALONE, abs=1e-6)
    assert statistics.domain.elements == (1, 6, 8)


@pytest.mark.parametrize("unit", [1 / 27.2114, 0.0, 1000.0])
def test_a_few_frames_in_another_unit_change_nothing(unit: float, caplog: pytest.LogCaptureFixture) -> None:
    frames = relabelled(noise=0.01)
    clean = resolved(frames[:11] + frames[12:]).domain
    frames[11].calc.results["energy"] *= unit
    caplog.clear()
    ruined = resolved(frames).domain
    assert ruined.atomic_energies == pytest.approx(clean.atomic_energies, abs=1e-9)
    assert "1 with an energy far from the others (another unit?): structure 11: " in caplog.text
    assert ruined.energy_scale == pytest.approx(clean.energy_scale, rel=0.1)


def test_one_composition_is_shared_out_evenly_and_exactly(caplog: pytest.LogCaptureFixture) -> None:
    water = [a for a in relabelled() if len(a) == 3]
    domain, how, _ = resolved(water)
    assert "comparable only within these compositions; give reference_energies" in caplog.text
    assert how.endswith("whose compositions do not tell the elements' energies apart")
    assert list(domain.atomic_energies.values()) == pytest.approx([(2 * ALONE[1] + ALONE[8]) / 3] * 2)


def test_frames_that_are_all_the_same_give_finite_scales() -> None:
    atoms = with_labels(Atoms("HO", [[0, 0, 0], [0, 0, 1]]), energy=-7.0, forces=np.zeros((2, 3)))
    domain = resolved([atoms] * 5).domain
    assert domain.energy_scale == 1.0
    assert sum(domain.atomic_energies.values()) == pytest.approx(-7.0)


def test_constants_that_are_no_round_number_have_a_scale_of_one() -> None:
    frames = molecules(40)
    for atoms in frames:
        atoms.info |= {"pressure": 0.1, "gap": 0.1}
    gap = Label("gap", "structure", (), "gap")
    domain = resolved(frames, labels=(*LABELS, gap), attrs=("pressure",)).domain
    assert domain.attr_scales == (1.0,)
    assert domain.label_scales["gap"] == 1.0


def test_isolated_atoms_of_every_element_are_the_reference() -> None:
    frames = [*relabelled(noise=0.3), lone("H", -13.0), lone("C", -1000.0), lone("O", -2000.0)]
    statistics = resolved(frames)
    assert statistics.domain.atomic_energies == {1: -13.0, 6: -1000.0, 8: -2000.0}
    assert statistics.reference_method == "from isolated atoms in the data"
    assert resolved(frames, "least_squares").domain.atomic_energies == pytest.approx(ALONE, abs=3)


def test_isolated_atoms_of_some_elements_are_theirs_and_the_others_are_fitted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    frames = [*relabelled(noise=0.01), lone("H", -13.0), lone("O", -2040.0)]
    domain, how, _ = resolved(frames)
    assert how == "of H, O from isolated atoms in the data, of the others by least squares over 30 structures"
    assert domain.atomic_energies == pytest.approx({1: -13.0, 6: -1032.0, 8: -2040.0}, abs=0.2)
    assert (domain.atomic_energies[1], domain.atomic_energies[8]) == (-13.0, -2040.0)
    assert list(domain.atomic_energies) == [1, 6, 8]
    with pytest.raises(InputError, match="no isolated C with an energy"):
        resolved(frames, "isolated_atoms")
    assert resolved(frames, "least_squares").domain.atomic_energies == pytest.approx(ALONE, abs=0.5)
    assert "comparable" not in caplog.text


def test_an_isolated_atom_tells_the_elements_of_one_composition_apart() -> None:
    water = [a for a in relabelled() if len(a) == 3]
    domain, how, _ = resolved([*water, lone("H", ALONE[1])])
    assert domain.atomic_energies == pytest.approx({1: ALONE[1], 8: ALONE[8]})
    assert "apart" not in how


def test_an_element_without_any_energy_has_none_to_fit() -> None:
    frames = [lone("H", -13.6), with_labels(Atoms("OO", [[0, 0, 0], [0, 0, 1.2]]), forces=np.zeros((2, 3)))]
    domain, how, _ = resolved(frames)
    assert domain.atomic_energies == {1: -13.6, 8: 0.0}
    assert how == "of H from isolated atoms in the data, of the others zero, for want of energies"


@pytest.mark.parametrize("symbol", ["H", "C", "O"])
@pytest.mark.parametrize("others", [True, False])
@pytest.mark.parametrize("factor", [0.0, 1 / 27.2114])
def test_a_wrong_isolated_atom_is_warned_of(
    symbol: str, others: bool, factor: float, caplog: pytest.LogCaptureFixture
) -> None:
    frames = bound(relabelled(noise=0.05))
    alone = [
        lone(s, e * (factor if s == symbol else 1)) for s, e in REFERENCE.items() if others or s == symbol
    ]
    resolved([*frames, *alone])
    (said,) = [m for m in caplog.messages if "isolated atoms (" in m]
    place = f"structure {len(frames) + [a.symbols[0] for a in alone].index(symbol)}"
    assert said.startswith(f"isolated atoms ({symbol} {0 + factor * REFERENCE[symbol]:.6g} eV; {place}): in ")
    assert "set reference_energies=least_squares" in said
    for wanted in ("least_squares", REFERENCE):
        caplog.clear()
        resolved([*frames, *alone], wanted)
        assert "isolated atoms (" not in caplog.text


def test_where_compositions_do_not_tell_isolated_atoms_are_judged_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    water = [a for a in bound(relabelled()) if len(a) == 3]
    resolved([*water, lone("H", ALONE[1]), lone("O", ALONE[8])])
    resolved([*water, lone("O", 0.0)])  # what hydrogen has is open
    assert "isolated atoms (" not in caplog.text
    resolved([*water, lone("H", ALONE[1]), lone("O", 0.0)])
    assert f"isolated atoms (H -13.6 eV, O 0 eV; structure {len(water)}, ...): in structures" in caplog.text


def test_right_isolated_atoms_are_not_doubted(caplog: pytest.LogCaptureFixture) -> None:
    frames = bound(relabelled(noise=0.3))
    for some in (REFERENCE, {"H": -13.6}, {"C": -1029.5, "O": -2041.0}):
        resolved([*frames, *(lone(symbol, energy) for symbol, energy in some.items())])
    assert "isolated atoms (" not in caplog.text


def test_isolated_atoms_do_not_enter_scales() -> None:
    frames = relabelled()
    lonely = [lone("H", -13.6)] * 40
    with_them, without = resolved(frames + lonely, REFERENCE).domain, resolved(frames, REFERENCE).domain
    assert with_them.energy_scale == without.energy_scale
    assert with_them.avg_num_neighbors == without.avg_num_neighbors


def test_an_atom_alone_in_a_small_periodic_cell_is_not_isolated() -> None:
    crystal = with_labels(bulk("Cu"), energy=-3.7, forces=np.zeros((1, 3)))
    domain = resolved([crystal]).domain
    assert domain.avg_num_neighbors == 18  # two shells of fcc within 4 Å


def test_given_energies_are_taken_and_must_be_complete() -> None:
    assert resolved(relabelled(), REFERENCE).domain.atomic_energies == ALONE
    with pytest.raises(InputError, match="no energy is given for O"):
        resolved(relabelled(), {"H": 0.0, "C": 0.0})
    with pytest.raises(InputError, match="'Q' is no chemical element"):
        resolved(relabelled(), {"Q": 0.0})


def test_only_isolated_atoms_teach_nothing() -> None:
    with pytest.raises(InputError, match="nothing to learn"):
        resolved([lone("H", -13.6), lone("O", -2000.0)])


def test_atoms_out_of_reach_are_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    far = with_labels(Atoms("CO", [[0, 0, 0], [30, 0, 0]]), energy=-5.0, forces=np.zeros((2, 3)))
    domain = resolved([far]).domain
    assert domain.avg_num_neighbors == 1.0
    assert "no atom has a neighbour" in caplog.text


def test_a_longer_cut_off_is_not_asked_for_where_all_atoms_are_neighbours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Three of a molecule of four, within 4 Å; but of a long chain there are more."""
    chain = [with_labels(Atoms("C12", [[1.5 * k, 0, 0] for k in range(12)]), energy=-5.0)]
    few = [with_labels(Atoms("C4", chain[0].positions[:4] / 2), energy=-5.0)]
    with caplog.at_level(logging.INFO, "physicsml_ase"):
        resolved(few)
        assert "datamodule.cut_off=" not in caplog.text
        resolved(chain)
        assert "neighbours is few" in caplog.text


def test_the_scale_is_the_force_component_s_rms() -> None:
    forces = np.concatenate([a.calc.results["forces"].ravel() for a in relabelled(force=2.0)])
    per_structure = [np.mean(a.calc.results["forces"] ** 2) for a in relabelled(force=2.0)]
    scale = resolved(relabelled(force=2.0)).domain.energy_scale
    assert scale == pytest.approx(np.sqrt(np.mean(per_structure)))
    assert scale == pytest.approx(np.sqrt(np.mean(forces**2)), rel=0.05)


def test_without_forces_the_scale_is_the_spread_of_energies() -> None:
    frames = [with_labels(a, energy=a.calc.results["energy"]) for a in relabelled(400, noise=0.25)]
    assert resolved(frames, labels=LABELS[:1]).domain.energy_scale == pytest.approx(0.25, rel=0.1)


def test_an_extreme_force_is_named_and_does_not_count(caplog: pytest.LogCaptureFixture) -> None:
    frames = relabelled()
    clean = resolved(frames[:5] + frames[6:]).domain.energy_scale
    frames[5].calc.results["forces"][0] = [0, 0, 1e6]
    domain = resolved(frames).domain
    assert domain.energy_scale == pytest.approx(clean)
    assert domain.label_scales["forces"] == pytest.approx(clean)
    assert "structure 5: 1e+06 eV/Å" in caplog.text


def test_relaxed_structures_among_others_are_no_outliers(caplog: pytest.LogCaptureFixture) -> None:
    resolved([*relabelled(10, force=1e-6), *relabelled(10, force=2.0)])
    resolved([*relabelled(30, force=1e-3), *relabelled(2, force=3.0)])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_labels_are_counted_where_they_are_there_in_part() -> None:
    frames = molecules(12)
    for k in (0, 3, 6):
        del frames[k].calc.results["energy"]
    frames[1].calc.results["forces"][0, 0] = np.nan
    frames[2].calc.results["forces"][:] = np.nan
    survey = surveyed(frames, Recipe(cutoff=4.0, labels=LABELS, non_finite="missing"))
    assert survey.present == {"energy": 9, "forces": 11, "stress": 0}


def test_labels_of_heads_and_attributes_are_scaled_by_their_own_numbers() -> None:
    frames = molecules(30)
    rng = np.random.default_rng(0)
    gaps, fields = 5.0 + 0.1 * rng.normal(size=30), rng.normal(size=(30, 2)) * [1.0, 4.0] + 7.0
    for atoms, gap, field in zip(frames, gaps, fields):
        atoms.info |= {"gap": gap, "field": field, "dipole": [3.0, 0.0, 0.0]}
    labels = (*LABELS[:2], Label("gap", "structure", (), "gap"), Label("dipole", "structure", (3,), "dipole"))
    domain = resolved(frames, labels=labels, attrs=("field",)).domain
    assert domain.label_shifts["gap"] == pytest.approx(gaps.mean())
    assert domain.label_scales["gap"] == pytest.approx(gaps.std())
    assert domain.label_scales["dipole"] == pytest.approx(np.sqrt(3.0))
    assert domain.attr_shifts == pytest.approx(fields.mean(0))
    assert domain.attr_scales == pytest.approx(fields.std(0))


def test_a_later_set_is_judged_by_the_training_set(caplog: pytest.LogCaptureFixture) -> None:
    statistics = resolved(relabelled())
    recipe = Recipe(cutoff=4.0, labels=LABELS)
    one = relabelled(1)
    one[0].calc.results["energy"] /= 27.2
    survey = surveyed(one, recipe)
    found = find_outliers(
        survey, residual_energy(survey, statistics.domain.atomic_energies), statistics.limits
    )
    assert found.energy.tolist() == [True]
    assert "structure 0" in caplog.text


def test_a_structure_of_the_three_hundredth_source_is_named() -> None:
    survey = Survey(LABELS)
    flat = next(iter(chunks(source_of(relabelled(1)), Recipe(cutoff=4.0, labels=LABELS))))
    for _ in range(300):
        survey.watch(source_of(relabelled(1)))(flat)
    assert survey.column("source").tolist() == list(range(300))


def test_moments_of_parts_are_those_of_the_whole() -> None:
    values = 1e6 + np.random.default_rng(0).normal(size=(1000, 2))
    moments = Moments()
    for part in np.split(values, [1, 1, 400]):
        moments.add(part)
    assert moments.count == 1000
    assert moments.mean == pytest.approx(values.mean(0), rel=1e-14)
    assert moments.deviation == pytest.approx(values.var(0), rel=1e-9)


def test_many_structures_are_thinned_and_still_fitted() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (120_000, 3)).astype(float)
    counts[:, 0] += 1
    energy = counts @ np.array([-1.0, -20.0, -300.0])
    energy[rng.random(len(energy)) < 0.05] *= 27.2
    found = reference_energies((1, 6, 8), counts, energy, np.zeros(len(energy), bool))
    assert found.energies == pytest.approx({1: -1.0, 6: -20.0, 8: -300.0}, abs=1e-6)


def test_what_is_decided_is_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "physicsml_ase"):
        resolved(relabelled())
    assert "reference energies by least squares over 40 structures: H -13.6 eV, C -1029.5 eV" in caplog.text
    assert "elements H, C, O" in caplog.text
