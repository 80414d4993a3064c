"""ReuseViT: what is reused, from where, and how it is restored."""
