"""From stored clips to embeddings of a setting, and back."""
