"""The Square attack: its proposals, image layout and perturbation patterns in linf and l2."""
