"""TempCLIP, the end task's head: its weights, its fit, its answers."""
