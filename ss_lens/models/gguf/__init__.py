"""Models in GGUF files: the header, and the weights, dequantised tensor by tensor."""
