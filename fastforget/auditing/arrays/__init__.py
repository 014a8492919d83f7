"""Membership attacks from saved arrays of any framework (`python -m fastforget score`)."""
