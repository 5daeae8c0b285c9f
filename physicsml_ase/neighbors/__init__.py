"""Neighbour lists: full, sorted by centre, with the reverse of every edge; and one kept within a skin."""

from physicsml_ase.neighbors.full import Neighbors as Neighbors
from physicsml_ase.neighbors.full import neighbor_list as neighbor_list
from physicsml_ase.neighbors.pairs import COINCIDENT as COINCIDENT
from physicsml_ase.neighbors.verlet import Origin as Origin
from physicsml_ase.neighbors.verlet import VerletList as VerletList
