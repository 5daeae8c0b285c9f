"""The architectures, one file each; importing this package registers them all."""

from physicsml_ase.models import allegro as allegro
from physicsml_ase.models import ani as ani
from physicsml_ase.models import egnn as egnn
from physicsml_ase.models import gaunt_ace as gaunt_ace
from physicsml_ase.models import lj as lj
from physicsml_ase.models import mace as mace
from physicsml_ase.models import nequip as nequip
from physicsml_ase.models import painn as painn
from physicsml_ase.models import tensor_net as tensor_net
from physicsml_ase.models import zbl as zbl
