"""The paper's studies, remade on any model: arXiv 2607.00927v2, its tables and figures."""
