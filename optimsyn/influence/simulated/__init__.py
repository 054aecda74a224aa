"""Influence by short trainings that are foretold from gradients."""
