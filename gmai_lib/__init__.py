"""GMAI-VL Workbook: build, train and evaluate a general medical vision-language model.

Importing this package does no work and pulls in nothing heavy; every notebook imports the
module it needs. Paper: Li et al., arXiv:2411.14522.
"""

__version__ = "0.1.0"
