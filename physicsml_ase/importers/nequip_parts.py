"""What NequIP and Allegro have in common when they are imported: files, elements, shared weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor

from physicsml_ase.conventions import InputError
from physicsml_ase.domain import Domain
from physicsml_ase.nn.features import NUM_ELEMENTS
from physicsml_ase.potential import Potential

FORMAT = "physicsml_ase nequip 1"


def read_dump(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Hyperparameters and weights in a file that `dump_nequip.py` wrote."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        meta, state = content["meta"], content["state"]
        known = meta["format"] == FORMAT
    except Exception:  # pickle's errors have no common type
        known = False
    if not known:
        script = Path(__file__).with_name("dump_nequip.py")
        raise InputError(
            f"{path} is not what {script.name} writes; where nequip is installed, run: python {script} MODEL OUT.pt"
        )
    return meta, state


def basis_settings(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings that NequIP and Allegro share."""
    return {
        "num_bessel": state["bessel"].shape[0],
        "bessel_basis_trainable": meta["bessel_trainable"],
        "num_polynomial_cutoff": round(meta["polynomial_cutoff_p"]),
        "zbl": "zbl" in meta,
    }


def refuse(meta: Mapping[str, Any], fits: Mapping[str, bool]) -> None:
    """Raise `InputError` for what has no counterpart."""
    kinds = {
        kind for layer in meta["layers"] for kind in (*layer.get("radial", ()), *layer.get("latent", ()))
    }
    kinds |= {*meta["readout"], *meta.get("two_body", ())}
    zbl = meta.get("zbl", {"p": 6.0, "unit": 14.399645})
    wrong = [*meta["unknown"], *(name for name, fit in fits.items() if not fit)]
    wrong += ["avg_num_neighbors by type"] * (len(meta["avg_num_neighbors"]) > 1)
    wrong += [f"nonlinearity {kind}" for kind in sorted(kinds - {"SiLU"})]
    wrong += ["ZBL with other units or another cut-off"] * (zbl != {"p": 6.0, "unit": 14.399645})
    if wrong:
        raise InputError(f"nequip: has no counterpart here: {', '.join(wrong)}")


def make_domain(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> Domain:
    """Cut-off, elements, and energies of atoms, where nequip shifts each type's."""
    unknown = [name for name in meta["type_names"] if name not in chemical_symbols[1:]]
    if unknown:
        raise InputError(f"nequip: types {', '.join(unknown)} are no elements")
    numbers = [atomic_numbers[name] for name in meta["type_names"]]
    shifts = state.get("shifts", torch.zeros(1)).double().expand(len(numbers))
    return Domain(
        cutoff=meta["r_max"],
        elements=tuple(sorted(numbers)),
        avg_num_neighbors=meta["avg_num_neighbors"][0] ** -2,
        atomic_energies=dict(zip(numbers, shifts.tolist())),
        energy_scale=energy_scale(state),
        short_range="none",
    )


def energy_scale(state: Mapping[str, Tensor]) -> float:
    """The largest scale of the energies of types: with it they are multiplied in float64."""
    return float(state.get("scales", torch.ones(1)).abs().max())


def by_element(meta: Mapping[str, Any], of_types: Tensor) -> Tensor:
    """Rows of types (Z, ...) in the order of atomic numbers."""
    order = sorted(range(len(meta["type_names"])), key=lambda k: atomic_numbers[meta["type_names"][k]])
    return of_types.expand(len(order), *of_types.shape[1:])[order]


def by_number(meta: Mapping[str, Any], of_types: Tensor) -> Tensor:
    """Rows of types (Z, T) in a table of all elements."""
    table = of_types.new_zeros(NUM_ELEMENTS, of_types.shape[1])
    table[[atomic_numbers[name] for name in meta["type_names"]]] = of_types
    return table


def shared(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What NequIP and Allegro name alike."""
    yield "model.basis.numbers", state["bessel"]
    yield "model.scales", by_element(meta, state.get("scales", torch.ones(1))[:, None] / energy_scale(state))
    yield "model.shifts", torch.zeros(len(meta["type_names"]), 1)
    yield from matrices("model.readout", "readout", state)


def matrices(ours: str, theirs: str, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights of a network without biases."""
    k = 0
    while f"{theirs}.{k}" in state:
        yield f"{ours}.{2 * k}.weight", state[f"{theirs}.{k}"].T
        k += 1


def load(potential: Potential, state: Mapping[str, Tensor]) -> None:
    """Load all weights; raises `InputError` where some are missing or left over."""
    try:
        potential.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"nequip: weights do not fit: {error}") from None
