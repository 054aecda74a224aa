"""Influence by short trainings, predicted from gradients."""
