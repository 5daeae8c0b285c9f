"""What a run is made of: its data, the potential with the weights to start from, the loss."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physicsml_ase.checkpoint import build_potential, read_checkpoint, stored_dtype
from physicsml_ase.config import ModelConfig, did_you_mean, to_plain
from physicsml_ase.conventions import InputError
from physicsml_ase.data.datamodule import DataModule
from physicsml_ase.data.labels import SLOTS
from physicsml_ase.data.sets import Spec
from physicsml_ase.data.settings import DataModuleConfig
from physicsml_ase.data.store import EdgeConstants
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph, edge_vectors
from physicsml_ase.nn.heads import HeadConfig
from physicsml_ase.potential import Potential
from physicsml_ase.train.compiled import WORTH_SECONDS, can_compile
from physicsml_ase.train.fused import fused_reason
from physicsml_ase.train.losses import LossTerm, default_loss
from physicsml_ase.train.settings import RunConfig
from physicsml_ase.train.transfer import adopt, freeze

log = logging.getLogger("physicsml_ase")
MOST_BYTES = 2 * 1024**3
"""Memory that constants of edges may take in each set."""
SOME = 64
"""Structures of each source by which a model's degrees are chosen."""
MUCH = 0.5
"""Difference of reference energies [eV/atom] that other structures of the same kind do not explain."""


def open_data(
    config: RunConfig, data: Mapping[str, Spec | None], known: Potential | None = None
) -> DataModule:
    """The DataModule of a run, resolved; `known` tells what an earlier session resolved."""
    datamodule = DataModule(
        config.datamodule,
        train=data["train"],
        validation=data["validation"],
        test=data["test"],
        domain=known.domain if known else None,
        labels=known.labels if known else None,
        seed=config.seed,
        reference_energies=config.reference_energies,
    )
    datamodule.resolve()
    return datamodule


def make_potential(
    config: RunConfig, datamodule: DataModule, saved: Mapping[str, Any] | None, given: Potential | None
) -> Potential:
    """The potential to train: a saved run's, a given one's weights, pre-trained ones, or a new one."""
    transfer = config.transfer_learning
    for name in ("energy", "energies"):
        if name in config.heads and config.heads[name].direct:
            raise InputError(
                f"heads.{name}.direct: true, but only forces and stress have a derivative to replace"
            )
    if saved:
        potential = continued(config, saved)
    else:
        before = given
        if transfer:
            contents = read_checkpoint(transfer.ckpt)
            before = build_potential(contents, transfer.ckpt)
            before.load_state_dict(contents["state_dict"])
        domain = datamodule.domain
        if before is not None:
            domain = _as_before(config, domain, before.domain)
        config = for_data(config, datamodule, before)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            potential = Potential(
                config.model, _with_given_numbers(config, domain), datamodule.labels, _with_variances(config)
            )
        if before is not None:
            modules = transfer.modules_to_match if transfer else None
            if modules is None:
                _refuse_other_model(config.model, before.config)
            adopt(potential, before, modules)
    frozen = transfer.stages[0].freeze_modules if transfer and transfer.stages else []
    freeze(potential, frozen)
    return potential


def _on_command_line(value: object) -> str:
    return "null" if value is None else str(value).replace(" ", "")


def _refuse_other_model(model: ModelConfig, before: ModelConfig) -> None:
    """Weights may fit a model to which they mean something else: with fewer layers, or other radial functions."""
    now, then = to_plain(model), to_plain(before)
    for key in getattr(model, "only_in_training", ()):
        now.pop(key, None), then.pop(key, None)
    other = [f"model.{key}={_on_command_line(value)}" for key, value in then.items() if now.get(key) != value]
    if other:
        raise InputError(
            f"the weights to begin with are of another model: give {' '.join(other)} too, or name what to take over "
            "in transfer_learning.modules_to_match"
        )


def for_data(config: RunConfig, datamodule: DataModule, before: Potential | None = None) -> RunConfig:
    """The config with what its model leaves to the data, or has from the model whose weights it starts from."""
    model: Any = config.model
    left = [key for key in getattr(model, "left_to_data", ()) if getattr(model, key) is None]
    if not left:
        return config
    if before is not None and before.config.name == model.name:
        then = to_plain(before.config)
        model = dataclasses.replace(model, **{key: then[key] for key in left})
    else:
        model = model.for_data(_some(datamodule), datamodule.domain.cutoff)
        for key in left:
            log.info("model.%s: %s, by the structures", key, getattr(model, key))
    return dataclasses.replace(config, model=model)


def _some(datamodule: DataModule) -> Iterator[Graph]:
    """Structures of the training data, one by one, from all over each source."""
    for store in datamodule.resolve().stores["train"].values():
        for place in np.unique(np.linspace(0, len(store) - 1, SOME).astype(int)):
            yield store.read(np.array([place]))


def continued(config: RunConfig, saved: Mapping[str, Any]) -> Potential:
    """The potential of a saved run, its weights still to be loaded; the config must mean the same model."""
    description = saved["physicsml_ase"]
    model, left = to_plain(config.model), getattr(config.model, "left_to_data", ())
    for key, value in description["model"].items():
        if model.get(key) != value and (key not in left or model[key] is not None):
            raise InputError(
                f"model.{key}: {model.get(key)!r}, but the run that is to be continued has {value!r}"
            )
    # not first rounded to float32
    potential = build_potential(description)
    refuse_other_inputs(config.datamodule, potential)
    return potential.to(stored_dtype(saved["state_dict"]))


def refuse_other_steps(config: RunConfig, saved: Mapping[str, Any]) -> None:
    """Raise `InputError` where a config has another optimizer or schedule than a saved run, whose state they hold."""
    before = saved.get("config") or {}
    for section in ("optimizer", "scheduler"):
        if section not in before:
            continue
        now, then = (_leaves(x, section) for x in (to_plain(config)[section], before[section]))
        for key in sorted(now.keys() | then.keys()):
            if now.get(key) != then.get(key):
                raise InputError(
                    f"{key}: {now.get(key)!r}, but the run that is to be continued has {then.get(key)!r}, and its "
                    "state goes on; leave it, or begin another run with its weights (transfer_learning.ckpt)"
                )


def _leaves(of: object, name: str) -> dict[str, object]:
    """Values by their dotted names."""
    if not isinstance(of, Mapping):
        return {name: of}
    return {k: v for key, part in of.items() for k, v in _leaves(part, f"{name}.{key}").items()}


def refuse_other_inputs(given: DataModuleConfig, potential: Potential) -> None:
    """Raise `InputError` where a config says other things of structures than a saved run has learned from."""
    domain = potential.domain
    own = {
        "cut_off": (given.cut_off, domain.cutoff),
        "self_interaction": (given.self_interaction, domain.self_interaction),
        "graph_attrs_cols": (tuple(given.graph_attrs_cols or ()), tuple(domain.attrs)),
    }
    labels = [getattr(given, slot) for slot in SLOTS]
    named = {name for value in labels if value for name in ([value] if isinstance(value, str) else value)}
    if named:
        own["y_..."] = (sorted(named), sorted(label.name for label in potential.labels))
    for key, (now, then) in own.items():
        if now != then:
            raise InputError(f"datamodule.{key}: {now!r}, but the run that is to be continued has {then!r}")


def make_loss(config: RunConfig, potential: Potential) -> dict[str, LossTerm]:
    """The loss's terms, each with a label that the data have."""
    names = {label.name: label.level for label in potential.labels}
    if config.loss is None:
        return default_loss(names)
    for name, term in config.loss.items():
        if name not in names:
            raise InputError(f"loss.{name}: is not a label of the training data; {did_you_mean(name, names)}")
        if term.per_atom and names[name] != "structure":
            raise InputError(f"loss.{name}.per_atom: true, but {name} is one per {names[name]} already")
    if not any(term.weight for term in config.loss.values()):
        raise InputError("loss: all weights are 0, so that nothing would be learned")
    left = [name for name in names if name not in config.loss or not config.loss[name].weight]
    if left:
        log.warning(
            "%s: in the data, but not learned, as loss names %s alone; a loss that is given is the whole of it: "
            "give loss.%s.weight as well",
            *(", ".join(left), ", ".join(name for name in names if name not in left), left[0]),
        )
    return dict(config.loss)


def how_to_step(config: RunConfig, potential: Potential) -> bool | str | dict[str, Any]:
    """How the training step is computed: by "kernel", or whether and how torch compiles it."""
    if config.compile not in ("auto", "kernel"):
        return config.compile
    if config.trainer.precision != 32:
        reason: str | None = "the kernel trains in float32"
    elif torch.cuda.is_available() and config.trainer.accelerator != "cpu":
        reason = "the kernel is for CPUs"
    else:
        reason = fused_reason(potential)
    if reason is None:
        return "kernel"
    if config.compile == "kernel":
        raise InputError(f"compile: 'kernel': {reason}")
    log.debug("no training kernel: %s", reason)
    if torch.cuda.is_available() and config.trainer.accelerator != "cpu":
        return False  # compiling takes minutes there, and what it gains was not measured
    length = config.trainer.max_time
    long = length is not None and length.total_seconds() >= WORTH_SECONDS
    return potential.explicit and long and can_compile()


def keep_constants(potential: Potential, datamodule: DataModule) -> None:
    """Have the datamodule keep what the model would compute of every edge in every epoch."""
    if potential.explicit and potential.dtype == torch.float32:
        model = potential.model

        def compute(graph: Graph) -> Tensor:
            with torch.no_grad():
                return model.constants(edge_vectors(graph).float())

        constants = EdgeConstants(model.constants_name, compute, model.geometry.width)
        datamodule.keep_constants(constants, MOST_BYTES)


def _with_given_numbers(config: RunConfig, domain: Domain) -> Domain:
    return dataclasses.replace(
        domain,
        energy_scale=config.energy_scale or domain.energy_scale,
        avg_num_neighbors=config.avg_num_neighbors or domain.avg_num_neighbors,
        short_range=config.short_range,
    )


def _with_variances(config: RunConfig) -> dict[str, HeadConfig]:
    """The heads, with one for the variance of each label whose loss teaches it."""
    heads = dict(config.heads)
    for name, term in (config.loss or {}).items():
        if term.name == "GaussianNLLLoss":
            heads[name] = dataclasses.replace(heads.get(name, HeadConfig()), variance=True)
    return heads


def _as_before(config: RunConfig, domain: Domain, before: Domain) -> Domain:
    """The new data's domain with the scales and reference energies that trained weights were made for."""
    if domain.cutoff != before.cutoff:
        raise InputError(
            f"datamodule.cut_off: {domain.cutoff}: the pre-trained model has {before.cutoff}; use the same"
        )
    for key, now, then in (
        ("graph_attrs_cols", domain.attrs, before.attrs),
        ("self_interaction", domain.self_interaction, before.self_interaction),
    ):
        if now != then:
            raise InputError(f"datamodule.{key}: {now}: the pre-trained model has {then}; use the same")
    energies = before.atomic_energies | domain.atomic_energies
    if config.reference_energies is None:
        energies = domain.atomic_energies | before.atomic_energies
        _warn_of_other_level(domain, before)
    return dataclasses.replace(
        domain,
        energy_scale=before.energy_scale,
        energy_shift=before.energy_shift,
        avg_num_neighbors=before.avg_num_neighbors,
        elements=tuple(sorted({*domain.elements, *before.elements})),
        atomic_energies=energies,
        shortest_distances=shorter_of(domain.shortest_distances, before.shortest_distances),
        neighbor_counts=wider_of(domain.neighbor_counts, before.neighbor_counts),
        short_range=config.short_range,
        label_shifts=domain.label_shifts | before.label_shifts,
        # a label that the model knew without them keeps its meaning
        label_shifts_per_atom={
            name: shift
            for name, shift in domain.label_shifts_per_atom.items()
            if name not in before.label_shifts
        }
        | before.label_shifts_per_atom,
        label_scales=domain.label_scales | before.label_scales,
        attr_shifts=before.attr_shifts,
        attr_scales=before.attr_scales,
    )


def shorter_of(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """Of each pair of elements the shorter distance."""
    return {pair: min(d for d in (a.get(pair), b.get(pair)) if d is not None) for pair in sorted({*a, *b})}


def wider_of(a: dict[str, tuple[int, int]], b: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Of each element the smaller of the fewest neighbours and the larger of the most."""
    both = {x: [seen[x] for seen in (a, b) if x in seen] for x in sorted({*a, *b})}
    return {x: (min(low for low, _ in of), max(high for _, high in of)) for x, of in both.items()}


def _warn_of_other_level(domain: Domain, before: Domain) -> None:
    both = domain.atomic_energies.keys() & before.atomic_energies.keys()
    off = max((abs(domain.atomic_energies[z] - before.atomic_energies[z]) for z in both), default=0.0)
    if off > MUCH:
        log.warning(
            "the pre-trained model's reference energies, which are kept, are up to %.3g eV/atom from those of "
            "these data; if the data are of another level of theory, set reference_energies=least_squares",
            off,
        )
