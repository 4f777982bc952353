"""Matrices, not models: spectra, Sylvester equations, the point of least norm.

Pure functions on torch tensors. Nothing here knows what a task vector, a parameter name or a file is.
"""
