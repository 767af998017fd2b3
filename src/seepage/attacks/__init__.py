"""Attacks: from a leak, without the truth, to what it shows."""
