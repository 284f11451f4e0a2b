"""How good are pruned models, and what do they cost? Same-seed samples, measured."""
