"""ResidualViT: key frames whole, frames between them with some of their patches and one learned token."""
