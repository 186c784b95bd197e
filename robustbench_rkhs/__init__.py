"""Train regularized and Lipschitz-bounded classifiers, attack them, certify them, publish both radii of every image."""
