"""What makes an engine's graph, package or plans, and looks into what was made.

choice        the compiler for a request; ONNX graphs and AOTInductor packages
plans         TensorRT-RTX, for GPUs that are named; fp8_plans: its buckets in 8 bits
plugin_plans  TensorRT, for the GPU of this machine, with our kernels as plugins
fp8_layers    every 8-bit product of a graph, compared with the calibration
"""
