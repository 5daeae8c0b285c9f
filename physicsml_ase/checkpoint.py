"""A checkpoint: plain data that loads with `weights_only=True`, so that opening one runs nobody's code.

`model.ckpt` is {"format", "format_version", "version", "units", "model", "domain", "labels", "heads",
"state_dict", "frames", "about"}, and "trust" where it was measured. A training checkpoint of Lightning's holds the
same under "physicsml_ase", without the weights, which are in its own "state_dict" (and, averaged, in "ema").
"""

import io
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

import physicsml_ase.models  # noqa: F401  registers the architectures
from physicsml_ase.config import model_config_type, to_plain, validate
from physicsml_ase.conventions import InputError, Label
from physicsml_ase.domain import Domain
from physicsml_ase.graph import Graph
from physicsml_ase.nn.heads import HeadConfig
from physicsml_ase.potential import Potential, Trust
from physicsml_ase.version import __version__

FORMAT, FORMAT_VERSION = "physicsml_ase", 1
UNITS = {
    "energy": "eV",
    "length": "Å",
    "charge": "e",
    "stress": "eV/Å^3, dE/d(strain)/V, positive in tension",
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
KINDS: dict[str, type] = {
    **{"format_version": int, "version": str, "model": dict, "domain": dict, "labels": list, "heads": dict},
    **{"state_dict": dict, "frames": list, "about": dict},
}
LARGE = 256
"""A model with larger hyperparameters is looked at before it is built."""
PREFIX = "potential."  # of the potential's weights in the LightningModule


def describe_potential(potential: Potential) -> dict[str, Any]:
    """Everything that rebuilds a potential but its weights, as plain data."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "version": __version__,
        "units": UNITS,
        "model": to_plain(potential.config),
        "domain": to_plain(potential.domain),
        "labels": [[x.name, x.level, list(x.shape), x.key] for x in potential.labels],
        "heads": {name: to_plain(head) for name, head in potential.heads.items()},
    }


def build_potential(description: Mapping[str, Any], where: str = "checkpoint") -> Potential:
    """The potential that `describe_potential` described, with random weights."""
    if description["format_version"] > FORMAT_VERSION:
        raise InputError(
            f"{where}: was written by physicsml_ase {description['version']}, which is newer than this one "
            f"({__version__}); upgrade with pip install -U physicsml-ase"
        )
    model = dict(description["model"])
    if model.get("pair_repulsion"):
        model.setdefault("repulsion_scale", 1.0)  # which it was before it had a name
    return Potential(
        model=validate(model_config_type(), model, where=f"{where}: model"),
        domain=validate(Domain, description["domain"], where=f"{where}: domain"),
        labels=tuple(
            Label(name, level, tuple(shape), key) for name, level, shape, key in description["labels"]
        ),
        heads={k: validate(HeadConfig, v, where=f"{where}: heads") for k, v in description["heads"].items()},
    )


def save_potential(
    potential: Potential,
    path: str | Path,
    *,
    frames: Sequence[Graph] = (),
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a deployable `model.ckpt`, complete or not at all.

    `frames` are stored with what the potential says of them, for `replay`. `about` is plain data on the
    training: the resolved config, the data's hashes, the errors.
    """
    weights = {name: value.detach().cpu().clone() for name, value in potential.state_dict().items()}
    trust = {part: {k: v.cpu() for k, v in of.items()} for part, of in potential.trust.items()}
    contents = describe_potential(potential) | {
        "state_dict": weights,
        "trust": trust,
        "frames": [_with_results(potential, frame) for frame in frames],
        "about": dict(about or {}),
    }
    write_atomically(contents, Path(path))


def write_atomically(contents: Mapping[str, Any], path: Path) -> None:
    """Write beside `path` and rename: a killed process leaves the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    buffer = io.BytesIO()  # torch says of a full disk that there is an "iostream error"
    torch.save(dict(contents), buffer)
    try:
        beside.write_bytes(buffer.getbuffer())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint of ours, `model.ckpt` or Lightning's; runs no code from it."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder; name the model.ckpt in it" if path.is_dir() else "no such checkpoint"
        if "," in str(path):
            what += "; several models at once are for md, relax, evaluate and predict"
        raise InputError(f"{path}: {what}")
    if _is_exported(path):
        raise InputError(
            f"{path}: is an exported package, for md, relax and the calculator; give the checkpoint it was made from"
        )
    _refuse_inflated(path)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: can not be read: {error.strerror}") from None
    except Exception:  # torch raises many kinds for what is no checkpoint of ours, or a crafted one
        raise InputError(
            f"{path}: is not a physicsml_ase checkpoint (it is damaged, or holds more than plain data)"
        ) from None
    if isinstance(contents, dict) and contents.get("format") == FORMAT and contents.keys() >= KINDS.keys():
        _refuse_other_shapes(contents, path)
        return contents
    if isinstance(contents, dict) and isinstance(contents.get(FORMAT), dict):
        ema = contents.get("ema") or {}
        weights = {
            k.removeprefix(PREFIX): v for k, v in contents["state_dict"].items() if k.startswith(PREFIX)
        }
        weights |= ema.get("weights", {})
        about = {"config": contents["config"]} if contents.get("config") else {}
        found: dict[str, Any] = contents[FORMAT] | {"state_dict": weights, "frames": [], "about": about}
        _refuse_other_shapes(found, path)
        return found
    raise InputError(f"{path}: is not a physicsml_ase checkpoint")


def _refuse_other_shapes(contents: Mapping[str, Any], path: Path) -> None:
    for name, kind in KINDS.items():
        if not isinstance(contents.get(name), kind):
            raise InputError(f"{path}: is not a physicsml_ase checkpoint: its {name} is no {kind.__name__}")
    for label in contents["labels"]:
        if not isinstance(label, list | tuple) or [type(x) for x in label] != [str, str, list, str]:
            raise InputError(f"{path}: is not a physicsml_ase checkpoint: {label!r} is no label")


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except Exception:  # of crafted ends of a file
        return False


def _is_exported(path: Path) -> bool:
    """Whether a file is a package (`backends.package`), which holds a checkpoint and is none."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("/extra/package.json") for name in file.namelist())
    except Exception:  # zipfile raises many kinds for what is no archive, or a crafted one
        return False


def _refuse_inflated(path: Path) -> None:
    """torch.save does not compress: a file that would grow when it is read was made to fill the memory.

    And torch.load does not look at the check sums: a bit that fell over on a disk would be a wrong weight.
    """
    if not _is_zip(path):
        raise InputError(f"{path}: is not a checkpoint, or it was cut")
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            inflated = any(x.compress_type != zipfile.ZIP_STORED for x in entries) or (
                sum(x.file_size for x in entries) > path.stat().st_size
            )
            damaged = None if inflated else file.testzip()
    except Exception:  # zipfile raises many kinds for what is no archive, or a crafted one
        raise InputError(f"{path}: is not a checkpoint, or it was cut") from None
    if inflated:
        raise InputError(f"{path}: is not a physicsml_ase checkpoint (its parts are larger than the file)")
    if damaged:
        raise InputError(f"{path}: is damaged ({damaged} is not what was written); copy it again")


def _refuse_absurd(contents: Mapping[str, Any], where: str) -> None:
    """What claims to be larger than what is stored: weights that repeat a few numbers, or a model that needs more.

    Otherwise a small file could fill the memory when its model is built.
    """
    weights = contents["state_dict"]
    stored = 0
    for name, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise InputError(f"{where}: {name} is no weight")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(f"{where}: {name} is larger than what is stored of it")
        stored += value.numel()
    sizes = list(_sizes(contents["model"]))
    for key, size in sizes:
        if size > max(stored, LARGE):
            raise InputError(f"{where}: model.{key}={size} is larger than all of its weights")
    if len(sizes) <= LARGE and all(size <= LARGE for _, size in sizes):
        return  # what is below takes a second the first time
    with torch.device("meta"):  # shapes without memory
        needed = sum(p.numel() for p in build_potential(contents, where).parameters())
    if needed > stored:
        raise InputError(f"{where}: weights do not fit the model: it has {needed} and {stored} are stored")


def _sizes(plain: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """All whole numbers in plain data with where they are."""
    if isinstance(plain, Mapping):
        for name, value in plain.items():
            yield from _sizes(value, f"{key}.{name}" if key else str(name))
    elif isinstance(plain, list | tuple):
        for k, value in enumerate(plain):
            yield from _sizes(value, f"{key}.{k}")
    elif isinstance(plain, int):
        yield key, plain


def load_potential(
    path: str | Path, device: str | torch.device = "cpu", dtype: str | torch.dtype | None = None
) -> Potential:
    """The potential in a checkpoint, ready for inference; of a training checkpoint, the averaged weights.

    `dtype` ("float32", "float64") is what it computes in; None keeps the checkpoint's.
    """
    contents = read_checkpoint(path)
    _refuse_absurd(contents, str(path))
    potential = build_potential(contents, str(path))
    potential.to(stored_dtype(contents["state_dict"]))
    try:
        potential.load_state_dict(contents["state_dict"])
    except RuntimeError as error:
        raise InputError(
            f"{path}: weights do not fit the model: {' '.join(str(error).split())[:300]}"
        ) from None
    potential.trust = stored_trust(contents)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not known: use {' or '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    return potential.to(device=device, dtype=dtype).requires_grad_(False).eval()


def stored_dtype(state_dict: Mapping[str, Tensor]) -> torch.dtype:
    """Number type of a checkpoint's weights."""
    return next((v.dtype for v in state_dict.values() if v.is_floating_point()), torch.float32)


def stored_trust(contents: Mapping[str, Any]) -> Trust:
    """What a checkpoint tells of its training set's features; empty in one that was written without."""
    trust = contents.get("trust", {})
    if not isinstance(trust, dict) or not all(
        isinstance(of, dict) and all(isinstance(t, Tensor) for t in of.values()) for of in trust.values()
    ):
        raise InputError("checkpoint: what it tells of its training set is damaged")
    return {part: dict(of) for part, of in trust.items()}


def stored_frames(contents: Mapping[str, Any]) -> list[Graph]:
    """The structures that a checkpoint keeps to be replayed."""
    return [Graph(**frame["graph"], inputs=frame["inputs"], targets={}) for frame in contents["frames"]]


def replay(path: str | Path, potential: Potential) -> float:
    """Largest deviation of forces (or of energies per atom, without forces) on the checkpoint's stored
    frames, relative to their largest value; 0 where none are stored, NaN where some is not a number. Rounding is
    about 1e-5 in float32."""
    deviations, contents = [0.0], read_checkpoint(path)
    for graph, frame in zip(stored_frames(contents), contents["frames"]):
        now = potential(graph.to(potential.references.table.device))
        name = "forces" if "forces" in now else next(iter(now))
        then = frame["results"][name].to(now[name])
        scale = then.abs().max().clamp_min(1e-3)
        deviations.append(float((now[name] - then).abs().max() / scale))
    return float(torch.tensor(deviations).max())  # which keeps a NaN


def describe_checkpoint(path: str | Path) -> dict[str, str]:
    """What a checkpoint is, in words, for people; replays its stored frames."""
    contents = read_checkpoint(path)
    potential = load_potential(path)
    domain, about = potential.domain, contents["about"]
    elements = [chemical_symbols[z] for z in domain.elements]
    deviation = replay(path, potential)
    words = {
        "model": f"{potential.config.name}, {sum(p.numel() for p in potential.parameters())} weights, "
        f"{str(potential.dtype).removeprefix('torch.')}",
        "written by": f"physicsml_ase {contents['version']}",
        "elements": ", ".join(elements),
        "cut-off": f"{domain.cutoff:g} Å, {domain.avg_num_neighbors:.1f} neighbours on average",
        "labels": ", ".join(
            f"{x.name} (from {x.key})" if x.key != x.name else x.name for x in potential.labels
        ),
        "reference energies": ", ".join(
            f"{chemical_symbols[z]} {e:.6g} eV" for z, e in sorted(domain.atomic_energies.items())
        ),
        "stored frames": f"{len(contents['frames'])}, replayed within {deviation:.1e} of the largest force"
        + (": THIS INSTALLATION COMPUTES SOMETHING ELSE" if not deviation <= 1e-3 else ""),
    }
    for name, source in (about.get("data", {}).get("sources") or {}).items():
        words[f"{name} data"] = f"{source['source']}, {source['used']} structures, {source['hash'][:12]}"
    for name, errors in (
        ("validation", (about.get("best") or {}).get("errors")),
        ("test", about.get("test_errors")),
    ):
        if errors:
            rmses = {k: v for k, v in errors.items() if k.endswith("/rmse")}
            words[f"{name} RMSE"] = ", ".join(f"{k.split('/')[0]} {v:.4g}" for k, v in rmses.items()) + (
                " (meV/atom, meV/Å, meV/Å³)"
            )
    return words


def _with_results(potential: Potential, graph: Graph) -> dict[str, Any]:
    results = {name: value.cpu() for name, value in potential(graph).items()}
    fields = graph._asdict()
    inputs = fields.pop("inputs")
    fields.pop("targets")
    return {"graph": {k: v.cpu().clone() for k, v in fields.items()}, "inputs": inputs, "results": results}
