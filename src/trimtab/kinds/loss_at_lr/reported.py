"""The perplexities in Table 4 of arXiv 2410.16682.

The values are taken from secondary accounts of the paper, not from the paper.
"""

# Perplexity after 0.2T tokens at LR 3e-4, 830M parameters, one seed; 95 % interval +-0.1.
REPORTED_PERPLEXITY = {
    "baseline": 11.19,
    "soft_cap": 11.24,
    "qkv_norm": 10.85,
    "qk_norm_cap": 11.00,
    "qk_norm": 10.84,
    "qk_fc_norm": 10.87,
}
REPORTED_PERPLEXITY_HALF_WIDTH = 0.1
