"""The frozen tower: cut at its joints, its published sizes, and Hugging Face's weights in it."""
