"""Influence by short trainings that are predicted from gradients."""
