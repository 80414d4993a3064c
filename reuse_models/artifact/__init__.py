"""What the published code wrote: its weights and its way of counting."""
