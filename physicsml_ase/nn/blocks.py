"""Atoms in pieces that are computed one after the other, and in blocks of one element each.

Weights that depend on the element are then matrices of a block. Shapes: N atoms, R rows of J slots of edges.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.nn.slots import Slots

PADDED = 2.0
"""Elements share a block, padded to the most frequent one, up to this many times the number of atoms."""


class Block(NamedTuple):
    """Atoms, grouped by element: Z elements with n places each, of which some may be filled with any atom."""

    elements: Tensor  # (Z,) places of the elements among the model's
    key: tuple[int, ...]  # the same
    atoms: Tensor | None  # (Z n,), None where it is all atoms in order


class Blocks(NamedTuple):
    """All atoms in one or more blocks."""

    blocks: list[Block]
    back: Tensor | None  # (N,) place of each atom in the blocks, one after the other


class Piece(NamedTuple):
    """Atoms that follow each other, with their rows and slots."""

    atoms: slice
    rows: slice
    slots: slice
    row_atom: Tensor | None  # (R,) atom of each row, from the piece's first; None where each has one
    blocks: Blocks

    def per_atom(self, of_rows: Tensor) -> Tensor:
        """Sums over each atom's rows, (R, ...) -> (N, ...)."""
        if self.row_atom is None:
            return of_rows
        size = self.atoms.stop - self.atoms.start
        return of_rows.new_zeros(size, *of_rows.shape[1:]).index_add(0, self.row_atom, of_rows)


def make_pieces(slots: Slots, place: Tensor, num: int, most: int) -> list[Piece]:
    """Pieces of about `most` slots or less; `place` (N,) is each atom's element among `num`."""
    total, num_rows = place.shape[0], slots.reverse.shape[0] // slots.width
    count = max(-(-num_rows * slots.width // most), 1) if most else 1
    size = max(-(-total // count), 1)
    pieces = []
    for start in range(0, total, size):
        end = min(start + size, total)
        rows, row_atom = slice(start, end), None
        if slots.row_atom is not None:
            first, last = torch.searchsorted(slots.row_atom, place.new_tensor([start, end])).tolist()
            rows, row_atom = slice(first, last), slots.row_atom[first:last] - start
        in_slots = slice(rows.start * slots.width, rows.stop * slots.width)
        blocks = by_element(place[start:end], num)
        pieces.append(Piece(slice(start, end), rows, in_slots, row_atom, blocks))
    return pieces


def by_element(place: Tensor, num: int) -> Blocks:
    """Blocks of atoms whose elements are `place` (N,) among `num`."""
    if num == 1:
        return Blocks([Block(place.new_zeros(1), (0,), None)], None)
    counts = torch.bincount(place, minlength=num)
    present = counts.nonzero()[:, 0]
    key = tuple(present.tolist())
    if len(key) == 1:
        return Blocks([Block(present, key, None)], None)
    order = place.argsort(stable=True)
    sizes = counts.index_select(0, present)
    n, total = int(sizes.max()), place.shape[0]
    back = torch.empty_like(order)
    if len(key) * n <= PADDED * total:
        starts = torch.arange(len(key), device=place.device) * n - (sizes.cumsum(0) - sizes)
        slot = torch.arange(total, device=place.device) + starts.repeat_interleave(sizes)
        atoms = order[:1].repeat(len(key) * n)
        atoms[slot] = order
        back[order] = slot
        return Blocks([Block(present, key, atoms)], back)
    back[order] = torch.arange(total, device=place.device)
    parts = zip(present.split(1), key, order.split(sizes.tolist()))
    return Blocks([Block(element, (k,), atoms) for element, k, atoms in parts], back)
