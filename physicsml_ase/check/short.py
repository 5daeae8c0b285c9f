"""The short form of a check, at the start of a training: what is wrong, in a few lines, within seconds."""

import logging
from collections.abc import Collection, Mapping

from physicsml_ase.check.frame import LABELS
from physicsml_ase.check.run import check_sources
from physicsml_ase.data.sources import Source

log = logging.getLogger("physicsml_ase")

MOST = 1000
"""Frames of each set that are read."""
SAMPLED = (60, 2000)
"""Frames and atoms by which units and signs are judged."""
SAID = {
    "unreadable",
    "unusable-geometry",
    "not-finite",
    "wrong-shape",
    "other-keys",
    "no-labels",
    "unlabelled",
    "no-energy",
    "no-forces",
    "energy-outliers",
    "large-forces",
    "isolated-atoms",
    "unseen-elements",
    "near-leakage",
}
"""What training says itself, or refuses, by the rules of its config."""


def tell(
    sources: Mapping[str, Mapping[str, Source]],
    cutoff: float,
    label_keys: Mapping[str, str],
    inputs: Collection[str] = (),
) -> None:
    """Log what is likely wrong with the sets of a run, {set: {name: source}}; nothing is refused.

    Named sources are checked by themselves: their labels may differ. `inputs` are the model's, beside the structure.
    """
    label_keys = {name: name for name in LABELS} | dict(label_keys)  # nothing is judged that is not learned
    names = list(dict.fromkeys(name for of in sources.values() for name in of))
    for name in names:
        given = {set_: of[name] for set_, of in sources.items() if name in of}
        if "train" not in given:
            continue
        try:
            report = check_sources(
                given,
                cutoff=cutoff,
                label_keys=label_keys,
                most=MOST,
                sampled=SAMPLED,
                again=0,
                inputs=inputs,
            )
        except Exception as error:  # a training does not fail by what only looks at its data
            log.warning(
                "the data could not be checked: %s", " ".join(str(error).split()) or type(error).__name__
            )
            continue
        for finding in (*report.errors, *report.warnings):
            if finding.code not in SAID:
                log.warning("%s%s", f"{name}: " if name else "", finding.in_words())
