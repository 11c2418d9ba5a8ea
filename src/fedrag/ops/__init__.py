"""Pure kernels: tensors in, tensors out, in float32 or wider, each named after its formula."""
