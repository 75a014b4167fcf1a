"""Compute kernels, imported as `fsrvos.kernels`: each stands beside the reference that it must equal."""
