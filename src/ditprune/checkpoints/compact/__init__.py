"""SMALLER ON DISK: a pruned weight as its nonzero values and their positions, bit for bit.

A compact folder has the shards, the tensor names and the index of the dense folder. Each weight
that becomes smaller is stored as one uint8 tensor under its own name; every other tensor stays as
it is. `packing` turns one weight into such a tensor and back; `compact_folder` reads the folder.

A packed weight is one run of bytes, little-endian. Each part is padded with zeros to a multiple of
8 bytes:

    head       magic `DPc1` · dtype as safetensors names it, 4 bytes · N, M: uint16 (0, 0 for a
               mask) · number of axes: uint32 · number of values: uint64 · the shape: uint64 each
    values     the values that are kept, in the order of the dense weight
    positions  where they stand. As a mask: one bit for each weight, the first weight lowest. For
               N:M: the positions of each group's N values, ascending, first position lowest, in
               GROUPS[N, M] bits each

Only +0.0 is dropped. Weights are compared as integers, so -0.0, NaN payloads and denormals come
back unchanged. A weight that would not become smaller stays dense, and a model without any weight
that becomes smaller is refused.

Three files tell how to read the folder:

    config.json             the dense one, with ditprune named as quantizer, so that diffusers
                            calls `runtime.diffusers_loader` to unpack the weights
    ditprune-compact.json   the dense config.json and the headers of the dense shards, word for
                            word, and two hashes of each tensor: as stored, and dense
    ditprune.json           the manifest of the pruned folder, unchanged

With these, `ditprune convert --to dense` writes the dense folder again, byte for byte.
`mask_bits` holds what masks need elsewhere: a mask file stores one bit for each weight, too.
"""
