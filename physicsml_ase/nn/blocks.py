"""Atoms in pieces that are computed one after the other, and in blocks of one element each.

Weights that depend on the element are then matrices of a block. Shapes: N atoms, R rows of J slots of edges.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from physicsml_ase.nn.slots import Slots
from physicsml_ase.nn.transposes import linear_map

PADDED = 2.0
"""Elements share a block, padded to the most frequent one, up to this many times the number of atoms."""


PER_TILE = 8
"""What a tile's weights cost, as so many of its places."""
LARGEST = 512
"""Places of a tile: with more, nothing is gained."""


class Block(NamedTuple):
    """Atoms, grouped by element: Z elements with n places each, of which some may be filled with any atom."""

    elements: Tensor  # (Z,) places of the elements among the model's
    key: tuple[int, ...] | None  # the same, where it is known
    atoms: Tensor | None  # (Z n,), None where it is all atoms in order


class Blocks(NamedTuple):
    """All atoms in one or more blocks."""

    blocks: list[Block]
    back: Tensor | None  # (N,) place of each atom in the blocks, one after the other
    filled: Tensor | None = (
        None  # (Z n,) whether there is an atom of its own in each place, of a single block
    )

    def sort(self, block: Block, x: Tensor) -> Tensor:
        """Values of a block's atoms, (N, ...) -> (Z n, ...)."""
        if block.atoms is None:
            return x
        if self.filled is None:
            return x.index_select(0, block.atoms)
        return linear_map(x, self._take, self._put)

    def unsort(self, parts: list[Tensor]) -> Tensor:
        """Values of all atoms from those of the blocks."""
        x = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.back is None:
            return x
        return x.index_select(0, self.back) if self.filled is None else linear_map(x, self._put, self._take)

    def _take(self, x: Tensor) -> Tensor:
        atoms = self.blocks[0].atoms
        assert self.filled is not None
        assert atoms is not None
        return x.index_select(0, atoms) * self.filled.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def _put(self, x: Tensor) -> Tensor:
        assert self.back is not None
        return x.index_select(0, self.back)


class Tiles(NamedTuple):
    """Atoms of one element each in Z tiles of n places, for compiled code, which can not find out how many there are.

    Several tiles may be of the same element, and some places are filled with any atom. Neither size is 1.
    """

    elements: Tensor  # (Z,) places of the elements among the model's
    atoms: Tensor  # (Z, n)
    back: Tensor  # (N,) place of each atom in the tiles, one after the other

    def blocks(self) -> Blocks:
        """The one block that they are."""
        atoms = self.atoms.reshape(-1)
        filled = self.back.index_select(0, atoms) == torch.arange(atoms.shape[0], device=atoms.device)
        return Blocks([Block(self.elements, None, atoms)], self.back, filled)


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


def of_one_element(place: Tensor) -> Blocks:
    """The block of all atoms (N,) of a model that knows a single element."""
    return Blocks([Block(place.new_zeros(1), (0,), None)], None)


def by_element(place: Tensor, num: int) -> Blocks:
    """Blocks of atoms whose elements are `place` (N,) among `num`."""
    if num == 1:
        return of_one_element(place)
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


def one_piece(slots: Slots, blocks: Blocks, num_atoms: int) -> list[Piece]:
    """All atoms at once, in blocks that are known."""
    rows, in_slots = slice(0, slots.reverse.shape[0] // slots.width), slice(0, slots.reverse.shape[0])
    return [Piece(slice(0, num_atoms), rows, in_slots, slots.row_atom, blocks)]


def make_tiles(place: Tensor, num: int) -> Tiles:
    """Tiles of atoms whose elements are `place` (N,) among `num`, of the size that wastes least."""
    counts = torch.bincount(place, minlength=num)
    sizes = torch.arange(2, min(max(int(counts.max()), 2), LARGEST) + 1, device=place.device)
    tiles = (counts + sizes[:, None] - 1) // sizes[:, None]  # of each size and element
    cost = tiles.sum(1).clamp_min(2) * (sizes + PER_TILE)
    best = int(cost.argmin())
    n, of_element = int(sizes[best]), tiles[best]
    elements = torch.repeat_interleave(of_element)
    if elements.shape[0] == 1:
        elements = elements.repeat(2)
    order = place.argsort(stable=True)
    first = (of_element.cumsum(0) - of_element) * n - (counts.cumsum(0) - counts)
    slot = torch.arange(place.shape[0], device=place.device) + first.index_select(
        0, place.index_select(0, order)
    )
    atoms = order[:1].repeat(elements.shape[0] * n).index_copy(0, slot, order)
    return Tiles(elements, atoms.view(-1, n), torch.empty_like(order).index_copy(0, order, slot))
