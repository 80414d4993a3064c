"""The methods that ReuseViT is compared with."""
