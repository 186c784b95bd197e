"""What running needs: files, digests, devices, precision, modes, counter-based random numbers, processes."""
