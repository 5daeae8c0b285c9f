"""A run as one HTML file: its data, its learning, its errors, its checks."""

from physicsml_ase.report.write import write_report as write_report
