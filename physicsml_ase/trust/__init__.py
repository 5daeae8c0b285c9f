"""How far a structure is from what a model was trained on, and how wrong the model may be there.

`measure` looks at the training set once, after training; what it finds, plain tensors by name, is
`Potential.trust` and is stored in the checkpoint.
"""

from physicsml_ase.trust.cloud import EnergyRange as EnergyRange
from physicsml_ase.trust.cloud import feature_scores as feature_scores
from physicsml_ase.trust.last_layer import energy_uncertainty as energy_uncertainty
from physicsml_ase.trust.last_layer import forces_uncertainty as forces_uncertainty
from physicsml_ase.trust.last_layer import uncertainties as uncertainties
from physicsml_ase.trust.measure import measure as measure
