"""Runtime utilities: files, digests, devices, precision, modes, counter-based random numbers, processes."""
