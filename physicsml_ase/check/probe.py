"""A small linear potential, fitted to the forces alone in two halves, that tells what the other labels should be.

Each half of the frames is predicted by the fit to the other half. The energies and virials that follow have
the unit and sign of the forces, whatever they are. S frames, P features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from physicsml_ase.check.basis import Design, Layout, Singles, designs, layout
from physicsml_ase.check.frame import Floats, Frame

RIDGE = 1e-3
RARE = 0.03
FOLDS = 2
ROUNDS = 3
ASKED = 24
"""Components of a frame whose standard errors stand for all."""


SHELLS = (3.0, 5.0)
"""Distances [Å] whose numbers of neighbours stand for the density."""


class PerAtom(NamedTuple):
    """A frame's energy beside the predicted one, and what else decides on it."""

    label: float  # [eV/atom], NaN without one
    predicted: float  # of the unit of the forces' work, up to a sum over atoms
    fractions: Floats  # of each element, (Z,)
    near: Floats  # neighbours of an atom within SHELLS, (2,)
    periodic: bool
    volume: float  # of an atom [Å³]; 0 where the cell has none


@dataclass(frozen=True)
class Row:
    """A frame's labelled forces beside predicted ones, in four numbers, and its energy."""

    set_: str
    index: int
    where: str
    atoms: int
    overlap: float  # sum of predicted times labelled components
    predicted: float  # sum of squares
    label: float
    doubt: float
    """Standard error of the prediction, as a part of the label: what the fit does not know of such a frame."""
    per_atom: PerAtom

    @property
    def kind(self) -> tuple[int, ...]:
        """The same for frames of one composition."""
        return tuple(np.rint(self.per_atom.fractions * self.atoms).astype(int).tolist())

    @property
    def rms(self) -> float:
        """Of a labelled component [eV/Å]."""
        return float(np.sqrt(self.label / (3 * self.atoms)))

    @property
    def follow(self) -> float:
        """Correlation."""
        return self.overlap / float(np.sqrt(self.predicted * self.label) + 1e-300)

    @property
    def scale(self) -> float:
        """Size of the labels, as a multiple of the prediction."""
        return self.overlap / (self.predicted + 1e-300)


class Probe(NamedTuple):
    """What the fit says of each frame, beside what the labels say."""

    frames: list[Frame]  # (S,)
    energy: Floats  # (S,), up to a sum over atoms
    virial: Floats  # (S, 6)
    correlation: float  # of predicted and labelled force components, over all
    rows: list[Row]  # each by the fit to the other half
    forces: list[Floats]  # (N, 3) each
    columns: Layout
    coefficients: Floats  # (P,)
    errors: Singles  # (P, P); features times this are the standard errors of a prediction


def probe(frames: Sequence[Frame], cutoff: float) -> Probe | None:
    """Fit to the frames that have forces; None where there are too few."""
    chosen = [f for f in frames if f.forces is not None and f.forces.any() and f.pairs and len(f.pairs.i)]
    if len(chosen) < FOLDS:
        return None
    columns = layout(chosen, cutoff)
    if not columns.size:
        return None
    features = designs(chosen, columns)
    labels = [np.asarray(frame.forces, dtype=np.float64).ravel() for frame in chosen]
    square = np.array([float(y @ y) for y in labels])
    sizes = np.array([len(y) for y in labels])
    weight = 1 / np.maximum(np.sqrt(square / sizes), np.median(np.sqrt(square / sizes)))
    for _ in range(ROUNDS):
        sums = [np.zeros((columns.size, columns.size + 1)) for _ in range(FOLDS)]
        for s, (one, y) in enumerate(zip(features, labels)):
            rows = one.forces * np.float32(weight[s])
            sums[s % FOLDS][:, :-1] += rows.T @ rows
            sums[s % FOLDS][:, -1] += rows.T @ (y * weight[s])
        whole = np.sum(sums, axis=0)
        coefficients = [_solve(whole - part) for part in sums]
        predicted = [
            features[s].forces @ coefficients[s % FOLDS].astype(np.float32) for s in range(len(chosen))
        ]
        rest = np.array([np.sqrt(np.mean((y - p) ** 2)) for y, p in zip(labels, predicted)])
        weight = 1 / np.maximum(rest, max(np.median(rest), 1e-12))
    fit = _solve(whole)
    errors = [_errors(whole - part) for part in sums]
    overlap = np.array([float(p @ y) for p, y in zip(predicted, labels)])
    predicted_square = np.array([float(p @ p) for p in predicted])
    inliers = rest <= 3 * np.median(rest)
    total = np.sqrt(predicted_square[inliers].sum() * square[inliers].sum())
    return Probe(
        frames=list(chosen),
        energy=np.array([features[s].energy @ fit for s in range(len(chosen))]),
        virial=np.array([features[s].virial @ fit for s in range(len(chosen))]),
        correlation=float(overlap[inliers].sum() / total) if total else 0.0,
        rows=[
            _row(frame, p, one, errors[s % FOLDS], columns, fit)
            for s, (frame, p, one) in enumerate(zip(chosen, predicted, features))
        ],
        forces=[(one.forces @ fit.astype(np.float32)).reshape(-1, 3).astype(np.float64) for one in features],
        columns=columns,
        coefficients=fit,
        errors=_errors(whole),
    )


def rows(fit: Probe, frames: Sequence[Frame]) -> list[Row]:
    """The same of frames that the fit was not made to, with forces and of elements that it knows."""
    known = [
        f
        for f in frames
        if f.forces is not None and f.forces.any() and f.pairs and len(f.pairs.i)
        if np.isin(f.atoms.numbers, fit.columns.elements).all()
    ]
    features = designs(known, fit.columns)
    coefficients = fit.coefficients.astype(np.float32)
    return [
        _row(f, one.forces @ coefficients, one, fit.errors, fit.columns, fit.coefficients)
        for f, one in zip(known, features)
    ]


def _row(
    frame: Frame,
    predicted: NDArray[np.floating],
    one: Design,
    errors: Singles,
    columns: Layout,
    coefficients: Floats,
) -> Row:
    assert frame.forces is not None
    assert frame.pairs is not None
    y, p = frame.forces.ravel(), predicted.astype(np.float64)
    place = frame.set_, frame.index, frame.where, len(frame.atoms)
    asked = one.forces[:: -(-len(y) // ASKED)] @ errors
    doubt = np.sqrt((asked**2).sum(1).mean() / (np.square(y).mean() + 1e-300))
    size = len(frame.atoms)
    per_atom = PerAtom(
        frame.energy / size,
        float(one.energy @ coefficients) / size,
        (frame.atoms.numbers[:, None] == columns.elements).mean(0),
        np.array([2 * (frame.pairs.distance < reach).sum() / size for reach in SHELLS]),
        bool(frame.atoms.pbc.any()),
        frame.atoms.get_volume() / size if frame.atoms.pbc.all() else 0.0,
    )
    return Row(*place, float(p @ y), float(p @ p), float(y @ y), float(doubt), per_atom)


def _solve(normal: Floats) -> Floats:
    """Ridge regression from the normal equations, (P, P + 1) -> (P,)."""
    gram, scale = _conditioned(normal)
    return np.asarray(np.linalg.solve(gram, normal[:, -1] / scale) / scale)


def _errors(normal: Floats) -> Singles:
    """U with U U^T the covariance of the coefficients, whose residuals have the weight one, (P, P)."""
    gram, scale = _conditioned(normal)
    inverse = solve_triangular(np.linalg.cholesky(gram), np.eye(len(gram)), lower=True)
    return np.asarray(inverse.T / scale[:, None], dtype=np.float32)


def _conditioned(normal: Floats) -> tuple[Floats, Floats]:
    """The equations' matrix in units of `scale`, with a ridge."""
    gram = normal[:, :-1]
    diagonal = np.diagonal(gram)
    scale = np.sqrt(diagonal + RARE * diagonal.mean())  # what is hardly seen is hardly fitted
    scale[scale == 0] = 1.0  # symmetry may forbid all forces
    return gram / scale[:, None] / scale + RIDGE * np.eye(len(gram)), scale
