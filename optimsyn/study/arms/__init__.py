"""Compares arms over domains, sources of the reward and seeds: `optimsyn study`."""
