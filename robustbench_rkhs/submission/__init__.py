"""What strangers send: checked, evaluated, gated."""
