"""A recipe: everything that a training run depends on, in one YAML file; read, checked and planned."""
