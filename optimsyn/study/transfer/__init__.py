"""One dataset, several targets; one target, several generators: a study file with `transfer`."""
