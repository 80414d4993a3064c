"""dejavu.backbones."""
