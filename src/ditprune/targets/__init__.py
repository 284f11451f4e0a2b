"""WHERE: which layers of a denoiser are pruned, and why the rest is not.

`discover` finds the targets, `select` takes some by their names, `left_out` explains the rest. All
work on the meta device, by structure: no model has code of its own. `exceptions.py` holds what
structure cannot tell, as data.

A target is one matrix inside a transformer block: a Linear (adaLN modulation included), or a
convolution that reads each position once (kernel and stride 1, one group, no padding). The weight
of a convolution, [C_out, C_in, 1, …], is pruned as the view [C_out, C_in] (`matrix.as_matrix`), and
its input is turned channels-last where the hook sees it, so statistics and scores need no case for
convolutions. Tests hold these counts of full-size models: DiT-XL/2 668,860,416, PixArt-Σ
594,542,592, FLUX.1-dev 11,834,228,736, Sana-1.6B 802,816,000 in Linears and 752,640,000 in
convolutions.

What stays dense is reported, with its size and its reason:

    embedders inside blocks     DiTTransformer2DModel copies its timestep and label embedders there
    one output for each head    gates, routers, biases of attention
    mixing convolutions         depthwise and temporal ones of Sana
    raw parameters              experts of NucleusMoEImage (93 % of it), tables of shifts and scales
    nn.MultiheadAttention       the input projection is raw, the output Linear is never called
    packed or computed weights  quantised or parametrised layers
    copies left by unfusing     diffusers' older attention class
    auxiliary lists             one entry for each list, unless `auxiliary` asks for them

After `fuse_qkv_projections()` a module holds its projections twice and calls only the copy.
`discover` refuses such a denoiser, and one whose layers run sparse, and says how to undo it.
"""
