"""A dress rehearsal: a whole run on random weights and drawn videos, watched, and what a real one would take."""
