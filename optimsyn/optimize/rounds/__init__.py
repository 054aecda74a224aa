"""Policy optimisation in rounds: sample and judge rubrics, train on all that were judged, measure on held passages."""
