"""Whether uncertainties are as large as errors: of labels whose predictions come with a standard deviation.

Errors and uncertainties of energies are per atom. K values.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, spearmanr

from physicsml_ase.conventions import Label
from physicsml_ase.evaluate.predict import Batch

Array = NDArray[np.float64]
LEVELS = np.linspace(0.01, 0.99, 99)
"""Parts of all errors, for the miscalibration area."""
BINS = 12


class Calibration:
    """Errors of one label and the standard deviations that were predicted for them."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self._errors, self._sigmas = list[Array](), list[Array]()

    def __len__(self) -> int:
        return sum(map(len, self._errors))

    def add(self, errors: Array, sigmas: Array) -> None:
        """More values, of any shape; those without an error are left out."""
        known = np.isfinite(errors) & np.isfinite(sigmas)
        self._errors.append(errors[known])
        self._sigmas.append(np.maximum(sigmas[known], 1e-12))

    @property
    def errors(self) -> Array:
        """(K,)"""
        return np.concatenate(self._errors)

    @property
    def sigmas(self) -> Array:
        """(K,)"""
        return np.concatenate(self._sigmas)

    def numbers(self) -> dict[str, float]:
        """`rmse` and `rms_sigma`, which should be alike; `nll` of a Gaussian; `spearman` of |error| and sigma; and
        `miscalibration`, how far the parts of the errors within each number of sigmas are from a Gaussian's on
        average, 0 to 0.5."""
        error, sigma = self.errors, self.sigmas
        z = np.abs(error) / sigma
        within = np.searchsorted(np.sort(z), norm.ppf((1 + LEVELS) / 2), side="right") / len(z)
        varied = len(error) > 2 and np.ptp(sigma) > 0 and np.ptp(error) > 0
        return {
            "rmse": float(np.sqrt((error**2).mean())),
            "rms_sigma": float(np.sqrt((sigma**2).mean())),
            "miscalibration": float(np.abs(within - LEVELS).mean()),
            "nll": float((0.5 * z**2 + np.log(sigma)).mean() + 0.5 * np.log(2 * np.pi)),
            "spearman": float(spearmanr(np.abs(error), sigma).statistic) if varied else 0.0,
            "values": len(error),
        }

    def bins(self) -> tuple[Array, Array]:
        """RMS of sigmas and of errors in bins of as many values each, by sigma."""
        order = np.argsort(self.sigmas)
        parts = [part for part in np.array_split(order, min(BINS, max(len(order) // 5, 1))) if len(part)]
        rms = [[np.sqrt((of[part] ** 2).mean()) for part in parts] for of in (self.sigmas, self.errors)]
        return np.array(rms[0]), np.array(rms[1])

    def in_words(self) -> str:
        """One line."""
        n = self.numbers()
        return (
            f"uncertainty of {self.name}: {n['rms_sigma']:.4g} for errors of {n['rmse']:.4g} {self.unit} (RMS), "
            f"miscalibration area {n['miscalibration']:.3f}, rank correlation {n['spearman']:.2f}, "
            f"NLL {n['nll']:.3f}"
        )


def compare_sigma(calibrations: dict[str, Calibration], label: Label, batch: Batch) -> None:
    """Add a batch's errors and uncertainties of a label, if it has any."""
    results = batch.results
    sigma = results.get(f"{label.name}_uncertainty", results.get(f"{label.name}_std"))
    if sigma is None or label.level == "edge":
        return
    errors = results[label.name] - batch.graph.targets[label.name].numpy()
    unit = label.unit
    if label.name == "energy":
        n = batch.graph.num_atoms.numpy()
        errors, sigma, unit = errors / n, sigma / n, "eV/atom"
    calibrations.setdefault(label.name, Calibration(label.name, unit)).add(errors, sigma)
