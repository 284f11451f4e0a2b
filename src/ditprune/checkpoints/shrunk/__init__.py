"""SMALLER DENSE MODELS: how does a module tree become smaller, in memory and as it is loaded?

A shrunk folder is a diffusers folder with smaller tensors. What these do not say is the form: which
blocks stay, which Linears became two, which numbers forwards read. It lies in config.json,

    "quantization_config": {"quant_method": "ditprune-shrunk: …", "format": 1,
                            "numbers": {"transformer_blocks.0.attn": {"heads": 7}},
                            "blocks": {"transformer_blocks": [0, 1, 3]},
                            "ranks": {"transformer_blocks.0.norm1.linear": 48}}

since diffusers asks the method named there before it loads weights, and without `import ditprune`
says that it does not know it. A compact folder holds the form inside its own method. ditprune.json
says what went (`record.py`): by group which units stay, and along which dimensions of which tensors
they lie, so that all shapes follow.
"""
