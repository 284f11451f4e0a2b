"""Which number says how good images are? Functions of tensors, most of them from libraries."""
