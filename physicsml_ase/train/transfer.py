"""Starting from trained weights: which are taken over, and which stay as they are."""

from collections.abc import Mapping, Sequence

import torch
from ase.data import chemical_symbols

from physicsml_ase.config import did_you_mean
from physicsml_ase.conventions import InputError
from physicsml_ase.potential import Potential


@torch.no_grad()
def adopt(new: Potential, trained: Potential, modules: Mapping[str, str] | None = None) -> None:
    """Copy weights from a trained potential: of `modules` {new: trained}, by their paths, or of all.

    Raises `InputError` that lists every name or shape that does not match.
    """
    weights, source = dict(new.named_parameters()), dict(trained.named_parameters())
    wrong = []
    for to, from_ in ({"": ""} if modules is None else modules).items():
        for path, known in ((to, new), (from_, trained)):
            names = dict(known.named_modules())
            if path not in names:
                raise InputError(f"transfer_learning.modules_to_match: {path!r}: {did_you_mean(path, names)}")
        for name in (n for n in weights if _within(n, to)):
            other = from_ + name[len(to) :]
            if other not in source:
                wrong.append(f"{name}: the pre-trained model has no {other}")
            elif source[other].shape != weights[name].shape:
                shapes = f"{tuple(weights[name].shape)} here, {tuple(source[other].shape)} pre-trained"
                wrong.append(f"{name}: shapes differ, {shapes}")
            else:
                weights[name].copy_(source[other])
    if wrong:
        raise InputError(
            f"transfer_learning: {_of_elements(new, trained)}{len(wrong)} weights do not match (name the modules "
            "that do in modules_to_match): " + "; ".join(wrong[:5]) + ("; ..." if len(wrong) > 5 else "")
        )


def _of_elements(new: Potential, trained: Potential) -> str:
    """That the data have elements unknown to the pre-trained model, why some weights have other shapes."""
    unknown = [chemical_symbols[z] for z in new.domain.elements if z not in trained.domain.elements]
    return (
        f"the data have {', '.join(unknown)}, which the pre-trained model does not know; " if unknown else ""
    )


def freeze(potential: Potential, modules: Sequence[str]) -> None:
    """Keep the weights of these modules, by their paths, as they are. Others learn unless the model says no."""
    names = dict(potential.named_modules())
    for path in modules:
        if path not in names:
            raise InputError(
                f"transfer_learning.stages: freeze_modules: {path!r}: {did_you_mean(path, names)}"
            )
    for name, parameter in potential.named_parameters():
        if any(_within(name, path) for path in modules):
            parameter.requires_grad_(False)


def _within(name: str, path: str) -> bool:
    return path == "" or name == path or name.startswith(path + ".")
