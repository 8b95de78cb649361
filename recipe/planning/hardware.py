"""What is known about the GPU this recipe is for: a Tesla P100 with 16 GB. Every number of it is here."""

MIB = 1 << 20
P100_CAPABILITY = (6, 0)
P100_MIB = 16_280  # total memory as the driver reports it
CONTEXT_MIB = 500  # CUDA context and cuBLAS: assumed; 300 to 500 on other GPUs
MARGIN_MIB = 1_500  # fragmentation of the allocator: assumed
P100_BUDGET = (P100_MIB - CONTEXT_MIB - MARGIN_MIB) * MIB  # bytes that a training step may take
P100_TFLOPS = (7.9, 8.4)  # large fp16 torch matmul on a P100-PCIe, from two public benchmarks
P100_FP16_TFLOPS = 18.7  # the data sheet's fp16 rate, which only matmuls with fp16 accumulation can reach
