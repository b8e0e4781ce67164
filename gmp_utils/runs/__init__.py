"""Where artifacts lie and how they are made: folders, stages, provenance, parameters, experiments."""
