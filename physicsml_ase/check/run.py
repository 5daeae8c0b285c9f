"""A check of data: one pass over all sets, in which every family of checks sees every frame.

What is kept of a frame are a few dozen numbers; frames themselves only in a sample of bounded size, which units
and signs are judged by. Where a fit to the sample follows the forces, frames beside it are looked at once more.
"""

import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from physicsml_ase.check.balance import Balance
from physicsml_ase.check.basis import BATCH
from physicsml_ase.check.cost import cost
from physicsml_ase.check.energies import UNITS, Energies
from physicsml_ase.check.energy_line import stray_energies
from physicsml_ase.check.findings import GRADES, Finding, Places
from physicsml_ase.check.forces import LargeForces
from physicsml_ase.check.frame import LABELS, Frame, look
from physicsml_ase.check.geometry import Coverage, Geometry
from physicsml_ase.check.labels import FreeEnergy, Labels, Theory
from physicsml_ase.check.placeholders import Placeholders
from physicsml_ase.check.probe import Probe, Row, probe, rows
from physicsml_ase.check.repeats import Repeats
from physicsml_ase.check.report import Report
from physicsml_ase.check.rows import follow_nothing, strange
from physicsml_ase.check.sample import Sample
from physicsml_ase.check.states import States
from physicsml_ase.check.stresses import stresses
from physicsml_ase.check.units import LINE, energy_against_forces, judge, unrelated
from physicsml_ase.conventions import InputError
from physicsml_ase.data.progress import progress
from physicsml_ase.data.sources import Source, SourceSpec, available_keys, open_source, suggest_label_keys

AGREE = 0.1
"""Slope of energies against the work of forces, away from 1, up to which they are in one unit."""
NAMED = ("energy-outliers", "large-forces", "close-atoms", "overlapping-atoms")
"""Frames whose energy needs no other finding."""
LOOKED_AT = 50
"""Frames in which labels under other names are looked for."""


class Family(Protocol):
    """Checks that go together."""

    def see(self, frame: Frame) -> None:
        """One more frame."""

    def findings(self) -> list[Finding]:
        """What was found in all of them."""


def check(
    train: SourceSpec,
    *,
    validation: SourceSpec | None = None,
    test: SourceSpec | None = None,
    cutoff: float = 5.0,
    label_keys: Mapping[str, str] | None = None,
) -> Report:
    """What is wrong with these data, and what is in them.

    `cutoff` [Å] is that of the neighbours; `label_keys` are the user's names of energy, forces and stress. Raises
    `InputError` for a file that can not be opened.
    """
    given = {"train": train, "validation": validation, "test": test}
    sources = {set_: open_source(spec) for set_, spec in given.items() if spec is not None}
    return check_sources(sources, cutoff=cutoff, label_keys=label_keys)


def check_sources(
    sources: Mapping[str, Source],
    *,
    cutoff: float = 5.0,
    label_keys: Mapping[str, str] | None = None,
    most: int | None = None,
    sampled: tuple[int, int] = (150, 5000),
    again: int = 3000,
    inputs: Collection[str] = (),
) -> Report:
    """The same of open sources by set, "train" first; `inputs` are what the model knows of a structure beside it.

    Of each set at most `most` frames are read, evenly spaced; units and signs are judged by at most `sampled`
    frames and atoms, and the forces of at most `again` other frames are then compared with what those teach.
    """
    started = time.monotonic()
    keys = dict(label_keys or {})
    first = next(iter(sources))
    wanted = _keys(sources[first], keys)
    assumed = {name: key for name, key in wanted.items() if name not in keys}
    coverage, repeats = Coverage(cutoff), Repeats(cutoff)
    families: list[Family] = [Labels(wanted, assumed), Geometry(), Balance(), Energies(), LargeForces()]
    families += [Theory(), States(inputs), FreeEnergy(wanted), Placeholders(), coverage]
    samples = {set_: Sample(*sampled) for set_ in sources}
    places = {set_: _places(len(source), most) for set_, source in sources.items()}
    unreadable = Places()
    for frame in _frames(sources, places, wanted, cutoff, unreadable):
        for family in families:
            family.see(frame)
        repeats.see(frame)
        samples[frame.set_].see(frame)
    found = unreadable.finding("error", "unreadable", "{n} that can not be read", "correct or remove them")
    for family in families:
        found += family.findings()
    found += repeats.findings(lambda set_, index: sources[set_][index])
    slopes: dict[str, float] = {}
    for set_, sample in samples.items():
        fit = probe(sample.frames, cutoff)
        if fit is None:
            continue
        more, numbers = consistency(fit)
        others = _looked_at_again(fit, sources[set_], set_, places[set_], again, wanted)
        more += strange([*fit.rows, *others])
        named = {k for f in found if f.code in NAMED for of, k in f.frames if of == set_}
        more += stray_energies([*fit.rows, *others], named)
        found += more if set_ == first else [_of_set(set_, f) for f in more]
        slopes |= {f"{set_}.{name}": value for name, value in numbers.items()}
    atoms_read = sum(coverage.elements.get(first, {}).values())
    of_all = len(sources[first]) / max(len(places[first]), 1)
    return Report(
        sets={set_: (source.name, len(source)) for set_, source in sources.items()},
        findings=tuple(sorted(_confirmed(found, slopes), key=lambda f: GRADES.index(f.grade))),
        coverage=coverage.plain(),
        cost=cost(round(atoms_read * of_all)),
        slopes=slopes,
        seconds=time.monotonic() - started,
        keys=wanted,
        seen=sum(map(len, places.values())),
    )


def _frames(
    sources: Mapping[str, Source],
    places: Mapping[str, NDArray[np.int64]],
    keys: Mapping[str, str],
    cutoff: float,
    unreadable: Places,
) -> Iterator[Frame]:
    """The frames at these places, set after set; what can not be read is put into `unreadable` instead."""
    for set_, source in sources.items():
        with progress(f"checking {source.name}", len(places[set_])) as advance:
            for index in places[set_].tolist():
                advance(1)
                place = source.where(index)
                try:
                    atoms = source[index]
                except InputError as error:
                    unreadable.put(set_, index, place, str(error).removeprefix(place).lstrip(":, "))
                    continue
                yield look(atoms, set_, index, place, keys, cutoff)


def consistency(fit: Probe) -> tuple[list[Finding], dict[str, float]]:
    """What labels say about each other, and the numbers that it was judged by."""
    evidence = energy_against_forces(fit)
    numbers = {"force_correlation": fit.correlation}
    for name, found in evidence._asdict().items():
        if found.points:
            numbers |= {f"{name}.slope": found.middle, f"{name}.correlation": found.correlation}
    return judge(evidence, fit) + unrelated(evidence, fit) + stresses(fit) + follow_nothing(fit), numbers


def _looked_at_again(
    fit: Probe, source: Source, set_: str, places: NDArray[np.int64], most: int, keys: Mapping[str, str]
) -> list[Row]:
    """What the fit says of at most `most` of these frames that it was not made to, a batch at a time."""
    in_sample = {row.index for row in fit.rows}
    left = [k for k in places.tolist() if k not in in_sample]
    chosen = left[:: -(-len(left) // most) or 1] if most else []
    found, batch, atoms = list[Row](), list[Frame](), 0
    with progress(f"forces of {source.name}", len(chosen)) as advance:
        for index in chosen:
            advance(1)
            try:
                batch.append(look(source[index], set_, index, source.where(index), keys, fit.columns.reach))
            except InputError:
                continue
            atoms += len(batch[-1].atoms)
            if atoms >= BATCH:
                found += rows(fit, batch)
                batch, atoms = [], 0
    return found + (rows(fit, batch) if batch else [])


def _keys(source: Source, given: Mapping[str, str]) -> dict[str, str]:
    """The names to look under: those given, and of a label that no frame of a sample has under ours, what it has."""
    open_ = set(LABELS) - set(given)
    suggested = dict[str, str]()
    for index in _places(len(source), LOOKED_AT).tolist():
        if not open_:
            break
        try:
            atoms = source[index]
        except InputError:
            continue
        open_ -= set[str]().union(*available_keys(atoms).values())
        suggested = suggest_label_keys(atoms) | suggested
    return {**given, **{name: suggested[name] for name in LABELS if name in open_ & set(suggested)}}


def _places(count: int, most: int | None) -> NDArray[np.int64]:
    """Places of at most `most` frames, in short runs evenly spaced, so that neighbours are among them."""
    if most is None or count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 2, most // 2).astype(int)[:, None] + np.arange(2))


def _of_set(set_: str, finding: Finding) -> Finding:
    """Said of another set than the first."""
    return dataclasses.replace(finding, message=f"{set_}: {finding.message}")


def _confirmed(findings: list[Finding], slopes: Mapping[str, float]) -> list[Finding]:
    """A unit of the energies that the forces, too, speak for is certain; one that they speak against is a note."""
    told = " ".join(f.message for f in findings if f.code == "energy-force-units")
    lines = [name.removesuffix(".correlation") for name, r in slopes.items() if name.endswith(".correlation")]
    agree = any(
        slopes[f"{line}.correlation"] >= LINE and abs(slopes[f"{line}.slope"] - 1) < AGREE for line in lines
    )
    judged = []
    for f in findings:
        if f.code == "energy-unit" and any(
            f"energies in {u}" in told and f" in {u}," in f.message for u in UNITS
        ):
            f = dataclasses.replace(f, grade="error")
        elif f.code == "energy-unit" and agree:
            says = f"{f.message}; but they agree with the forces"
            f = dataclasses.replace(
                f, grade="note", message=says, advice=f"only if forces are so too: {f.advice}"
            )
        judged.append(f)
    return judged
