"""The denoising network: copies in several formats, CUDA graphs, oneDNN packing, CPU offload."""
