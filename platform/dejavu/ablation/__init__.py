"""Which ideas of ReuseViT pay: variants, their fits and the table."""
