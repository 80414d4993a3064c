"""Vision-transformer inference that reuses computation between video frames: pure torch, no cluster."""
