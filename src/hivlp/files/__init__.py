"""Reading strangers' files safely, and writing whole files or none."""
