"""Whether a potential is what it says: physics, number types, backends and neighbour lists, each with a number."""

from physicsml_ase.verify.result import Check as Check
from physicsml_ase.verify.result import Verification as Verification
from physicsml_ase.verify.run import verify as verify
