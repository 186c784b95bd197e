"""The Square attack: what it proposes, its patches, and their patterns in linf and l2."""
