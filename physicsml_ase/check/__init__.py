"""What is wrong with data, said before a model is trained on them."""

from physicsml_ase.check.findings import Finding
from physicsml_ase.check.repair import repair, written_to
from physicsml_ase.check.report import Report
from physicsml_ase.check.run import check, check_sources

__all__ = ["Finding", "Report", "check", "check_sources", "repair", "written_to"]
