"""What a check says: a grade, a code, the frames it is about, and one line of what is wrong and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from physicsml_ase.check.frame import Frame

Grade = Literal["error", "warning", "note"]
GRADES: tuple[Grade, ...] = ("error", "warning", "note")
"""error: certain, and training would fail or be ruined. warning: likely wrong, with the evidence. note: worth
knowing."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    grade: Grade
    code: str
    """Names the kind of finding, for machines: "close-atoms"."""
    message: str
    """What, and where where no frames are named; one line."""
    advice: str = ""
    """What to do, one line."""
    frames: tuple[tuple[str, int], ...] = ()
    """(set, place in it) of every frame concerned."""
    where: tuple[str, ...] = ()
    """The first of them in the user's words."""
    evidence: dict[str, float] = field(default_factory=dict)
    """Numbers that led to it."""

    def in_words(self) -> str:
        """All of it on one line."""
        places = f" [{places_in_words(self.where, len(self.frames))}]" if self.frames else ""
        return f"{self.message}{places}" + (f"; {self.advice}" if self.advice else "")


def places_in_words(where: Sequence[str], count: int) -> str:
    """'a.xyz frame 3; a.xyz frame 7 and 5 more'"""
    more = f" and {count - len(where)} more" if count > len(where) else ""
    return "; ".join(where) + more


NAMED = 4
"""Frames that a finding names before it counts the rest."""


class Places:
    """Frames that something is wrong with, gathered as they come by: numbers of all, words of the first."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, int]] = []
        self.where: list[str] = []

    def __len__(self) -> int:
        return len(self.frames)

    def add(self, frame: Frame, remark: str = "") -> None:
        """One more; the remark stands behind its name."""
        self.put(frame.set_, frame.index, frame.where, remark)

    def put(self, set_: str, index: int, where: str, remark: str = "") -> None:
        """One more, of which only the place is known."""
        self.frames.append((set_, index))
        if len(self.where) < NAMED:
            self.where.append(f"{where}: {remark}" if remark else where)

    def finding(
        self, grade: Grade, code: str, message: str, advice: str = "", **evidence: float
    ) -> list[Finding]:
        """The finding about them, or nothing where there are none; {n} in the message is their number."""
        if not self.frames:
            return []
        text = message.replace("{n}", in_number(len(self.frames)))
        return [Finding(grade, code, text, advice, tuple(self.frames), tuple(self.where), dict(evidence))]


def in_number(count: int) -> str:
    """'1 frame', '7 frames'"""
    return f"{count} frame" + ("s" if count != 1 else "")
