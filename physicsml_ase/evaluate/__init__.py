"""How good a potential is on labelled structures: errors, tables, predictions and parity plots."""

from physicsml_ase.evaluate.predict import predict, write_predictions
from physicsml_ase.evaluate.report import Evaluation
from physicsml_ase.evaluate.run import evaluate

__all__ = ["Evaluation", "evaluate", "predict", "write_predictions"]
